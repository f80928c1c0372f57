"""One shard: its head checked at the first use, its rows, wide values and records on request."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.codecs import Codec
from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.checksum import block_sum, data_sums, identity_sums
from shardload.format.record import RecordLayout, RecordPlaces, record_layout, record_places, split_record
from shardload.format.rows import row_layout, sum_column
from shardload.format.schema import Field, Schema
from shardload.format.shard import TAIL_READ_BYTES, ShardHead, check_header, decode_head, tail_bytes
from shardload.format.table import ShardEntry
from shardload.planner import find_runs, merge_ranges
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.rows import RowCache, RowTable
from shardload.storage import FileReader, LocalStorage

Int64 = NDArray[np.int64]

MAX_GAP_BYTES = 4096
"""Records this near each other are read together: the copy is cheaper than another call."""
MAX_READ_BYTES = 1 << 20


class OpenFiles:
    """The shard files that are open, the least recently used dropped past a number. Safe for several threads."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._files: OrderedDict[int, FileReader] = OrderedDict()
        self._lock = threading.Lock()
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The descriptors belong to the training script as well.
        self._max_files = max(4, min(1024, soft_limit // 4))

    def get(self, shard_id: int, entry: ShardEntry) -> FileReader:
        """Returns a shard's open file. It stays open as long as the caller holds it."""
        with self._lock:
            file = self._files.get(shard_id)
            if file is None:
                file = self._files[shard_id] = self._storage.open(entry.name, entry.num_bytes)
                if len(self._files) > self._max_files:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard_id)
            return file


class ShardReader:
    """Reads samples of one shard. Safe for several threads."""

    def __init__(
        self,
        shard_id: int,
        first_sample_id: int,
        entry: ShardEntry,
        schema: Schema,
        codec: Codec | None,
        files: OpenFiles,
        cache: RowCache,
        whole: bool,
    ) -> None:
        """Opens a shard and checks its head.

        Args:
            shard_id: its number in the table.
            first_sample_id: id of its first sample.
            entry: what the table says of it.
            schema: schema of its generation.
            codec: codec of the compressed fields.
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
        self._schema = schema
        self._codec = codec
        self._files = files
        self._whole = whole
        self._records: RecordLayout = record_layout(schema)
        self._checked: dict[int, CheckedBlocks] = {}
        self._identity = (entry.generation, entry.unit, entry.part)
        self.head = self._read_head(files.get(shard_id, entry))
        self._table = RowTable(shard_id, entry.name, self.head, row_layout(schema), cache, whole)

    def _read_head(self, file: FileReader) -> ShardHead:
        """Returns what header, directory and footer say, checked against the shard table."""
        entry, num_bytes, place = self.entry, self.entry.num_bytes, f"{file.dataset}: {file.name}"
        try:
            end = file.read(max(0, num_bytes - TAIL_READ_BYTES), num_bytes)
            size = tail_bytes(end, place)
            tail = end[-size:] if size <= len(end) else file.read(max(0, num_bytes - size), num_bytes)
            head = decode_head(tail, entry.head_digest, self._schema, entry.num_samples, num_bytes, place)
            check_header(file.read(0, layout.HEADER_BYTES), head, self._schema, self._identity, place)
        except FormatError as error:
            error.dataset, error.shard = file.dataset, file.name
            raise
        return head

    def rows(self, local_ids: Int64) -> NDArray[Any]:
        """Returns packed rows, checked: structured array of shape (samples,). `local_ids` do not fall."""
        return self._table.take(self.file(), local_ids)

    def will_need(self, local_ids: Int64, fields: Sequence[Field]) -> None:
        """Tells the operating system that some fields of some samples will be read soon. `local_ids` do not fall.

        Of a row table held by page only the pages are announced: to know the records they would have to be read here and
        now, which is what hints are to spare the caller.
        """
        file = self.file()
        for field in fields:
            if field.wide:
                section = self.head.section(layout.SECTION_WIDE, self._schema.number(field.name))
                for start in (section.start + local_ids * section.item_bytes).tolist():
                    file.will_need(start, section.item_bytes)
        if not self._whole:
            self._table.will_need(file, local_ids)
        elif any(field.in_record for field in fields):
            places = self._places(self.rows(local_ids), local_ids)
            for start, stored in zip(places.start.tolist(), places.stored.tolist(), strict=True):
                file.will_need(start, stored)

    def read_wide(self, field: Field, local_ids: Int64, slots: Int64, out: NDArray[np.uint8]) -> None:
        """Copies values of a wide field into their slots; nothing is checked.

        Args:
            field: the field.
            local_ids: not falling.
            slots: where in `out` each value goes.
            out: uint8 of shape (batch, field bytes), C-contiguous; belongs to the caller.
        """
        file, values = self.file(), out.reshape(-1).data
        section = self.head.section(layout.SECTION_WIDE, self._schema.number(field.name))
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
            section = self.head.section(layout.SECTION_WIDE, self._schema.number(field.name))
            start = section.start + local_id * section.item_bytes
            detail = f"the value of field {field.name!r} does not have its checksum"
            raise self._damaged(ChecksumError, detail, np.array([local_id]), start, start + section.item_bytes)

    def wide_sums(self, field: Field, rows: NDArray[Any], local_ids: Int64) -> NDArray[np.uint32]:
        """Returns the plain CRC32C that values of a wide field must have: uint32 of shape (samples,)."""
        identities = identity_sums(*self._identity, self._schema.number(field.name), local_ids)
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
            For each sample the values of the wanted fields, in the order of `wanted`.

        Raises:
            FormatError: a record is damaged; names shard, bytes and sample.
        """
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
                    raise self._damaged(
                        type(error), error.message, local_ids[i:], int(starts[i]), int(stops[i])
                    ) from None
        self.note_checked(layout.NO_FIELD, local_ids[due])
        return values

    def field_lengths(self, rows: NDArray[Any], local_ids: Int64, place: int) -> Int64:
        """Returns the stored length of a record field's values, in bytes decompressed: int64 of shape (samples,)."""
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

    def due(self, field: Field, local_ids: Int64, verify: Verify) -> NDArray[np.bool_]:
        """Returns which values of a wide field are to be checked now."""
        return self._due(self._schema.number(field.name), local_ids, verify)

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
            if self._codec is None:
                raise FormatError("the record is a zstd frame, but the dataset's codec is none")
            packed = memoryview(self._codec.decompress(packed, packed_bytes))
        values: dict[int, bytes] = {}
        for places, content in ((records.plain, plain), (records.packed, packed)):
            start = 0
            for place in places:
                if place in wanted:
                    values[place] = bytes(content[start : start + lengths[place]])
                start += lengths[place]
        return [values[place] for place in wanted]

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
