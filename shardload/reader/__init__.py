"""Shards to samples."""

from shardload.reader.dataset import ShardDataset, open_dataset

__all__ = ["ShardDataset", "open_dataset"]
