"""What one process reads a dataset through: open files, checked rows, and what has been verified."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.checksum import rows_match
from shardload.format.keys import find_keys
from shardload.format.ragged import Ragged, join_ragged
from shardload.format.rows import RAW, STORED, count_column, row_layout, valid_mask
from shardload.format.schema import Field
from shardload.format.statistics import FieldStatistics
from shardload.planner import ShardReads, plan_by_shard
from shardload.reader.batch import Column, SampleBatch, typed_values
from shardload.reader.checks import Verify, resolve_verify
from shardload.reader.codecs import Codecs
from shardload.reader.files import OpenFiles
from shardload.reader.rows import RowCache
from shardload.reader.shard import ShardReader
from shardload.reader.snapshot import Snapshot
from shardload.storage import LocalStorage

Int64 = NDArray[np.int64]
Buffers = Mapping[str, NDArray[Any]]

INDEX_BUDGET_BYTES = 256 << 20
"""Row tables are held whole while all of them together fit this; otherwise read by page within it."""


class Access:
    """The open side of a dataset in one process. Safe for several threads; never shared with a child."""

    def __init__(self, location: str, snapshot: Snapshot, verify: Verify) -> None:
        self.process_id = os.getpid()
        self.location = location
        self._table = snapshot.table
        self._manifest = snapshot.manifest
        self._schema = snapshot.manifest.parsed_schema
        self._codecs = Codecs(snapshot.manifest)
        self._verify = resolve_verify(verify, snapshot.manifest.num_bytes)
        self._files = OpenFiles(LocalStorage(location))
        self._cache = RowCache(INDEX_BUDGET_BYTES)
        row_bytes = row_layout(self._schema).dtype.itemsize
        self._whole = snapshot.manifest.num_samples * row_bytes <= INDEX_BUDGET_BYTES
        self._shards: dict[int, ShardReader] = {}
        self._lock = threading.Lock()

    def read_batch(self, sample_ids: Int64, buffers: Buffers, fields: Sequence[Field]) -> SampleBatch:
        """Returns the given fields of a batch; fixed fields go into their buffer where there is one."""
        size = len(sample_ids)
        plan = list(plan_by_shard(sample_ids, self._table.first_sample_ids))
        rows = np.empty(size, dtype=row_layout(self._schema).dtype)
        for reads in plan:
            rows[reads.slots] = self.shard(reads.shard_id).rows(reads.local_ids)
        recorded = [field for field in fields if field.in_record]
        records = self._read_records(plan, rows, recorded)
        columns = {}
        for field in fields:
            valid = valid_mask(rows, self._schema, field) if field.nullable else None
            if field.in_record:
                place = recorded.index(field)
                stored = [values[place] for values in records]
                columns[field.name] = Column(field, self._joined(field, stored, sample_ids), valid)
                continue
            if field.streamed:
                columns[field.name] = Column(field, self._read_stream(plan, rows, field), valid)
                continue
            out = buffers.get(field.name)
            if out is None:
                out = np.empty((size, *field.shape), dtype=field.dtype)
            if field.wide:
                self._read_wide(plan, rows, field, out)
            else:
                out[...] = rows[field.name]
            columns[field.name] = Column(field, out, valid)
        return SampleBatch(sample_ids, columns, self.location)

    def will_need(self, sample_ids: Int64, fields: Sequence[Field]) -> None:
        """Tells the operating system which bytes a coming batch will read."""
        for reads in plan_by_shard(sample_ids, self._table.first_sample_ids):
            self.shard(reads.shard_id).will_need(reads.local_ids, fields)

    def column(self, field: Field) -> NDArray[Any]:
        """Returns a fixed field of all samples."""
        size = self._num_samples()
        stored = np.empty((size, *field.shape), dtype=field.dtype)
        valid = np.ones(size, dtype=np.bool_)
        for start in range(0, size, 1 << 14):
            ids = np.arange(start, min(start + (1 << 14), size))
            column = self.read_batch(ids, {field.name: stored[start : ids[-1] + 1]}, [field]).columns[field.name]
            if column.valid is not None:
                valid[start : ids[-1] + 1] = column.valid
        values = typed_values(field, stored)
        if not field.nullable:
            return values
        mask = np.broadcast_to(~valid.reshape(-1, *[1] * len(field.shape)), values.shape)
        return np.ma.MaskedArray(values, mask=mask)

    def lengths(self, field: Field) -> Int64:
        """Returns the length of a value in all samples: items of ragged fields, bytes of others in the record."""
        lengths = np.empty(self._num_samples(), dtype=np.int64)
        place = self._schema.record_fields.index(field) if field.in_record else None
        for reads, rows in self._all_rows():
            start = int(self._table.first_sample_ids[reads.shard_id])
            if place is None:
                values = rows[count_column(field)]
            else:
                values = self.shard(reads.shard_id).field_lengths(rows, reads.local_ids, place)
                values = values // field.num_bytes if field.ragged else values
            lengths[start + reads.local_ids[0] : start + reads.local_ids[-1] + 1] = values
        return lengths

    def record_sizes(self) -> tuple[Int64, Int64]:
        """Returns the bytes of each sample, as stored and decompressed."""
        fixed = row_layout(self._schema).dtype.itemsize + sum(field.num_bytes for field in self._schema.wide_fields)
        sizes = np.full((2, self._num_samples()), fixed, dtype=np.int64)
        streams = self._schema.stream_fields
        if self._schema.record_fields or streams:
            for reads, rows in self._all_rows():
                start = int(self._table.first_sample_ids[reads.shard_id]) + int(reads.local_ids[0])
                mine = sizes[:, start : start + len(rows)]
                if self._schema.record_fields:
                    mine += np.stack([rows[STORED], rows[RAW]])
                for field in streams:
                    mine += rows[count_column(field)].astype(np.int64) * field.num_bytes
        return sizes[0], sizes[1]

    def find(self, digests: Sequence[bytes]) -> Int64:
        """Returns the id of the sample of each key's digest, -1 where there is none: int64 of shape (digests,)."""
        ids = np.full(len(digests), -1, dtype=np.int64)
        for shard_id in range(len(self._table)):
            missing = np.flatnonzero(ids < 0)
            if not len(missing):
                break
            found = find_keys(self.shard(shard_id).sections.keys(), [digests[slot] for slot in missing.tolist()])
            ids[missing[found >= 0]] = self._table.first_sample_ids[shard_id] + found[found >= 0]
        return ids

    def statistics(self) -> list[FieldStatistics]:
        """Returns what the fields of the schema hold, over all shards."""
        total = [FieldStatistics() for _ in self._schema.fields]
        for shard_id in range(len(self._table)):
            total = [a + b for a, b in zip(total, self.shard(shard_id).sections.statistics(), strict=True)]
        return total

    def _num_samples(self) -> int:
        """Returns the number of samples once all shards have borne out the table: memory may then be taken for them."""
        for shard_id in range(len(self._table)):
            self.shard(shard_id)
        return int(self._table.first_sample_ids[-1])

    def _all_rows(self) -> Iterator[tuple[ShardReads, NDArray[Any]]]:
        """Yields the packed rows of all samples in their order, some thousands at a time."""
        for shard_id in range(len(self._table)):
            shard = self.shard(shard_id)
            for start in range(0, shard.entry.num_samples, 1 << 14):
                local_ids = np.arange(start, min(start + (1 << 14), shard.entry.num_samples))
                yield ShardReads(shard_id, local_ids, local_ids), shard.rows(local_ids)

    def _read_records(self, plan: list[ShardReads], rows: NDArray[Any], fields: Sequence[Field]) -> list[list[bytes]]:
        """Returns each sample's values of fields in the record, in the order of the batch."""
        records: list[list[bytes]] = [[]] * len(rows)
        if not fields:
            return records
        wanted = [self._schema.record_fields.index(field) for field in fields]
        for reads in plan:
            shard = self.shard(reads.shard_id)
            values = shard.read_records(rows[reads.slots], reads.local_ids, wanted, self._verify)
            for slot, value in zip(reads.slots.tolist(), values, strict=True):
                records[slot] = value
        return records

    def _joined(self, field: Field, values: list[bytes], sample_ids: Int64) -> list[bytes] | Ragged:
        if not field.ragged:
            return values
        try:
            return join_ragged(field, values)
        except FormatError as error:
            sample_id = int(sample_ids[error.sample_id or 0])
            message = f"{self.location}: {error.message} (sample {sample_id})"
            raise FormatError(message, dataset=self.location, sample_id=sample_id) from None

    def _read_stream(self, plan: list[ShardReads], rows: NDArray[Any], field: Field) -> Ragged:
        """Returns a batch's items of a stream field."""
        counts = rows[count_column(field)].astype(np.int64)
        # The spans are checked before memory is taken for what they add up to.
        for reads in plan:
            self.shard(reads.shard_id).check_spans(field, rows[reads.slots], reads.local_ids)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        values = np.empty((int(offsets[-1]), *field.shape), dtype=field.dtype)
        out, places = values.reshape(-1).view(np.uint8), offsets[:-1] * field.num_bytes
        for reads in plan:
            shard = self.shard(reads.shard_id)
            if shard.has(field):
                shard.read_stream(field, rows[reads.slots], reads.local_ids, places[reads.slots], out, self._verify)
        return Ragged(values, offsets)

    def _read_wide(self, plan: list[ShardReads], rows: NDArray[Any], field: Field, out: NDArray[Any]) -> None:
        """Fills a batch's values of a wide field and checks those that are due, all in one call."""
        # The width is told, not left to numpy: of a batch of no samples it cannot be found.
        data = out.reshape(len(out), math.prod(field.shape)).view(np.uint8)
        sums = np.zeros(len(out), dtype=np.uint32)
        due = np.zeros(len(out), dtype=np.bool_)
        for reads in plan:
            shard = self.shard(reads.shard_id)
            if not shard.has(field):
                data[reads.slots] = 0
                continue
            shard.read_wide(field, reads.local_ids, reads.slots, data)
            due[reads.slots] = wanted = shard.due(field, reads.local_ids, self._verify)
            if wanted.any():
                sums[reads.slots] = shard.wide_sums(field, rows[reads.slots], reads.local_ids)
        if not due.any():
            return
        if not due.all() or not rows_match(data, sums):
            self._check_one_by_one(plan, field, data, sums, due)
        number = self._schema.number(field.name)
        for reads in plan:
            if due[reads.slots].any():
                self.shard(reads.shard_id).note_checked(number, reads.local_ids[due[reads.slots]])

    def _check_one_by_one(
        self,
        plan: list[ShardReads],
        field: Field,
        data: NDArray[np.uint8],
        sums: NDArray[np.uint32],
        due: NDArray[np.bool_],
    ) -> None:
        for reads in plan:
            shard = self.shard(reads.shard_id)
            for slot, local_id in zip(reads.slots.tolist(), reads.local_ids.tolist(), strict=True):
                if due[slot]:
                    shard.check_wide_value(field, data[slot], int(sums[slot]), local_id)

    def shard(self, shard_id: int) -> ShardReader:
        """Returns the reader of a shard, opened and checked at the first call."""
        shard = self._shards.get(shard_id)
        if shard is None:
            with self._lock:
                shard = self._shards.get(shard_id)
                if shard is None:
                    first = int(self._table.first_sample_ids[shard_id])
                    entry = self._table[shard_id]
                    shard = ShardReader(
                        shard_id, first, entry, self._manifest, self._codecs, self._files, self._cache, self._whole
                    )
                    self._shards[shard_id] = shard
        return shard
