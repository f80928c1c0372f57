"""Memory for batches: leased, handed out, and taken back when nobody holds it any more."""

from shardload.memory.arena import SharedArena
from shardload.memory.pool import BufferPool

__all__ = ["BufferPool", "SharedArena"]
