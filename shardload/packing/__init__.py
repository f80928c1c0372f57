"""A foreign source packed into a dataset by many processes, whole or not at all."""

from shardload.packing.index import index
from shardload.packing.pack import DEFAULT_COMPRESSION, pack
from shardload.packing.progress import Progress
from shardload.packing.summary import PackSummary

__all__ = ["DEFAULT_COMPRESSION", "PackSummary", "Progress", "index", "pack"]
