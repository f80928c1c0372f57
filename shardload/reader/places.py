"""In which shards, and at which bytes of them, samples lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout
from shardload.format.rows import count_column, row_layout
from shardload.format.schema import Field
from shardload.reader.engines import Ranges
from shardload.reader.facts import ShardFacts
from shardload.reader.located import Located
from shardload.reader.records import RecordReader
from shardload.reader.shard import ShardReader
from shardload.reader.streams import StreamReader
from shardload.reader.wide import WideReader

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a shard, or of an existing file beside it, that belong to one sample."""

    kind: str
    """`row`, `record`, `wide`, `stream` or `external` (FORMAT.md)."""
    fields: tuple[str, ...]
    """The fields whose values are in it."""
    start: int
    """Its first byte."""
    stop: int
    """The byte after its last."""
    file: str = ""
    """Name of the existing file that it is in, if it is in none of the shard's."""


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Where a sample lies."""

    sample_id: int
    shard: str
    """Path of its shard inside the dataset."""
    local_id: int
    """Number of the sample in its shard."""
    ranges: tuple[ByteRange, ...]
    """Its bytes; none for a field of which it has no byte."""


def sample_places(
    samples: Located,
    shards: Mapping[int, ShardReader],
    facts: ShardFacts,
    records: RecordReader,
    wide: Mapping[Field, WideReader],
    streams: Mapping[Field, StreamReader],
) -> list[SamplePlace]:
    """Returns where samples lie.

    Args:
        samples: the samples; their ids rise.
        shards: the readers of their shards.
        facts: where the parts of their shards lie.
        records: finds records.
        wide: finds the values of each wide field.
        streams: finds the items of each stream field.
    """
    shard_ids, local_ids = samples.shard_ids.tolist(), samples.local_ids.tolist()
    found = [[_row(shards[shard_id], local_id)] for shard_id, local_id in zip(shard_ids, local_ids, strict=True)]

    # What lies in existing files is looked for first: it is not in the record.
    external = list(_external(samples, records))
    outside = {(slot, one.fields[0]) for slot, one in external}

    def add(kind: str, slots: Int64, ranges: Ranges, field: Field | None = None) -> None:
        stops = (ranges.starts + ranges.lengths).tolist()
        for slot, start, stop in zip(slots.tolist(), ranges.starts.tolist(), stops, strict=True):
            fields = shards[shard_ids[slot]].schema.record_fields if field is None else (field,)
            names = tuple(one.name for one in fields if (slot, one.name) not in outside)
            found[slot].append(ByteRange(kind, names, start, stop))

    # Records are told by kind, in each by sample.
    kinds = records.kinds(samples)
    with_record = np.argsort(kinds, kind="stable")
    add("record", with_record[kinds[with_record] > 1], records.ranges(samples))
    for slot, one in external:
        found[slot].append(one)
    for field, fixed in wide.items():
        add("wide", np.flatnonzero(facts.wide_starts(field)[samples.shard_ids] >= 0), fixed.ranges(samples), field)
    for field, items in streams.items():
        add("stream", np.flatnonzero(samples.rows[count_column(field)]), items.ranges(samples), field)
    names = {shard_id: samples.table[shard_id].name for shard_id in set(shard_ids)}
    columns = zip(samples.sample_ids.tolist(), shard_ids, local_ids, found, strict=True)
    return [SamplePlace(sample_id, names[shard], local, tuple(ranges)) for sample_id, shard, local, ranges in columns]


def _external(samples: Located, records: RecordReader) -> Iterator[tuple[int, ByteRange]]:
    """Yields what lies in existing files, with the slots of the samples."""
    for part, layout_, outside in records.external_ranges(samples):
        slots = np.searchsorted(samples.sample_ids, part.sample_ids)[outside.slots]
        columns = (slots, outside.fields, outside.ranges.shard_ids, outside.ranges.starts, outside.ranges.lengths)
        for slot, field, file, start, length in zip(*(column.tolist() for column in columns), strict=True):
            name = layout_.fields[field].name
            yield slot, ByteRange("external", (name,), start, start + length, outside.names[file])


def _row(shard: ShardReader, local_id: int) -> ByteRange:
    size = row_layout(shard.schema).dtype.itemsize
    start = shard.head.section(layout.SECTION_ROWS).start + local_id * size
    inside = tuple(field.name for field in shard.schema.fields if field.fixed and not field.wide)
    return ByteRange("row", inside, start, start + size)
