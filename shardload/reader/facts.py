"""What the heads of shards say, as arrays over all shards: a batch from a thousand shards needs no loop over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout
from shardload.format.checksum import identity_sum
from shardload.format.schema import Field, Schema
from shardload.format.table import ShardTable
from shardload.reader.shard import ShardReader

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """Where the streams of a field lie: arrays of shape (shards,), zero where a shard's generation has not the field."""

    starts: Int64
    """First byte of the items."""
    num_bytes: Int64
    """Bytes of the items."""
    num_items: Int64
    sum_starts: Int64
    """First byte of the checksums of blocks."""


class ShardFacts:
    """Where the parts of shards lie, and how their checksums start. Valid for shards that were added."""

    def __init__(self, schema: Schema, table: ShardTable) -> None:
        self._schema, num_shards = schema, len(table)
        numbers = [schema.number(field.name) for field in schema.wide_fields]
        streams = [schema.number(field.name) for field in schema.stream_fields]
        self.heap = np.zeros((2, num_shards), dtype=np.int64)
        """First byte of the heap and the byte after it."""
        self._wide = {number: np.full(num_shards, -1, dtype=np.int64) for number in numbers}
        self._sums = {number: np.zeros(num_shards, dtype=np.uint32) for number in [*numbers, *streams, layout.NO_FIELD]}
        self.num_record_fields = np.zeros(num_shards, dtype=np.int64)
        """Fields in the records of each shard's generation."""
        self.external = np.zeros(num_shards, dtype=np.bool_)
        """Which shards name existing files that records lie in."""

        self._streams = {n: StreamFacts(*np.zeros((4, num_shards), dtype=np.int64)) for n in streams}
        # More than any stream of the shard has, which is less than the whole file: no block follows that of another shard.
        most = table.entries["num_bytes"].astype(np.int64) // layout.BLOCK_BYTES + 1
        self.first_blocks = np.cumsum(most) - most
        """Numbers in the dataset of the first block of a stream in each shard; the same for each field."""

    def add(self, shard_id: int, shard: ShardReader) -> None:
        """Notes a shard that was opened."""
        entry, schema = shard.entry, shard.schema
        place = entry.generation, entry.unit, entry.part
        for number in self._sums:
            self._sums[number][shard_id] = identity_sum(*place, number, 0)
        for field in schema.wide_fields:
            number = schema.number(field.name)
            self._wide[number][shard_id] = shard.head.section(layout.SECTION_WIDE, number).start
        for field in schema.stream_fields:
            number = schema.number(field.name)
            kinds, facts = (layout.SECTION_STREAM, layout.SECTION_SUMS), self._streams[number]
            items, sums = (shard.head.section(kind, number) for kind in kinds)
            facts.starts[shard_id], facts.num_bytes[shard_id] = items.start, items.num_bytes
            facts.num_items[shard_id] = items.num_bytes // items.item_bytes
            facts.sum_starts[shard_id] = sums.start
        if schema.record_fields:
            heap = shard.head.section(layout.SECTION_HEAP)
            self.heap[:, shard_id] = heap.start, heap.stop
        self.num_record_fields[shard_id] = len(schema.record_fields)
        self.external[shard_id] = any(section.kind == layout.SECTION_EXTERNAL for section in shard.head.sections)

    def wide_starts(self, field: Field) -> Int64:
        """Returns where the values of a wide field start in each shard, -1 where its generation has not the field."""
        return self._wide[self._schema.number(field.name)]

    def streams(self, number: int) -> StreamFacts:
        """Returns where the streams of a field lie."""
        return self._streams[number]

    def identities(self, number: int) -> NDArray[np.uint32]:
        """Returns how the checksums of a field (or `layout.NO_FIELD` for records) start in each shard, for local id 0."""
        return self._sums[number]
