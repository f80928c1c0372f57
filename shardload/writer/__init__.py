"""Samples to shards: encoding, rolling by size, and the commit."""

from shardload.writer.writer import ShardWriter

__all__ = ["ShardWriter"]
