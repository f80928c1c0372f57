"""Shards to samples."""

from shardload.reader.concat import Concat, concat
from shardload.reader.dataset import ShardDataset, open_dataset
from shardload.reader.mixture import Mixture
from shardload.reader.source import SampleSource, View

__all__ = ["Concat", "Mixture", "SampleSource", "ShardDataset", "View", "concat", "open_dataset"]
