"""Batches for training loops: the sampler, the loader and the collation. The rooms above it need torch."""

from shardload.loader.collate import collate
from shardload.loader.loader import ShardLoader
from shardload.loader.metrics import masked_mean
from shardload.loader.ragged import packed, padded
from shardload.loader.sampler import ShardBatchSampler, ShardSampler
from shardload.loader.scan import Scan, scan
from shardload.loader.sequences import PackedSequences, PackingReport

__all__ = [
    "PackedSequences",
    "PackingReport",
    "Scan",
    "ShardBatchSampler",
    "ShardLoader",
    "ShardSampler",
    "collate",
    "masked_mean",
    "packed",
    "padded",
    "scan",
]
