"""One shard file, written front to back, and the row of shards that a unit becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from shardload.format import layout
from shardload.format.checksum import block_sum, identity_sum
from shardload.format.rows import row_layout
from shardload.format.schema import Schema
from shardload.format.shard import encode_header, encode_tail, plan_sections, shard_bytes
from shardload.format.table import ShardEntry
from shardload.storage import FileWriter, LocalStorage
from shardload.writer.encode import EncodedSample, RowPacker


class ShardFile:
    """A shard being written. Records go to the file at once; wide values and rows are kept until `finish`."""

    def __init__(self, writer: FileWriter, schema: Schema, generation: int, unit: int, part: int) -> None:
        self.num_samples = 0
        self.identity = (generation, unit, part)
        self._writer = writer
        self._schema = schema
        self._rows = bytearray()
        self._packer = RowPacker(schema)
        self._wide = [bytearray() for _ in schema.wide_fields]
        self._wide_numbers = [schema.number(field.name) for field in schema.wide_fields]
        rows = row_layout(schema)
        self._bytes_a_sample = rows.dtype.itemsize + layout.DIGEST_BYTES / rows.rows_per_page
        self._bytes_a_sample += sum(field.num_bytes for field in schema.wide_fields)
        # Padding and directory entries: at most so much for each section.
        section_bytes = layout.SECTION_ALIGNMENT + layout.DIRECTORY_ENTRY_BYTES
        self._bytes_a_shard = section_bytes * (len(self._wide) + 3)
        self._header = encode_header(schema, generation, unit, part)
        writer.write(self._header)

    def fits(self, sample: EncodedSample, limit_bytes: int) -> bool:
        """Tells whether the finished file would not exceed a limit if the sample were added."""
        stop = self._writer.num_bytes
        if sample.stored_bytes:
            stop = layout.align(stop, layout.record_alignment(sample.stored_bytes)) + sample.stored_bytes
        num_samples = self.num_samples + 1
        # A bound that costs nothing decides far from the limit; the exact size is worked out near it.
        if stop + num_samples * self._bytes_a_sample + self._bytes_a_shard <= limit_bytes:
            return True
        return shard_bytes(self._schema, num_samples, stop - layout.HEADER_BYTES) <= limit_bytes

    def add(self, sample: EncodedSample) -> None:
        """Adds a sample."""
        local_id = self.num_samples
        place = 0
        if sample.stored_bytes:
            place = layout.align(self._writer.num_bytes, layout.record_alignment(sample.stored_bytes))
            self._writer.pad_to(place)
            start = identity_sum(*self.identity, layout.NO_FIELD, local_id)
            self._writer.write(block_sum(sample.record, start).to_bytes(4, "little"))
            self._writer.write(sample.record)
        sums = []
        for number, column, value in zip(self._wide_numbers, self._wide, sample.wide, strict=True):
            sums.append(block_sum(value, identity_sum(*self.identity, number, local_id)))
            column += value
        self._rows += self._packer.pack(sample, place, sums)
        self.num_samples += 1

    def finish(self) -> ShardEntry:
        """Writes the rest of the file, brings it to the device and returns its entry in the shard table."""
        writer, rows = self._writer, row_layout(self._schema)
        sections = plan_sections(self._schema, self.num_samples, writer.num_bytes - layout.HEADER_BYTES)
        bounds = [rows.page_bounds(page, self.num_samples) for page in range(rows.num_pages(self.num_samples))]
        pages = b"".join(hashlib.sha256(self._rows[start:stop]).digest() for start, stop in bounds)
        contents = [*self._wide, self._rows, bytearray(pages)]
        sections[-1] = replace(sections[-1], digest=hashlib.sha256(pages).digest())
        for section, content in zip(sections[-len(contents) :], contents, strict=True):
            writer.pad_to(section.start)
            writer.write(content)
        writer.pad_to(layout.align(writer.num_bytes, layout.SMALL_SECTION_ALIGNMENT))
        tail = encode_tail(sections, self.num_samples, self._header)
        writer.write(tail)
        digest = writer.finish()
        head_digest = hashlib.sha256(tail).digest()
        return ShardEntry(*self.identity, self.num_samples, writer.num_bytes, head_digest, digest)


class UnitWriter:
    """Writes one unit: samples go into parts 0, 1, ..., each closed before it would exceed the shard size."""

    def __init__(self, storage: LocalStorage, schema: Schema, generation: int, unit: int, shard_size: int) -> None:
        self.entries: list[ShardEntry] = []
        """The shards finished so far."""
        self._storage = storage
        self._schema = schema
        self._generation = generation
        self._unit = unit
        self._shard_size = shard_size
        self._file: FileWriter | None = None
        self._shard: ShardFile | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes written so far; wide values and rows count when their shard is finished."""
        return sum(entry.num_bytes for entry in self.entries) + (self._file.num_bytes if self._file is not None else 0)

    def add(self, sample: EncodedSample) -> None:
        """Adds a sample to the current part, or to the next where it would not fit."""
        shard = self._shard
        if shard is not None and (
            not shard.fits(sample, self._shard_size) or shard.num_samples == layout.MAX_SHARD_SAMPLES
        ):
            self._finish_shard()
            shard = None
        if shard is None:
            shard = self._start_shard()
        shard.add(sample)

    def finish(self) -> list[ShardEntry]:
        """Finishes the last part and returns the entries of all."""
        if self._shard is not None:
            self._finish_shard()
        return self.entries

    def abandon(self) -> None:
        """Removes the part that is not finished; finished ones stay."""
        file, self._file, self._shard = self._file, None, None
        if file is not None:
            file.abandon()

    def _start_shard(self) -> ShardFile:
        part = len(self.entries)
        name = layout.shard_name(self._generation, self._unit, part)
        self._file = FileWriter(self._storage.path(name), self._storage.operations)
        self._shard = ShardFile(self._file, self._schema, self._generation, self._unit, part)
        return self._shard

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self.entries.append(self._shard.finish())
        self._file = self._shard = None


def write_unit(
    storage: LocalStorage,
    schema: Schema,
    generation: int,
    unit: int,
    shard_size: int,
    fill: Callable[[UnitWriter], None],
) -> list[ShardEntry]:
    """Returns the entries of a unit whose samples `fill` adds; what is unfinished is removed if it raises."""
    writer = UnitWriter(storage, schema, generation, unit, shard_size)
    try:
        fill(writer)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise
