"""What one process reads a dataset through: open files, checked rows, and what has been verified."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.record import RecordLayout
from shardload.format.rows import count_column, valid_mask
from shardload.format.schema import Field
from shardload.format.statistics import FieldStatistics
from shardload.order.next_use import Uses
from shardload.planner import ItemRanges
from shardload.reader.batch import Column, SampleBatch
from shardload.reader.cached_engine import CachedEngine
from shardload.reader.checks import CheckedBlocks, Verify, fits_in_memory, resolve_verify
from shardload.reader.engine_choice import EngineName, choose_engine
from shardload.reader.engines import NO_RANGES, Ranges, joined
from shardload.reader.external import ExternalFiles, Outside, spare_bytes
from shardload.reader.far_files import FarFiles
from shardload.reader.files import OpenFiles
from shardload.reader.items import Segments, sample_of, segments_of
from shardload.reader.later import announcer
from shardload.reader.located import Located
from shardload.reader.open_shards import OpenShards, codec_of
from shardload.reader.places import SamplePlace, sample_places
from shardload.reader.range_engine import RangeEngine
from shardload.reader.records import RecordReader
from shardload.reader.reread import rereads
from shardload.reader.row_sizes import fixed_bytes, sizes_of
from shardload.reader.shard import ShardReader
from shardload.reader.snapshot import Snapshot
from shardload.reader.streams import StreamReader
from shardload.reader.strings import joined_values
from shardload.reader.wide import WideReader, read_ahead
from shardload.storage import LocalStorage, Storage
from shardload.telemetry import Transfers

Int64 = NDArray[np.int64]
Buffers = Mapping[str, NDArray[Any]]

INDEX_BUDGET_BYTES = 256 << 20
"""Row tables are held whole while all of them together fit this; otherwise read by page within it."""

_CHUNK_SAMPLES = 1 << 14


class Access:
    """The open side of a dataset in one process. Safe for several threads; never shared with a child."""

    def __init__(self, storage: Storage, snapshot: Snapshot, verify: Verify, engine: EngineName = "auto") -> None:
        self.process_id = os.getpid()
        self.location = storage.root
        self._table = table = snapshot.table
        self._manifest = manifest = snapshot.manifest
        self._schema = schema = manifest.parsed_schema
        near, num_samples = isinstance(storage, LocalStorage), manifest.num_samples
        # What comes from far away stays nowhere, and each arrival is a new one.
        num_bytes = manifest.num_bytes + manifest.external_bytes
        self._fits = near and fits_in_memory(num_bytes)
        files = OpenFiles(storage)
        self.engine = choose_engine(engine, storage, files, table, self._fits, spare_bytes(manifest))
        """What reads the bytes of samples."""
        self._far = isinstance(self.engine, RangeEngine)
        shard_files = FarFiles(files, self.engine) if isinstance(self.engine, RangeEngine) else files
        external = ExternalFiles(len(table), self.engine)
        self._shards = shards = OpenShards(snapshot, shard_files, external, INDEX_BUDGET_BYTES)
        self._first = table.first_sample_ids
        self._hinted = CheckedBlocks(num_samples)
        self._facts = facts = shards.facts
        self._verify = verify = resolve_verify(verify, num_bytes if near else None)
        self._num_rereads = 0
        # Shards have to be opened for what is announced, which takes time where they are a request away.
        self.announcements = announcer(self, self._far)
        """What has it announced which samples will be read."""
        checked, shared = functools.partial(CheckedBlocks, num_samples), (facts, self.engine)
        self._records = RecordReader(schema, *shared, checked(), verify, codec_of(shards.readers), external)
        wide = ((field, schema.number(field.name)) for field in schema.wide_fields)
        self._wide = {field.name: WideReader(field, number, *shared, checked(), verify) for field, number in wide}
        sums_of = shards.sums if self._far else None
        self._streams = {
            field.name: StreamReader(field, schema.number(field.name), *shared, CheckedBlocks(), verify, sums_of)
            for field in schema.stream_fields
        }
        self._read_ahead = functools.partial(read_ahead, self.engine, self._first, shards.store is not None)
        self._hinted_blocks = {field.name: CheckedBlocks() for field in schema.stream_fields}

    def shard(self, shard_id: int) -> ShardReader:
        """Returns the reader of a shard, opened and checked at the first call."""
        return self._shards.get(shard_id)

    def discard(self, error: FormatError) -> bool:
        """Drops copies of the bytes that an error names; returns whether another read may give others."""
        again = error.shard is not None and self._shards.discard(error.shard, error.start, error.stop)
        self._num_rereads += again
        return again

    def transfers(self) -> Transfers:
        """Returns what was fetched from a store so far."""
        if not isinstance(self.engine, RangeEngine):
            return Transfers()
        return self.engine.transfers() + Transfers(num_rereads=self._num_rereads)

    def read_batch(self, sample_ids: Int64, buffers: Buffers, fields: Sequence[Field]) -> SampleBatch:
        """Returns the given fields of a batch; fixed fields go into their buffer where there is one."""
        return self.read_batches([sample_ids], [buffers], fields)[0]

    @rereads
    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns the given fields of several batches by reads planned over all of them.

        Args:
            batches: the sample ids of each batch.
            buffers: for each batch the buffers of fixed fields.
            fields: the fields.
        """
        sample_ids = np.concatenate(batches)
        self.announcements.let_pass(sample_ids)
        samples = self._locate(sample_ids)
        if not self._read_at_once(fields):
            self._hint(samples, fields, urgent=True)
        sizes = [len(ids) for ids in batches]
        parts = [slice(first, last) for first, last in pairwise(np.cumsum([0, *sizes]).tolist())]
        columns: list[dict[str, Column]] = [{} for _ in batches]
        recorded = [field for field in fields if field.in_record]
        places = [self._schema.record_fields.index(field) for field in recorded]
        records = dict(zip(places, self._records.read(samples, places), strict=True)) if recorded else {}
        for field in fields:
            values: list[Any]
            if field.in_record:
                column = records[self._schema.record_fields.index(field)]
                values = [joined_values(field, column[part], samples.sample_ids[part], self.location) for part in parts]
            elif field.streamed:
                values = list(self._streams[field.name].read(samples, sizes))
            else:
                values = [
                    lent[field.name] if field.name in lent else np.empty((size, *field.shape), dtype=field.dtype)
                    for lent, size in zip(buffers, sizes, strict=True)
                ]
                if field.wide:
                    self._wide[field.name].read(samples, values)
                else:
                    for out, part in zip(values, parts, strict=True):
                        out[...] = samples.rows[field.name][part]
            valid = valid_mask(samples.rows, self._schema, field) if field.nullable else None
            for batch, value, part in zip(columns, values, parts, strict=True):
                batch[field.name] = Column(field, value, None if valid is None else valid[part])
        return [SampleBatch(ids, batch, self.location) for ids, batch in zip(batches, columns, strict=True)]

    def will_need(
        self, sample_ids: Int64, fields: Sequence[Field], rows_announced: bool, uses: Uses | None = None
    ) -> None:
        """Tells the operating system which bytes coming batches will read.

        Args:
            sample_ids: the samples.
            fields: the fields that will be read.
            rows_announced: whether `will_need_rows` was told of them a while ago. Of row tables that are read by page others
                have only their pages announced, and values in wide columns: to know the records, the rows would have to be read
                here and now, which is what hints are to spare the caller.
            uses: when each of them is read, for a cache.
        """
        if self._read_ahead(sample_ids, fields):
            if not rows_announced:
                self.will_need_rows(sample_ids)
            return
        if self._fits:
            sample_ids = sample_ids[self._hinted.missing(sample_ids)]
            if not len(sample_ids):
                return
        if self._shards.store is not None or rows_announced:
            self._hint(self._locate(sample_ids), fields, uses)
            return
        self.will_need_rows(sample_ids)
        samples = self._located(sample_ids, self._shard_ids(sample_ids), np.empty(len(sample_ids)))
        self._announce(samples, [field for field in fields if field.wide], uses)

    def will_need_rows(self, sample_ids: Int64) -> None:
        """Tells the operating system which pages of row tables will be read; none where the tables are held whole."""
        found = self._shards.row_ranges(sample_ids)
        if found is not None:
            with contextlib.suppress(OSError):
                self.engine.will_need(found)

    @rereads
    def read_items(
        self, field: Field, ranges: ItemRanges, target: NDArray[np.uint8], name: Callable[[int], str], due: bool = True
    ) -> None:
        """Copies ranges of a stream field's items, one after another, into an array: only the blocks that they lie in are read.

        Args:
            field: the field.
            ranges: at least one.
            target: uint8 of shape (bytes,), C-contiguous and as long as all ranges.
            name: gives what a slot of the ranges is called in messages.
            due: False where `will_need_items` has told that nothing is to be checked.
        """
        self._shards.open(ranges.shard_ids)

        def owner(span: int, item: int) -> tuple[Located, str]:
            sample_id = sample_of(int(ranges.shard_ids[span]), item, lambda alone: self.segments(field, alone))
            return self._locate(np.array([sample_id])), f" in {name(int(ranges.slots[span]))}"

        self._streams[field.name].read_ranges(ranges, target, owner, due)

    def will_need_items(self, field: Field, ranges: ItemRanges) -> bool:
        """Tells the operating system which items will be read; a file system may refuse that, which is no reason not to read.

        Returns:
            False if all of them have been read and checked before and need be neither fetched nor checked.
        """
        if not len(ranges):
            return False
        self._shards.open(ranges.shard_ids)
        hinted = self._hinted_blocks[field.name] if self._fits else None
        found = self._streams[field.name].hints(ranges, hinted)
        if found is not None and len(found):
            with contextlib.suppress(OSError):
                self.engine.will_need(joined([found, *self._sum_ranges(field, ranges.shard_ids)]))
        return found is not None

    def item_places(self, field: Field, sample_ids: Int64) -> tuple[Int64, Int64]:
        """Returns the shard of each sample, and its first item in the shard's stream of a field.

        Raises:
            FormatError: items cannot lie where a packed row says; names shard and sample.
        """
        ids, slots = np.unique(sample_ids, return_inverse=True)
        samples = self._locate(ids)
        return samples.shard_ids[slots], self._streams[field.name].first_items(samples)[slots]

    @rereads
    def segments(self, field: Field, ranges: ItemRanges) -> Segments:
        """Returns the parts of samples that ranges of a stream field's items consist of."""
        number = self._schema.stream_fields.index(field)
        num_items = self._table.entries["num_items"][ranges.shard_ids, number].astype(np.int64)
        return segments_of(ranges, field, num_items, self._first, self._locate)

    @rereads
    def check_rows(self, shard_id: int, start: int, stop: int) -> None:
        """Checks that what the packed rows of a half-open range of a shard's samples say can be.

        Raises:
            FormatError: records or items lie outside their section, or overlap; names shard and sample.
        """
        # One before, so that pieces of the table are checked against each other.
        local_ids = np.arange(max(0, start - 1), stop)
        samples = self._locate(local_ids + self._first[shard_id])
        self._records.ranges(samples)
        self._records.external_ranges(samples)
        self.shard(shard_id).check_streams(local_ids, samples.rows)

    @rereads
    def lengths(self, field: Field, ids: Int64) -> Int64:
        """Returns the length of a value in samples: items of ragged fields, bytes of others in the record."""
        lengths = np.empty(len(ids), dtype=np.int64)
        # In the order of their ids: as records lie, which they are checked by.
        order = np.argsort(ids, kind="stable")
        for start in range(0, len(ids), _CHUNK_SAMPLES):
            part = order[start : start + _CHUNK_SAMPLES]
            # Pages of row tables that are not held come from the device all at once.
            self.will_need_rows(ids[part])
            samples = self._locate(ids[part])
            if field.in_record:
                values = self._records.lengths(samples, self._schema.record_fields.index(field))
                lengths[part] = values // field.num_bytes if field.ragged else values
            else:
                lengths[part] = samples.rows[count_column(field)]
        return lengths

    @rereads
    def record_sizes(self) -> tuple[Int64, Int64]:
        """Returns the bytes of each sample, as stored and decompressed."""
        sizes = np.full((2, self.num_samples()), fixed_bytes(self._schema), dtype=np.int64)
        if self._schema.record_fields or self._schema.stream_fields:
            for samples in self._all_samples():
                sizes[:, samples.sample_ids[0] : samples.sample_ids[-1] + 1] = sizes_of(samples.rows, self._schema)
        return sizes[0], sizes[1]

    def sample_sizes(self, sample_ids: Int64) -> Int64:
        """Returns the bytes of samples, decompressed."""
        return np.asarray(sizes_of(self._locate(sample_ids).rows, self._schema)[1])

    @rereads
    def places(self, sample_ids: Int64) -> list[SamplePlace]:
        """Returns where samples lie, in the order of their ids, each once."""
        samples = self._locate(np.unique(sample_ids))
        schema = self._schema
        wide = {field: self._wide[field.name] for field in schema.wide_fields}
        streams = {field: self._streams[field.name] for field in schema.stream_fields}
        shards = {shard_id: self.shard(shard_id) for shard_id in np.unique(samples.shard_ids).tolist()}
        return sample_places(samples, shards, self._facts, self._records, wide, streams)

    def outside(self, sample_ids: Int64) -> list[tuple[Located, RecordLayout, Outside]]:
        """Returns where fields of samples lie in existing files; see `RecordReader.external_ranges`."""
        return self._records.external_ranges(self._locate(sample_ids))

    @rereads
    def find(self, digests: Sequence[bytes]) -> Int64:
        """Returns the id of the sample of each key's digest, -1 where there is none: int64 of shape (digests,)."""
        return self._shards.find(digests)

    @rereads
    def statistics(self) -> list[FieldStatistics]:
        """Returns what the fields of the schema hold, over all shards."""
        return self._shards.statistics()

    @rereads
    def num_samples(self) -> int:
        """Returns the number of samples once all shards have borne out the table: memory may then be taken for them."""
        self._shards.open(np.arange(len(self._table)))
        return int(self._table.first_sample_ids[-1])

    def _all_samples(self) -> Iterator[Located]:
        """Yields all samples in their order, some thousands at a time."""
        for start in range(0, int(self._first[-1]), _CHUNK_SAMPLES):
            yield self._locate(np.arange(start, min(start + _CHUNK_SAMPLES, int(self._first[-1]))))

    def _locate(self, sample_ids: Int64) -> Located:
        """Returns where samples are, with their packed rows. Their shards are open then."""
        shard_ids = self._shard_ids(sample_ids)
        return self._located(sample_ids, shard_ids, self._shards.rows(sample_ids, shard_ids))

    def _shard_ids(self, sample_ids: Int64) -> Int64:
        return self._table.spans.of(sample_ids)

    def _located(self, sample_ids: Int64, shard_ids: Int64, rows: NDArray[Any] | None) -> Located:
        local_ids = sample_ids - self._first[shard_ids]
        return Located(sample_ids, shard_ids, local_ids, rows, self.location, self._table, self._shards.store)

    def _hint(self, samples: Located, fields: Sequence[Field], uses: Uses | None = None, urgent: bool = False) -> None:
        """Announces what will be read of samples.

        A dataset that fits in half the memory stays there once it was read: then each sample is announced once.
        """
        if self._read_ahead(samples.sample_ids, fields):
            return
        if self._fits:
            samples = samples[self._hinted.missing(samples.sample_ids)]
            self._hinted.add(samples.sample_ids)
        if len(samples):
            self._announce(samples, fields, uses, urgent)

    def _read_at_once(self, fields: Sequence[Field]) -> bool:
        """Tells whether a single read asks a store for all of some fields, so that nothing need be announced before it."""
        at_once = sum(field.wide for field in fields) < 2 and not any(
            field.in_record or field.streamed for field in fields
        )
        return at_once and type(self.engine) is RangeEngine

    @rereads
    def ranges(self, sample_ids: Int64, fields: Sequence[Field]) -> Ranges:
        """Returns where the bytes of fields lie in samples, beside their rows: sorted by nothing, one range a piece."""
        return joined([NO_RANGES, *self._ranges(self._locate(sample_ids), fields)])

    def _announce(self, samples: Located, fields: Sequence[Field], uses: Uses | None, urgent: bool = False) -> None:
        # A file system may refuse hints, which is no reason not to read.
        with contextlib.suppress(OSError):
            if uses is not None and isinstance(self.engine, CachedEngine):
                # Before anything is fetched: by this it is known what of it is kept.
                self.engine.expect(samples, uses, self._lie(fields))
            ranges = self._ranges(samples, fields)
            if isinstance(self.engine, RangeEngine):
                sums = [self._sum_ranges(field, samples.shard_ids) for field in fields if field.streamed]
                self.engine.will_need(joined([NO_RANGES, *ranges, *chain(*sums)]), urgent)
            else:
                for some in ranges:
                    self.engine.will_need(some)
        # Where these are stands in the records, which are small and announced by now. What is wrong with them the read tells.
        with contextlib.suppress(OSError, FormatError):
            recorded = any(field.in_record for field in fields)
            for _, records, outside in self._records.external_ranges(samples) if recorded else ():
                wanted = np.array([field in fields for field in records.fields])
                self.engine.will_need(outside.ranges[wanted[outside.fields]])

    def _ranges(self, samples: Located, fields: Sequence[Field]) -> list[Ranges]:
        return [ranges_of(samples) for ranges_of in self._lie(fields)]

    def _lie(self, fields: Sequence[Field]) -> list[Callable[[Located], Ranges]]:
        """Returns what gives the ranges in which samples have fields."""
        lie: list[Callable[[Located], Ranges]] = [self._wide[field.name].ranges for field in fields if field.wide]
        lie += [self._streams[field.name].hint for field in fields if field.streamed]
        return lie + [self._records.ranges] * any(field.in_record for field in fields)

    def _sum_ranges(self, field: Field, shard_ids: Int64) -> list[Ranges]:
        """Returns where checksums of a stream lie that are to be fetched beside it."""
        if not self._far or self._verify == "off":
            return []
        sums = self._shards.sum_ranges(np.unique(shard_ids).tolist(), self._schema.number(field.name))
        return [] if sums is None else [sums]
