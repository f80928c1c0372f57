"""What the heads of shards say, as arrays over all shards: a batch from a thousand shards needs no loop over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout
from shardload.format.checksum import identity_sum
from shardload.format.schema import Field, Schema
from shardload.reader.shard import ShardReader

Int64 = NDArray[np.int64]


class ShardFacts:
    """Where the parts of shards lie, and how their checksums start. Valid for shards that were added."""

    def __init__(self, schema: Schema, num_shards: int) -> None:
        self._schema = schema
        numbers = [schema.number(field.name) for field in schema.wide_fields]
        self.heap = np.zeros((2, num_shards), dtype=np.int64)
        """First byte of the heap and the byte after it."""
        self._wide = {number: np.full(num_shards, -1, dtype=np.int64) for number in numbers}
        self._sums = {number: np.zeros(num_shards, dtype=np.uint32) for number in [*numbers, layout.NO_FIELD]}
        self.num_record_fields = np.zeros(num_shards, dtype=np.int64)
        """Fields in the records of each shard's generation."""

    def add(self, shard_id: int, shard: ShardReader) -> None:
        """Notes a shard that was opened."""
        entry, schema = shard.entry, shard.schema
        place = entry.generation, entry.unit, entry.part
        for number in self._sums:
            self._sums[number][shard_id] = identity_sum(*place, number, 0)
        for field in schema.wide_fields:
            number = schema.number(field.name)
            self._wide[number][shard_id] = shard.head.section(layout.SECTION_WIDE, number).start
        if schema.record_fields:
            heap = shard.head.section(layout.SECTION_HEAP)
            self.heap[:, shard_id] = heap.start, heap.stop
        self.num_record_fields[shard_id] = len(schema.record_fields)

    def wide_starts(self, field: Field) -> Int64:
        """Returns where the values of a wide field start in each shard, -1 where its generation has not the field."""
        return self._wide[self._schema.number(field.name)]

    def identities(self, number: int) -> NDArray[np.uint32]:
        """Returns how the checksums of a field (or `layout.NO_FIELD` for records) start in each shard, for local id 0."""
        return self._sums[number]
