"""One shard file, written front to back, and the row of shards that a unit becomes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from shardload.format import layout
from shardload.format.keys import encode_keys
from shardload.format.rows import PLACE, RAW, STORED, count_column, row_layout, start_column, sum_column
from shardload.format.shard import Contents, encode_header, encode_tail, plan_sections, shard_bytes
from shardload.format.statistics import encode_statistics
from shardload.format.table import ShardEntry
from shardload.storage import FileWriter, LocalStorage
from shardload.writer.batch import EncodedBatch
from shardload.writer.columns import Column
from shardload.writer.encode import EncodedSample, row_columns, row_struct
from shardload.writer.external import ExternalFiles, numbered
from shardload.writer.heap import Heap
from shardload.writer.keys import DuplicateKeyError
from shardload.writer.pack import RecordPacker
from shardload.writer.recipe import Recipe
from shardload.writer.shard_statistics import shard_statistics

_FRAMED = layout.RECORD_FLAG_FRAME << layout.OFFSET_BITS
_EXTERNAL = layout.RECORD_FLAG_EXTERNAL << layout.OFFSET_BITS
_BLOCK_SHARE = 1 + 4 / layout.BLOCK_BYTES
"""Bytes that a byte of a stream takes with its part of a block's checksum."""


class _RowPlaces:
    """Where in a packed row stands what depends on where the sample lies, by number of the column."""

    def __init__(self, recipe: Recipe) -> None:
        schema = recipe.schema
        slots = {name: slot for slot, name in enumerate(row_columns(schema))}
        self.pack = row_struct(schema).pack
        self.record = (slots[PLACE], slots[STORED], slots[RAW]) if schema.record_fields else None
        """Place with flags, stored and raw bytes of the record."""
        self.sums = [slots[sum_column(field)] for field in schema.wide_fields]
        self.spans = [(slots[start_column(field)], slots[count_column(field)]) for field in schema.stream_fields]
        """Start and count of the items of each stream."""


class ShardFile:
    """A shard being written. Records go to the file at once; columns and rows are kept until `finish`."""

    def __init__(self, writer: FileWriter, recipe: Recipe, unit: int, part: int) -> None:
        self.num_samples = 0
        self.identity = (recipe.generation, unit, part)
        self._writer = writer
        self._recipe = recipe
        self._schema = schema = recipe.schema
        self._rows = bytearray()
        self._places = _RowPlaces(recipe)
        self._lengths = bytearray()
        self._key_ids: dict[bytes, int] = {}
        self._external = ExternalFiles()
        # Without records nothing comes before the first column: it need not be kept.
        fields = [*schema.wide_fields, *schema.stream_fields]
        first = None if schema.record_fields else writer
        self._columns = [
            Column(field, schema.number(field.name), self.identity, None if i else first)
            for i, field in enumerate(fields)
        ]
        self._num_wide = len(schema.wide_fields)
        self._heap = Heap(writer, self.identity)
        self._nullable = [f.nullable and 1 << schema.nullable_fields.index(f) for f in fields]
        rows = row_layout(schema)
        self._bytes_a_sample = rows.dtype.itemsize + layout.DIGEST_BYTES / rows.rows_per_page
        self._bytes_a_sample += layout.KEY_ENTRY_BYTES if schema.key else 0
        # Padding and directory entries: at most so much for each section.
        num_sections = 7 + len(fields) + len(schema.stream_fields)
        self._bytes_a_shard = (layout.SECTION_ALIGNMENT + layout.DIRECTORY_ENTRY_BYTES) * num_sections
        self._bytes_a_shard += len(recipe.encoded) + len(recipe.dictionary)
        self._bytes_a_shard += layout.STATISTICS_ENTRY_BYTES * len(schema) + layout.FOOTER_BYTES
        self._header = encode_header(schema, *self.identity)
        self._bound = float(self._bytes_a_shard + self._heap.stop)
        writer.write(self._header)

    @property
    def num_bytes(self) -> int:
        """Bytes of data so far, in the file or kept."""
        kept = sum(column.kept_bytes for column in self._columns)
        return self._writer.num_bytes + kept + len(self._rows)

    def reserve(self, sample: EncodedSample, record_bytes: int, limit_bytes: int) -> bool:
        """Counts in a sample that is to be added; tells whether the finished file does not exceed a limit then."""
        # A bound that costs nothing decides far from the limit; the exact size is worked out near it.
        bound = self._bound + self._bytes_a_sample
        if sample.file is not None:
            bound += self._external.num_bytes_with(sample.file) - self._external.num_bytes_with(None)
        if record_bytes:
            bound += record_bytes + layout.record_alignment(record_bytes)
        for value in sample.values:
            bound += len(value) * _BLOCK_SHARE
        self._bound = bound
        return bound <= limit_bytes or self._fits_exactly(sample, record_bytes, limit_bytes)

    def _fits_exactly(self, sample: EncodedSample, record_bytes: int, limit_bytes: int) -> bool:
        stop, value_bytes = self._heap.stop_after(record_bytes), [len(value) for value in sample.values]
        return self._fits(1, stop, value_bytes, self._external.num_bytes_with(sample.file), limit_bytes)

    def _fits(
        self, num_samples: int, heap_stop: int, value_bytes: Sequence[int], external_bytes: int, limit_bytes: int
    ) -> bool:
        """Tells whether the finished file does not exceed a limit with further samples, which are counted in if so.

        Args:
            num_samples: how many.
            heap_stop: where their last record would end.
            value_bytes: of each column, what they add.
            external_bytes: of the section of external files with theirs.
            limit_bytes: the limit.
        """
        # What was added up for paddings is too much by now: from here on what they really take counts.
        column_bytes = sum(column.num_bytes for column in self._columns) + sum(value_bytes)
        self._bound = heap_stop + column_bytes * _BLOCK_SHARE + (self.num_samples + num_samples) * self._bytes_a_sample
        self._bound += self._bytes_a_shard + external_bytes
        if self._bound <= limit_bytes:
            return True
        streams = zip(self._columns[self._num_wide :], value_bytes[self._num_wide :], strict=True)
        items = tuple(column.num_items + added // column.field.num_bytes for column, added in streams)
        contents = self._contents(self.num_samples + num_samples, heap_stop, items, external_bytes)
        return shard_bytes(self._schema, contents) <= limit_bytes

    def reserve_many(self, batch: EncodedBatch, stored_bytes: Sequence[int], limit_bytes: int) -> int:
        """Returns how many of the samples `reserve` would let in one by one. If that is not all, the shard is full.

        Args:
            batch: samples that are to be added; they are counted in.
            stored_bytes: bytes of their records with the checksums; empty if there are no records.
            limit_bytes: what the finished file must not exceed; the first sample of a shard is in it all the same.
        """
        stops, external_bytes = self._heap.stops_after(stored_bytes), self._external.num_bytes_with(None)

        def fit(count: int) -> bool:
            stop = stops[count - 1] if stops else self._heap.stop
            return self._fits(count, stop, batch.value_bytes(count), external_bytes, limit_bytes)

        most = min(len(batch), layout.MAX_SHARD_SAMPLES - self.num_samples)
        least = min(most, 0 if self.num_samples else 1)
        if (most and fit(most)) or most == least:
            return most
        # Files only grow with their samples: the last number that fits, by halving.
        too_many = most
        while too_many - least > 1:
            middle = (least + too_many) // 2
            least, too_many = (middle, too_many) if fit(middle) else (least, middle)
        return least

    def _contents(self, num_samples: int, heap_stop: int, num_items: tuple[int, ...], external_bytes: int) -> Contents:
        recipe = self._recipe
        heap_bytes = heap_stop - layout.HEADER_BYTES
        return Contents(num_samples, heap_bytes, num_items, len(recipe.dictionary), len(recipe.encoded), external_bytes)

    def key_taken(self, key: bytes) -> int | None:
        """Returns the number in this shard of the sample that has a key, given by its digest, if there is one."""
        return self._key_ids.get(key)

    def add(self, sample: EncodedSample, record: bytes, framed: bool) -> None:
        """Adds a sample, whose record is given as it is stored after its checksum."""
        local_id, row, places = self.num_samples, sample.row, self._places
        if places.record is not None:
            if sample.file is not None:
                record = numbered(record, len(sample.header), self._external.number(sample.file))
            place, stored = self._heap.add(record, local_id, sample.outside)
            self._lengths += sample.header
            place_slot, stored_slot, raw_slot = places.record
            row[place_slot] = place | (_FRAMED if framed else 0) | (_EXTERNAL if sample.file is not None else 0)
            row[stored_slot], row[raw_slot] = stored, sample.raw_bytes
        if self._columns:
            self._add_values(sample, local_id)
        self._rows += places.pack(*row)
        if sample.key:
            self._key_ids[sample.key] = local_id
        self.num_samples = local_id + 1

    def add_many(self, batch: EncodedBatch, records: Sequence[bytes], framed: Sequence[bool]) -> None:
        """Adds samples as `add` does one by one; the batch belongs to the shard from here on."""
        first, rows, schema = self.num_samples, batch.rows, self._schema
        if records:
            stops = self._heap.stops_after([len(record) + 4 for record in records])
            stored = np.fromiter(map(len, records), dtype=np.int64, count=len(records)) + 4
            flags = np.array(framed, dtype=np.int64) * _FRAMED
            rows[PLACE], rows[STORED], rows[RAW] = (np.array(stops) - stored) | flags, stored, batch.raw_bytes
            self._heap.add_many(records, stops, first)
            self._lengths += batch.lengths.tobytes()
        columns = iter(zip(self._columns, schema.wide_fields + schema.stream_fields, strict=True))
        for values, (column, field) in zip(batch.wide, columns):
            rows[sum_column(field)] = column.value_sums(values, first)
            column.add_values(values, batch.valid(field))
        for stream, (column, field) in zip(batch.streams, columns):
            rows[start_column(field)] = column.num_items + stream.starts - stream.starts[0]
            rows[count_column(field)] = stream.counts
            column.add_items(stream.joined())
        self._rows += batch.packed_rows()
        self._key_ids.update(zip(batch.keys, range(first, first + len(batch)), strict=False))
        self.num_samples = first + len(batch)

    def _add_values(self, sample: EncodedSample, local_id: int) -> None:
        """Adds the values of wide fields and streams, and their sums and spans to the row."""
        row, places, num_wide = sample.row, self._places, self._num_wide
        for i, (column, value) in enumerate(zip(self._columns, sample.values, strict=True)):
            if i < num_wide:
                row[places.sums[i]] = column.value_sum(value, local_id)
            else:
                start_slot, count_slot = places.spans[i - num_wide]
                row[start_slot], row[count_slot] = column.num_items, len(value) // column.field.num_bytes
            bit = self._nullable[i]
            column.add(value, bool(bit) and not sample.validity & bit)

    def finish(self, last: bool) -> ShardEntry:
        """Writes the rest of the file, brings it to the device and returns its entry in the shard table.

        Args:
            last: whether it is the last part of its unit.
        """
        writer, recipe = self._writer, self._recipe
        contents: list[Iterable[bytes | bytearray]] = [[]] if self._schema.record_fields else []
        contents += [column.finish() for column in self._columns]
        num_items = tuple(column.num_items for column in self._columns[self._num_wide :])
        external = self._external.encode()
        sizes = self._contents(self.num_samples, self._heap.stop, num_items, len(external))
        planned = plan_sections(self._schema, sizes)
        statistics = shard_statistics(self._schema, self._rows, self._lengths, self._columns)
        contents += [[self._rows], [self._page_digests()]]
        contents += [[column.sums] for column in self._columns[self._num_wide :]]
        contents += [[recipe.dictionary]] if recipe.dictionary else []
        contents += [[encode_keys(list(self._key_ids))]] if self._schema.key else []
        contents += [[encode_statistics(self._schema.fields, statistics)]]
        contents += [[external], [recipe.encoded]] if external else [[recipe.encoded]]
        sections = []
        for section, parts in zip(planned, contents, strict=True):
            # The first section may be in the file already.
            if writer.num_bytes < section.start:
                writer.pad_to(section.start)
            for part in parts:
                writer.write(part)
            digested = section.kind in layout.DIGESTED_SECTIONS
            sections.append(replace(section, digest=hashlib.sha256(b"".join(parts)).digest()) if digested else section)
        writer.pad_to(layout.align(writer.num_bytes, layout.SMALL_SECTION_ALIGNMENT))
        tail = encode_tail(sections, self.num_samples, self._header, last)
        writer.write(tail)
        digest = writer.finish()
        head_digest = hashlib.sha256(tail).digest()
        return ShardEntry(*self.identity, self.num_samples, writer.num_bytes, head_digest, digest, num_items)

    def _page_digests(self) -> bytes:
        rows = row_layout(self._schema)
        bounds = [rows.page_bounds(page, self.num_samples) for page in range(rows.num_pages(self.num_samples))]
        return b"".join(hashlib.sha256(self._rows[start:stop]).digest() for start, stop in bounds)


class UnitWriter:
    """Writes one unit: samples go into parts 0, 1, ..., each closed before it would exceed the shard size."""

    def __init__(
        self,
        storage: LocalStorage,
        recipe: Recipe,
        unit: int,
        first_part: int = 0,
        on_part: Callable[[ShardEntry], None] | None = None,
        later: Callable[[Callable[[], None], int], object] | None = None,
    ) -> None:
        """Starts a unit, or goes on with one.

        Args:
            storage: the dataset's files.
            recipe: how its shards are made.
            unit: number of the unit.
            first_part: number of the first part to be written; those before it are there.
            on_part: called with each part that is finished, when it is on the device.
            later: has the function called that it is given, which brings a part of so many bytes to the device, in whatever
                thread; None for at once, as the last one is.
        """
        self.entries: list[ShardEntry] = []
        """The shards finished so far."""
        self.recipe = recipe
        self._storage = storage
        self._unit = unit
        self._first_part = first_part
        self._on_part = on_part
        self._later = later
        self._num_started = 0
        self._shard_size = recipe.shard_size
        self._packer = RecordPacker(recipe.codec)
        self._file: FileWriter | None = None
        self._shard: ShardFile | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes written or kept so far."""
        return sum(entry.num_bytes for entry in self.entries) + (self._shard.num_bytes if self._shard else 0)

    @property
    def compression_seconds(self) -> float:
        """Time that compression has taken."""
        return self._packer.seconds

    def add(self, sample: EncodedSample, place: object) -> None:
        """Adds a sample to the current part, or to the next where it would not fit.

        Args:
            sample: the sample; belongs to the writer from here on.
            place: where it comes from; its `str()` stands in messages.

        Raises:
            DuplicateKeyError: its key stands in the shard already; nothing was added.
        """
        record, framed = self._packer.pack(sample)
        stored_bytes = len(record) + 4 if record else 0
        shard = self._shard
        if shard is not None and (
            not shard.reserve(sample, stored_bytes, self._shard_size) or shard.num_samples == layout.MAX_SHARD_SAMPLES
        ):
            self._finish_shard(last=False)
            shard = None
        if shard is None:
            shard = self._start_shard()
            # A shard's first sample is in it however long it is.
            shard.reserve(sample, stored_bytes, self._shard_size)
        elif sample.key and (same := self.key_place(sample.key)):
            raise DuplicateKeyError(f"{place}: its key (field {self.recipe.schema.key!r}) is that of {same}")
        shard.add(sample, record, framed)

    def add_batch(self, batch: EncodedBatch) -> None:
        """Adds samples, to the same bytes as one by one.

        Args:
            batch: the samples; they belong to the writer from here on. That their keys are new is seen to before.
        """
        records, framed = self._packer.pack_batch(batch)
        stored_bytes = [len(record) + 4 for record in records]
        start = 0
        while start < len(batch):
            rest = batch[start:]
            shard = self._shard or self._start_shard()
            count = shard.reserve_many(rest, stored_bytes[start:], self._shard_size)
            if not count:
                self._finish_shard(last=False)
                continue
            stop = start + count
            shard.add_many(rest[:count], records[start:stop], framed[start:stop])
            start = stop

    def key_place(self, key: bytes) -> str:
        """Returns which sample of the current part has a key, given by its digest; empty for none."""
        same = None if self._shard is None else self._shard.key_taken(key)
        if self._shard is None or same is None:
            return ""
        return f"an earlier sample, number {same} of {layout.shard_name(*self._shard.identity)}"

    def finish(self) -> list[ShardEntry]:
        """Finishes the last part and returns the entries of all that are on the device."""
        if self._shard is not None:
            self._finish_shard(last=True)
        return self.entries

    def abandon(self) -> None:
        """Removes the part that is not finished; finished ones stay."""
        file, self._file, self._shard = self._file, None, None
        if file is not None:
            file.abandon()

    def _start_shard(self) -> ShardFile:
        part = self._first_part + self._num_started
        self._num_started += 1
        name = layout.shard_name(self.recipe.generation, self._unit, part)
        self._file = FileWriter(self._storage.path(name), self._storage.operations)
        self._shard = ShardFile(self._file, self.recipe, self._unit, part)
        return self._shard

    def _finish_shard(self, last: bool) -> None:
        assert self._shard is not None and self._file is not None
        shard, file = self._shard, self._file
        self._shard = None
        if self._later is None or last:
            self._bring(shard, file, last)
        else:
            self._later(functools.partial(self._bring, shard, file, last), shard.num_bytes)
        self._file = None

    def _bring(self, shard: ShardFile, file: FileWriter, last: bool) -> None:
        """Brings a part to the device."""
        try:
            entry = shard.finish(last)
        except BaseException:
            file.abandon()
            raise
        self.entries.append(entry)
        if self._on_part is not None:
            self._on_part(entry)
