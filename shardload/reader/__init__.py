"""Shards to samples."""

from shardload.reader.concat import Concat, concat
from shardload.reader.dataset import ShardDataset, open_dataset
from shardload.reader.source import SampleSource, View

__all__ = ["Concat", "SampleSource", "ShardDataset", "View", "concat", "open_dataset"]
