"""Shards to samples."""

from shardload.reader.concat import Concat, concat
from shardload.reader.dataset import ShardDataset, open_dataset
from shardload.reader.mixture import Mixture
from shardload.reader.source import SampleSource, View
from shardload.reader.windows import TokenWindows

__all__ = ["Concat", "Mixture", "SampleSource", "ShardDataset", "TokenWindows", "View", "concat", "open_dataset"]
