"""Records of many samples at once: read together, taken apart by arrays, decompressed by the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.codecs import Codec
from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.checksum import block_sum, with_local_ids
from shardload.format.record import (
    RecordLayout,
    RecordPlaces,
    external_records,
    record_headers,
    record_layout,
    record_places,
)
from shardload.format.schema import Field, Schema
from shardload.memory.ranges import SUMS, copied_and_added_up, slices, texts
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.engines import Engine, Ranges
from shardload.reader.external import ExternalFiles, ExternalRecords, Outside
from shardload.reader.facts import ShardFacts
from shardload.reader.in_memory import InMemory
from shardload.reader.located import Located, damaged
from shardload.reader.pieces import inverse, runs_within
from shardload.reader.record_values import RecordValues
from shardload.reader.strings import ByteStrings, Texts, in_turn
from shardload.reader.sums import range_sums

Int64 = NDArray[np.int64]

PIECE_BYTES = 16 << 20
"""Records of so many bytes, decompressed, are read at a time, a larger one alone: what is held beside the values."""
_DIRECT_BYTES = 16 << 10
"""From this mean size on, values of a lone plain field are read into their own byte strings: one copy instead of two."""


class RecordReader:
    """Reads fields that are stored in records. Safe for several threads."""

    def __init__(
        self,
        schema: Schema,
        facts: ShardFacts,
        engine: Engine,
        checked: CheckedBlocks,
        verify: Verify,
        codec_of: Callable[[int], Codec | None],
        external: ExternalFiles,
    ) -> None:
        """Describes the records.

        Args:
            schema: the dataset's.
            facts: where heaps lie.
            engine: what reads them.
            checked: which samples' records have been checked in this process.
            verify: whether checksums are compared; not `auto`.
            codec_of: returns the codec of a shard's generation.
            external: the existing files that records may lie in.
        """
        self._fields = schema.record_fields
        self._facts = facts
        self._engine = engine
        self._checked = checked
        self._verify = verify
        self._values = RecordValues(codec_of)
        self._external = ExternalRecords(engine, external)
        self._layouts = {
            count: RecordLayout(self._fields[:count]) if count < len(self._fields) else record_layout(schema)
            for count in range(1, len(self._fields) + 1)
        }

    def places(self, samples: Located, records: RecordLayout, external: bool = False) -> RecordPlaces:
        """Returns where records lie, checked against heaps and each other. The ids of the samples do not fall.

        The writer puts records one after another. Were they let overlap, a small shard with right checksums could ask for
        any amount of memory.

        Raises:
            FormatError: a record is outside the heap, or starts inside one before it; names shard, bytes and sample.
        """
        heap = self._facts.heap[:, samples.shard_ids]
        try:
            size = records.external_bytes if external else records.header.size
            places = record_places(samples.rows, heap[0], heap[1], size, external)
        except FormatError as error:
            raise damaged(FormatError, samples, error.sample_id or 0, error.message, error.start, error.stop) from None
        starts, stops = places.start, places.start + places.stored
        # A sample asked for twice stands twice, with one and the same record.
        inside = (starts[1:] < stops[:-1]) & (samples.sample_ids[1:] != samples.sample_ids[:-1])
        inside &= samples.shard_ids[1:] == samples.shard_ids[:-1]
        if inside.any():
            bad = int(np.argmax(inside)) + 1
            detail = f"the record starts before the end of the one before it, at {stops[bad - 1]}"
            raise damaged(FormatError, samples, bad, detail, int(starts[bad]), int(stops[bad]))
        return places

    def ranges(self, samples: Located) -> Ranges:
        """Returns where the records of samples lie, by kind and of one kind in the order of their ids."""
        samples = samples[np.argsort(samples.sample_ids)]
        found = []
        for records, slots, external in self._by_layout(samples):
            part = samples[slots]
            places = self.places(part, records, external)
            found.append((part.shard_ids, places.start, places.stored))
        if not found:
            empty = np.empty(0, dtype=np.int64)
            return Ranges(empty, empty, empty)
        return Ranges(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def external_ranges(self, samples: Located) -> list[tuple[Located, RecordLayout, Outside]]:
        """Returns where fields lie in existing files: the samples that have such fields, by layout in the order of their ids."""
        if not self._facts.external.any():
            return []
        samples = samples[np.argsort(samples.sample_ids)]
        groups = ((samples[slots], records) for records, slots, external in self._by_layout(samples) if external)
        return [
            (part, records, self._external.ranges(part, records, self.places(part, records, True)))
            for part, records in groups
        ]

    def read(self, samples: Located, wanted: Sequence[int]) -> list[ByteStrings]:
        """Returns the values of some fields.

        Args:
            samples: the samples, in any order.
            wanted: places of the fields among the record's fields.

        Returns:
            For each wanted field its values in all samples; empty where a sample's generation has not the field.

        Raises:
            FormatError: a record is damaged; names shard, bytes and sample.
            StorageError: a file cannot be read.
        """
        order = np.argsort(samples.sample_ids)
        read: dict[int, list[ByteStrings]] = {place: [] for place in wanted}
        read_slots: dict[int, list[Int64]] = {place: [] for place in wanted}
        for records, slots, external in self._by_layout(samples[order]):
            mine = [place for place in wanted if place < len(records.fields)]
            if not mine:
                continue
            slots = order[slots]
            places = self.places(samples[slots], records, external)
            all_at_once = len(slots) == len(samples) and len(mine) == len(wanted)
            if all_at_once and not external:
                whole = self._read_whole(samples, slots, records, places, mine)
                if whole is not None:
                    return whole
            for run in runs_within(places.raw, PIECE_BYTES):
                part = slots[run]
                found = self._read_piece(samples[part], records, places[run], mine)
                # What was read for them is to be as large as one piece, not as all.
                for place, values in zip(mine, found, strict=True):
                    read[place].append(values if all_at_once and len(part) == len(samples) else values.copied())
                    read_slots[place].append(part)
        return [in_turn(read[place], read_slots[place], len(samples)) for place in wanted]

    def lengths(self, samples: Located, place: int) -> Int64:
        """Returns the stored length of a field's values, in bytes decompressed: int64 of shape (samples,).

        Args:
            samples: the samples; their ids do not fall.
            place: place of the field among the record's fields.
        """
        found = np.zeros(len(samples), dtype=np.int64)
        for records, slots, external in self._by_layout(samples):
            if place >= len(records.fields):
                continue
            part, size = samples[slots], records.header.size
            places = self.places(part, records, external)
            if len(records.fields) == 1:
                found[slots] = places.raw - size
                continue
            headers = np.empty((len(part), size), dtype=np.uint8)
            whole = np.full(len(part), size, dtype=np.int64)
            self._engine.read(Ranges(part.shard_ids, places.start, whole), [headers.reshape(-1)])
            lengths = headers.view("<u4")[:, 1:].astype(np.int64)
            # The record's sum covers more than was read here; the row's total, under the page digest, stands in for it.
            wrong = lengths.sum(axis=1) + size != places.raw
            if wrong.any():
                bad = int(np.argmax(wrong))
                start = int(places.start[bad])
                raise damaged(ChecksumError, part, bad, "a record's field lengths do not add up", start, start + size)
            found[slots] = lengths[:, place]
        return found

    def kinds(self, samples: Located) -> Int64:
        """Returns what records samples have: twice the number of their fields, and 1 more if they are external."""
        kinds = 2 * self._facts.num_record_fields[samples.shard_ids]
        if self._facts.external.any():
            kinds += external_records(samples.rows) & self._facts.external[samples.shard_ids]
        return kinds

    def _by_layout(self, samples: Located) -> list[tuple[RecordLayout, Int64, bool]]:
        """Returns the samples that have records, by the layout of their generation, and whether those are external."""
        kinds = self.kinds(samples)
        if len(kinds) and kinds[0] > 1 and (kinds == kinds[0]).all():
            return [(self._layouts[int(kinds[0]) // 2], np.arange(len(kinds)), bool(kinds[0] % 2))]
        some = (kind for kind in np.unique(kinds).tolist() if kind > 1)
        return [(self._layouts[kind // 2], np.flatnonzero(kinds == kind), bool(kind % 2)) for kind in some]

    def _read_whole(
        self, samples: Located, order: Int64, records: RecordLayout, places: RecordPlaces, wanted: Sequence[int]
    ) -> list[ByteStrings] | None:
        """Returns values of all samples by one read in place, or None; their records are at `places`, if taken in this order.

        Nothing is held beside them but what frames decompress to: of much there are pieces. They are made in the order asked for,
        so that those of a batch follow each other.
        """
        if places.framed.any() and int(places.raw.sum()) > PIECE_BYTES:
            return None
        return self._read_in_place(samples, records, places[inverse(order)], wanted)

    def _read_piece(
        self, samples: Located, records: RecordLayout, places: RecordPlaces, wanted: Sequence[int]
    ) -> list[ByteStrings]:
        found = self._read_in_place(samples, records, places, wanted)
        return self._read_copied(samples, records, places, wanted) if found is None else found

    def _read_copied(
        self, samples: Located, records: RecordLayout, places: RecordPlaces, wanted: Sequence[int]
    ) -> list[ByteStrings]:
        due = self._checked.due(samples.sample_ids, self._verify)
        if places.external:
            found = self._external.read(samples, records, places, wanted, due, self._identities(samples))
            self._checked.add(samples.sample_ids[due])
            return found
        ranges = Ranges(samples.shard_ids, places.start, places.stored)
        if _are_lone(records, places) and places.stored.mean() >= _DIRECT_BYTES:
            return [ByteStrings.of(self._read_directly(samples, records, places, due))]
        data = self._engine.read_joined(ranges)
        offsets = np.cumsum(places.stored) - places.stored
        headers = record_headers(data, offsets, records)
        self._check(samples, places, due, headers, data, offsets)
        lengths, packed = self._values.lengths(headers, samples, records, places)
        self._checked.add(samples.sample_ids[due])
        return self._values.read(samples, records, places, data, offsets, lengths, packed, wanted)

    def _read_in_place(
        self, samples: Located, records: RecordLayout, places: RecordPlaces, wanted: Sequence[int]
    ) -> list[ByteStrings] | None:
        """Returns the values of the wanted fields from records where they lie, if that is in memory.

        The samples are in any order. None if it fails, for whatever reason.
        """
        due = self._checked.due(samples.sample_ids, self._verify)
        # Where each read is to be checked, what is delivered is: it is copied first.
        if places.external or (due.any() and not (SUMS and self._verify == "once")):
            return None
        found = self._engine.in_memory(Ranges(samples.shard_ids, places.start, places.stored))
        if found is None:
            return None
        values = self._values_in_place(found, samples, records, places, wanted, due)
        if values is not None and found.whole():
            self._checked.add(samples.sample_ids[due])
            return values
        return None

    def _values_in_place(
        self,
        found: InMemory,
        samples: Located,
        records: RecordLayout,
        places: RecordPlaces,
        wanted: Sequence[int],
        due: NDArray[np.bool_],
    ) -> list[ByteStrings] | None:
        if (due.all() or not due.any()) and _are_lone(records, places):
            return self._lone_values(found, samples, records, bool(due[0]))
        as_text = [_is_text(records.fields[place]) for place in wanted]
        try:
            if len(records.fields) == 1 and not due.any():
                # Whoever checked the record has seen that its header says the same.
                headers = np.repeat(places.raw[:, None] - records.header.size, 2, axis=1).astype(np.uint32)
            else:
                headers = record_headers(found.data, found.starts, records)
            lengths, packed = self._values.lengths(headers, samples, records, places)
            self._check(samples, places, due, headers, found.data, found.starts)
            lazy = self._values.read(samples, records, places, found.data, found.starts, lengths, packed, wanted)
        except FormatError:
            # Read once more, in the way that tells what is wrong.
            return None
        return [column.copied(text) for column, text in zip(lazy, as_text, strict=True)]

    def _lone_values(
        self, found: InMemory, samples: Located, records: RecordLayout, due: bool
    ) -> list[ByteStrings] | None:
        """Returns the values of a lone plain field: what follows each header.

        Where they are due each is copied as its checksum is made; None if one has not its checksum or length. Of others whoever
        checked them has seen that their headers say the same.
        """
        as_text, starts = _is_text(records.fields[0]), found.starts + records.header.size
        lengths, there = found.stops - starts, (found.data, starts, found.stops)
        try:
            values: list[bytes] | list[str]
            if due:
                headers = record_headers(found.data, found.starts, records)
                values, sums = copied_and_added_up(*there, 4, self._identities(samples), as_text)
                if (sums != headers[:, 0]).any() or (lengths != headers[:, 1]).any():
                    return None
            else:
                values = texts(*there) if as_text else slices(*there)
        except UnicodeDecodeError:
            return None
        return [(Texts if as_text else ByteStrings).of(values, lengths)]

    def _read_directly(
        self, samples: Located, records: RecordLayout, places: RecordPlaces, due: NDArray[np.bool_]
    ) -> list[bytes]:
        """Returns the values of a lone plain field: what follows the header."""
        size = records.header.size
        if not due.any():
            return self._engine.read_bytes(Ranges(samples.shard_ids, places.start + size, places.stored - size))
        data = np.empty((len(samples), size), dtype=np.uint8)
        whole = np.full(len(samples), size, dtype=np.int64)
        self._engine.read(Ranges(samples.shard_ids, places.start, whole), [data.reshape(-1)])
        values = self._engine.read_bytes(Ranges(samples.shard_ids, places.start + size, places.stored - size))
        headers = data.view("<u4")
        identities = self._identities(samples)
        for i in np.flatnonzero(due).tolist():
            if block_sum(values[i], block_sum(data[i, 4:], int(identities[i]))) != headers[i, 0]:
                raise self._without_checksum(samples, places, i)
        self._values.lengths(headers, samples, records, places)
        self._checked.add(samples.sample_ids[due])
        return values

    def _check(
        self,
        samples: Located,
        places: RecordPlaces,
        due: NDArray[np.bool_],
        headers: NDArray[np.uint32],
        data: bytes,
        offsets: Int64,
    ) -> None:
        """Compares the records in `data` that are due with their checksums."""
        slots = np.flatnonzero(due)
        if not len(slots):
            return
        starts, stops = offsets[slots] + 4, (offsets + places.stored)[slots]
        wrong = range_sums(data, starts, stops, self._identities(samples[slots])) != headers[slots, 0]
        if wrong.any():
            raise self._without_checksum(samples, places, int(slots[np.argmax(wrong)]))

    def _identities(self, samples: Located) -> NDArray[np.uint32]:
        return with_local_ids(self._facts.identities(layout.NO_FIELD)[samples.shard_ids], samples.local_ids)

    def _without_checksum(self, samples: Located, places: RecordPlaces, slot: int) -> ChecksumError:
        start = int(places.start[slot])
        stop = start + int(places.stored[slot])
        return damaged(ChecksumError, samples, slot, "the record does not have its checksum", start, stop)


def _are_lone(records: RecordLayout, places: RecordPlaces) -> bool:
    """Tells whether records are each a header and one value as it is."""
    return (
        len(records.fields) == 1
        and not records.packed
        and not places.framed.any()
        and bool((places.stored == places.raw).all())
    )


def _is_text(field: Field) -> bool:
    """Tells whether each value is one text."""
    return field.kind == "str" and not field.starred and not field.nullable
