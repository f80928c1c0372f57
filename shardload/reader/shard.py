"""One shard: its head checked at the first use, its rows on request."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.codecs import Codec
from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.manifest import Manifest
from shardload.format.rows import row_layout, stream_spans, widen_rows
from shardload.format.schema import Field, Schema
from shardload.format.shard import Expected
from shardload.format.table import ShardEntry
from shardload.reader.codecs import Codecs
from shardload.reader.files import ShardFiles, read_head
from shardload.reader.rows import RowCache, RowTable
from shardload.reader.sections import ShardSections
from shardload.storage import StoredFile

Int64 = NDArray[np.int64]


class ShardReader:
    """Reads samples of one shard. Safe for several threads."""

    def __init__(
        self,
        shard_id: int,
        first_sample_id: int,
        entry: ShardEntry,
        manifest: Manifest,
        codecs: Codecs,
        files: ShardFiles,
        cache: RowCache,
        store: NDArray[Any] | None,
    ) -> None:
        """Opens a shard and checks its head.

        Args:
            shard_id: its number in the table.
            first_sample_id: id of its first sample.
            entry: what the table says of it.
            manifest: the dataset's.
            codecs: the codecs of its generations.
            files: where open files are kept.
            cache: where keys are kept.
            store: array of the dataset's rows for those of this shard; None to read them by page.

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
        self.identity = (entry.generation, entry.unit, entry.part)
        expected = self._expected(manifest.external)
        self.head = read_head(files.get(shard_id, entry), expected, self.identity, with_header=files.near)
        # Not `self.file`: a cycle would keep files open until the next garbage collection.
        self.sections = ShardSections(entry, self.head, manifest, partial(files.get, shard_id, entry), cache)
        """What the shard holds beside samples."""
        if store is not None and self.schema is not self._whole_schema:
            # Rows of an earlier generation are narrower; who wants them in the store takes them from here.
            store = np.empty(entry.num_samples, dtype=row_layout(self.schema).dtype)
        self._table = RowTable(entry.name, self.head, row_layout(self.schema), store)

    def _expected(self, external: bool) -> Expected:
        entry, streams = self.entry, len(self.schema.stream_fields)
        if any(entry.num_items[streams:]):
            raise FormatError(f"{entry.name}: the shard table gives it items of a field that its generation has not")
        items = entry.num_items[:streams]
        facts = (entry.num_samples, entry.num_bytes, entry.head_digest, items, self._dictionary)
        return Expected(self.schema, *facts, external)

    def load_rows(self) -> None:
        """Brings all rows into the store that was given for them."""
        self._table.load(self.file())

    def rows(self) -> NDArray[Any]:
        """Returns all packed rows as those of the dataset's schema, where they are held whole."""
        rows = self._table.load(self.file())
        return rows if self.schema is self._whole_schema else widen_rows(rows, self.schema, self._whole_schema)

    def read_pages(self, pages: Iterable[tuple[int, memoryview]]) -> None:
        """Reads pages of packed rows of its own schema, each into the beginning of some memory, and checks them."""
        self._table.read_pages(self.file(), pages)

    def row_ranges(self, pages: Iterable[int]) -> list[tuple[int, int]]:
        """Returns start and length of what is to be read for pages of packed rows that nobody has yet."""
        return self._table.ranges(pages)

    def _spans(self, field: Field, rows: NDArray[Any], local_ids: Int64) -> tuple[Int64, Int64]:
        """Returns the first and the last + 1 of samples' items, checked against the stream and each other."""
        try:
            return stream_spans(rows, field, self._num_items(field), local_ids)
        except FormatError as error:
            raise self._damaged(FormatError, error.message, local_ids[error.sample_id or 0 :]) from None

    def _num_items(self, field: Field) -> int:
        section = self.head.section(layout.SECTION_STREAM, self.schema.number(field.name))
        return section.num_bytes // section.item_bytes

    def check_streams(self, local_ids: Int64, rows: NDArray[Any]) -> None:
        """Checks that the items of consecutive samples follow each other, by their packed rows.

        Raises:
            FormatError: they do not; names shard and sample.
        """
        start, stop = int(local_ids[0]), int(local_ids[-1]) + 1
        for field in self.schema.stream_fields:
            starts, stops = self._spans(field, rows, local_ids)
            last = self._num_items(field) if stop == self.entry.num_samples else stops[-1]
            if (starts[1:] != stops[:-1]).any() or (start == 0 and starts[0] != 0) or stops[-1] != last:
                detail = f"the items of field {field.name!r} do not follow each other"
                raise self._damaged(FormatError, detail, local_ids)

    @property
    def codec(self) -> Codec | None:
        """The codec of its generation, with the dictionary."""
        return self._codecs.of(self.entry.generation, self.sections.dictionary)

    def file(self) -> StoredFile:
        """Returns the open file."""
        return self._files.get(self._shard_id, self.entry)

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
