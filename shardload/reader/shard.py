"""One shard: its head checked at the first use, its rows, wide values and records on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.checksum import block_sum, data_sums, identity_sums
from shardload.format.manifest import Manifest
from shardload.format.record import RecordLayout, RecordPlaces, record_layout, record_places, split_record
from shardload.format.rows import row_layout, stream_spans, sum_column, widen_rows
from shardload.format.schema import Field, Schema
from shardload.format.shard import Expected
from shardload.format.table import ShardEntry
from shardload.planner import find_runs, merge_ranges
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.codecs import Codecs
from shardload.reader.files import OpenFiles, read_head
from shardload.reader.rows import RowCache, RowTable
from shardload.reader.sections import ShardSections
from shardload.reader.streams import StreamReader
from shardload.storage import FileReader

Int64 = NDArray[np.int64]

MAX_GAP_BYTES = 4096
"""Records this near each other are read together: the copy is cheaper than another call."""
MAX_READ_BYTES = 1 << 20


class ShardReader:
    """Reads samples of one shard. Safe for several threads."""

    def __init__(
        self,
        shard_id: int,
        first_sample_id: int,
        entry: ShardEntry,
        manifest: Manifest,
        codecs: Codecs,
        files: OpenFiles,
        cache: RowCache,
        whole: bool,
    ) -> None:
        """Opens a shard and checks its head.

        Args:
            shard_id: its number in the table.
            first_sample_id: id of its first sample.
            entry: what the table says of it.
            manifest: the dataset's.
            codecs: the codecs of its generations.
            files: where open files are kept.
            cache: where checked rows are kept.
            whole: keep the row table whole rather than by page.

        Raises:
            StorageError: the file is missing or cannot be read.
            FormatError: the file is damaged, cut, or another shard.
        """
        self.entry = entry
        self._shard_id = shard_id
        self._first_sample_id = first_sample_id
        self.schema: Schema = manifest.schema_of(entry.generation)
        """Schema of its generation: the first fields of the dataset's."""
        self._whole_schema: Schema = manifest.parsed_schema
        self._dictionary = manifest.generation(entry.generation).dictionary
        self._codecs = codecs
        self._files = files
        self._cache = cache
        self._whole = whole
        self._records: RecordLayout = record_layout(self.schema)
        self._streams: dict[str, StreamReader] = {}
        self._checked: dict[int, CheckedBlocks] = {}
        self._identity = (entry.generation, entry.unit, entry.part)
        self.head = read_head(files.get(shard_id, entry), self._expected(), self._identity)
        # Not `self.file`: a cycle would keep files open until the next garbage collection.
        self.sections = ShardSections(entry, self.head, manifest, partial(files.get, shard_id, entry), cache)
        """What the shard holds beside samples."""
        self._table = RowTable(shard_id, entry.name, self.head, row_layout(self.schema), cache, whole)

    def _expected(self) -> Expected:
        entry, streams = self.entry, len(self.schema.stream_fields)
        if any(entry.num_items[streams:]):
            raise FormatError(f"{entry.name}: the shard table gives it items of a field that its generation has not")
        items = entry.num_items[:streams]
        return Expected(self.schema, entry.num_samples, entry.num_bytes, entry.head_digest, items, self._dictionary)

    def rows(self, local_ids: Int64) -> NDArray[Any]:
        """Returns packed rows of the dataset's schema, checked. `local_ids` do not fall."""
        rows = self._table.take(self.file(), local_ids)
        return rows if self.schema is self._whole_schema else widen_rows(rows, self.schema, self._whole_schema)

    def has(self, field: Field) -> bool:
        """Tells whether the shard's generation has a field."""
        return field.name in self.schema

    def will_need(self, local_ids: Int64, fields: Sequence[Field]) -> None:
        """Tells the operating system that some fields of some samples will be read soon. `local_ids` do not fall.

        Of a row table held by page only the pages are announced: to know the records they would have to be read here and
        now, which is what hints are to spare the caller.
        """
        file = self.file()
        fields = [field for field in fields if self.has(field)]
        for field in fields:
            if field.wide:
                section = self.head.section(layout.SECTION_WIDE, self.schema.number(field.name))
                for start in (section.start + local_ids * section.item_bytes).tolist():
                    file.will_need(start, section.item_bytes)
        if not self._whole:
            self._table.will_need(file, local_ids)
            return
        rows = self.rows(local_ids)
        if any(field.in_record for field in fields):
            places = self._places(rows, local_ids)
            for start, stored in zip(places.start.tolist(), places.stored.tolist(), strict=True):
                file.will_need(start, stored)
        for field in fields:
            if field.streamed:
                self._stream(field).will_need(file, *self._spans(field, rows, local_ids))

    def read_wide(self, field: Field, local_ids: Int64, slots: Int64, out: NDArray[np.uint8]) -> None:
        """Copies values of a wide field into their slots; nothing is checked.

        Args:
            field: the field.
            local_ids: not falling.
            slots: where in `out` each value goes.
            out: uint8 of shape (batch, field bytes), C-contiguous; belongs to the caller.
        """
        file, values = self.file(), out.reshape(-1).data
        section = self.head.section(layout.SECTION_WIDE, self.schema.number(field.name))
        size = section.item_bytes
        # Plain integers and one view of the batch: what the loop does for each sample is nearly the read alone.
        places, offsets = (slots * size).tolist(), (section.start + local_ids * size).tolist()
        for start, stop in find_runs(local_ids, slots):
            place = places[start]
            file.read_into(values[place : place + (stop - start) * size], offsets[start])

    def check_wide_value(self, field: Field, value: NDArray[np.uint8], plain_sum: int, local_id: int) -> None:
        """Compares one value of a wide field with its plain CRC32C.

        Raises:
            ChecksumError: they differ; names shard, bytes and sample.
        """
        if block_sum(value, 0) != plain_sum:
            section = self.head.section(layout.SECTION_WIDE, self.schema.number(field.name))
            start = section.start + local_id * section.item_bytes
            detail = f"the value of field {field.name!r} does not have its checksum"
            raise self._damaged(ChecksumError, detail, np.array([local_id]), start, start + section.item_bytes)

    def wide_sums(self, field: Field, rows: NDArray[Any], local_ids: Int64) -> NDArray[np.uint32]:
        """Returns the plain CRC32C that values of a wide field must have: uint32 of shape (samples,)."""
        identities = identity_sums(*self._identity, self.schema.number(field.name), local_ids)
        return data_sums(rows[sum_column(field)], identities, field.num_bytes)

    def read_records(
        self, rows: NDArray[Any], local_ids: Int64, wanted: Sequence[int], verify: Verify
    ) -> list[list[bytes]]:
        """Returns values of fields stored in the record.

        Args:
            rows: the samples' packed rows.
            local_ids: not falling.
            wanted: places of the fields among the record's fields.
            verify: whether checksums are compared; not `auto`.

        Returns:
            For each sample the values of the wanted fields, in the order of `wanted`; empty for fields that the shard's
            generation has not.

        Raises:
            FormatError: a record is damaged; names shard, bytes and sample.
        """
        if all(place >= len(self._records.fields) for place in wanted):
            return [[b""] * len(wanted)] * len(rows)
        places = self._places(rows, local_ids)
        starts, stops = places.start, places.start + places.stored
        due = self._due(layout.NO_FIELD, local_ids, verify)
        sums = identity_sums(*self._identity, layout.NO_FIELD, local_ids)
        file, values = self.file(), []
        for first, last in merge_ranges(starts, stops, max_gap_bytes=MAX_GAP_BYTES, max_read_bytes=MAX_READ_BYTES):
            start = int(starts[first])
            buffer = np.empty(int(stops[last - 1]) - start, dtype=np.uint8)
            file.read_into(buffer.data, start)
            for i in range(first, last):
                record = buffer[int(starts[i]) - start : int(stops[i]) - start]
                try:
                    if due[i] and block_sum(record[4:], int(sums[i])) != int.from_bytes(record[:4], "little"):
                        raise ChecksumError("the record does not have its checksum")
                    values.append(self._fields(record, int(places.raw[i]), bool(places.framed[i]), wanted))
                except FormatError as error:
                    if error.shard is not None:
                        # Not the record is damaged but the dictionary that it was packed with.
                        raise
                    raise self._damaged(
                        type(error), error.message, local_ids[i:], int(starts[i]), int(stops[i])
                    ) from None
        self.note_checked(layout.NO_FIELD, local_ids[due])
        return values

    def field_lengths(self, rows: NDArray[Any], local_ids: Int64, place: int) -> Int64:
        """Returns the stored length of a record field's values, in bytes decompressed: int64 of shape (samples,)."""
        if place >= len(self._records.fields):
            return np.zeros(len(rows), dtype=np.int64)
        header_bytes = self._records.header.size
        places = self._places(rows, local_ids)
        if len(self._records.fields) == 1:
            return places.raw - header_bytes
        headers = np.empty((len(rows), header_bytes), dtype=np.uint8)
        file, stops = self.file(), places.start + header_bytes
        for first, last in merge_ranges(
            places.start, stops, max_gap_bytes=MAX_GAP_BYTES, max_read_bytes=MAX_READ_BYTES
        ):
            start = int(places.start[first])
            buffer = np.empty(int(stops[last - 1]) - start, dtype=np.uint8)
            file.read_into(buffer.data, start)
            offsets = places.start[first:last] - start
            headers[first:last] = buffer[offsets[:, None] + np.arange(header_bytes)]
        lengths = headers.view("<u4")[:, 1:].astype(np.int64)
        # The record's sum covers more than was read here; the row's total, under the page digest, stands in for it.
        wrong = lengths.sum(axis=1) + header_bytes != places.raw
        if wrong.any():
            bad = int(np.argmax(wrong))
            detail = "a record's field lengths do not add up"
            raise self._damaged(ChecksumError, detail, local_ids[bad:], int(places.start[bad]), int(stops[bad]))
        return np.ascontiguousarray(lengths[:, place])

    def check_spans(self, field: Field, rows: NDArray[Any], local_ids: Int64) -> None:
        """Refuses items of a stream field that cannot be where samples' rows say. `local_ids` do not fall."""
        if self.has(field):
            self._spans(field, rows, local_ids)

    def read_stream(
        self, field: Field, rows: NDArray[Any], local_ids: Int64, places: Int64, out: NDArray[np.uint8], verify: Verify
    ) -> None:
        """Copies samples' items of a stream field into their places; checksums are compared if due.

        Args:
            field: the field.
            rows: the samples' packed rows.
            local_ids: not falling.
            places: where in `out` each sample's bytes go.
            out: uint8 of shape (bytes,), C-contiguous; belongs to the caller.
            verify: whether checksums are compared; not `auto`.

        Raises:
            FormatError: a block is damaged, or rows and stream do not agree; names shard, bytes and a sample.
        """
        starts, stops = self._spans(field, rows, local_ids)
        try:
            self._stream(field).read(self.file(), starts, stops, places, out, verify)
        except ChecksumError as error:
            section = self.head.section(layout.SECTION_STREAM, self.schema.number(field.name))
            hit = stops * field.num_bytes > (error.start or 0) - section.start
            error.sample_id = self._first_sample_id + int(local_ids[np.argmax(hit)])
            error.message += f" (sample {error.sample_id})"
            raise

    def _stream(self, field: Field) -> StreamReader:
        stream = self._streams.get(field.name)
        if stream is None:
            number = self.schema.number(field.name)
            kinds = layout.SECTION_STREAM, layout.SECTION_SUMS
            data, sums = (self.head.section(kind, number) for kind in kinds)
            stream = StreamReader(field, data, sums, self._identity, self._shard_id, self._cache)
            self._streams[field.name] = stream
        return stream

    def _spans(self, field: Field, rows: NDArray[Any], local_ids: Int64) -> tuple[Int64, Int64]:
        """Returns the first and the last + 1 of samples' items, checked against the stream and each other."""
        try:
            return stream_spans(rows, field, self._stream(field).num_items, local_ids)
        except FormatError as error:
            raise self._damaged(FormatError, error.message, local_ids[error.sample_id or 0 :]) from None

    def check_rows(self, start: int, stop: int) -> None:
        """Checks that what the packed rows of a half-open range of samples say can be.

        Raises:
            FormatError: records or items lie outside their section, or overlap; names shard and sample.
        """
        # One before, so that pieces of the table are checked against each other.
        local_ids = np.arange(max(0, start - 1), stop)
        rows = self.rows(local_ids)
        if self._records.fields:
            self._places(rows, local_ids)
        for field in self.schema.stream_fields:
            starts, stops = self._spans(field, rows, local_ids)
            last = self._stream(field).num_items if stop == self.entry.num_samples else stops[-1]
            if (starts[1:] != stops[:-1]).any() or (start == 0 and starts[0] != 0) or stops[-1] != last:
                detail = f"the items of field {field.name!r} do not follow each other"
                raise self._damaged(FormatError, detail, local_ids)

    def due(self, field: Field, local_ids: Int64, verify: Verify) -> NDArray[np.bool_]:
        """Returns which values of a wide field are to be checked now."""
        return self._due(self.schema.number(field.name), local_ids, verify)

    def note_checked(self, number: int, local_ids: Int64) -> None:
        """Notes blocks of a field (or `layout.NO_FIELD` for records) as checked in this process."""
        if len(local_ids):
            self._checked.setdefault(number, CheckedBlocks(self.entry.num_samples)).add(local_ids)

    def file(self) -> FileReader:
        """Returns the open file."""
        return self._files.get(self._shard_id, self.entry)

    def _places(self, rows: NDArray[Any], local_ids: Int64) -> RecordPlaces:
        """Returns where records lie, checked against the heap and each other. `local_ids` do not fall.

        The writer puts records one after another. Were they let overlap, a small shard with right checksums could ask for
        any amount of memory.

        Raises:
            FormatError: a record is outside the heap, or starts inside one before it; names shard, bytes and sample.
        """
        heap = self.head.section(layout.SECTION_HEAP)
        try:
            places = record_places(rows, heap.start, heap.stop, self._records.header.size)
        except FormatError as error:
            bad = error.sample_id or 0
            raise self._damaged(FormatError, error.message, local_ids[bad:], error.start, error.stop) from None
        starts, stops = places.start, places.start + places.stored
        # A sample asked for twice stands twice, with one and the same record.
        inside = (starts[1:] < stops[:-1]) & (local_ids[1:] != local_ids[:-1])
        if inside.any():
            bad = int(np.argmax(inside)) + 1
            detail = f"the record starts before the end of the one before it, at {stops[bad - 1]}"
            raise self._damaged(FormatError, detail, local_ids[bad:], int(starts[bad]), int(stops[bad]))
        return places

    def _due(self, number: int, local_ids: Int64, verify: Verify) -> NDArray[np.bool_]:
        if verify != "once":
            return np.full(len(local_ids), verify == "always")
        checked = self._checked.get(number)
        return np.ones(len(local_ids), dtype=np.bool_) if checked is None else checked.missing(local_ids)

    def _fields(self, record: NDArray[np.uint8], raw_bytes: int, framed: bool, wanted: Sequence[int]) -> list[bytes]:
        records = self._records
        lengths, plain, packed, packed_bytes = split_record(record.data, records, raw_bytes, framed)
        if framed and any(place in records.packed for place in wanted):
            codec = self._codecs.of(self.entry.generation, self.sections.dictionary)
            if codec is None:
                raise FormatError("the record is a zstd frame, but its generation's codec is none")
            packed = memoryview(codec.decompress(packed, packed_bytes))
        values: dict[int, bytes] = {}
        for places, content in ((records.plain, plain), (records.packed, packed)):
            start = 0
            for place in places:
                if place in wanted:
                    values[place] = bytes(content[start : start + lengths[place]])
                start += lengths[place]
        return [values.get(place, b"") for place in wanted]

    def _damaged(
        self, kind: type[FormatError], detail: str, local_ids: Int64, start: int | None = None, stop: int | None = None
    ) -> FormatError:
        """Returns an error that names the shard, the bytes and the first of the samples."""
        sample_id = self._first_sample_id + int(local_ids[0])
        where = "" if start is None else f" at bytes {start} to {stop}"
        return kind(
            f"{self.file().dataset}: {self.entry.name} is damaged{where}: {detail} (sample {sample_id})",
            dataset=self.file().dataset,
            shard=self.entry.name,
            start=start,
            stop=stop,
            sample_id=sample_id,
        )
