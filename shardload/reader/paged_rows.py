"""Packed rows of a dataset whose row tables are too large to be held: by page, of all shards that a batch is in."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.manifest import Manifest
from shardload.format.rows import RowLayout, row_layout, widen_rows
from shardload.format.table import ShardTable
from shardload.reader.engines import Ranges
from shardload.reader.row_pages import RowPages
from shardload.reader.shard import ShardReader

Int64 = NDArray[np.int64]
Shard = Callable[[int], ShardReader]
"""Gives the reader of a shard."""


class PagedRows:
    """Takes rows from pages, which are numbered over all shards. Safe for several threads."""

    def __init__(self, manifest: Manifest, table: ShardTable, max_bytes: int) -> None:
        """Describes them.

        Args:
            manifest: the dataset's.
            table: its shards.
            max_bytes: bytes of pages that are kept.
        """
        self._schema = manifest.parsed_schema
        self._first = table.first_sample_ids
        self._generations = table.entries["generation"]
        self._layouts = {one.generation: row_layout(manifest.schema_of(one.generation)) for one in manifest.generations}
        num_pages = np.zeros(len(table), dtype=np.int64)
        for generation, rows in self._layouts.items():
            mine = self._generations == generation
            num_pages[mine] = -(-table.entries["num_samples"][mine].astype(np.int64) // rows.rows_per_page)
        self._first_pages = np.cumsum(num_pages) - num_pages
        page_bytes = max(rows.rows_per_page * rows.dtype.itemsize for rows in self._layouts.values())
        self._pages = RowPages(page_bytes, max_bytes, int(num_pages.sum()))

    def rows(self, sample_ids: Int64, shard_ids: Int64, shard: Shard) -> NDArray[Any]:
        """Returns packed rows of the dataset's schema: structured array of shape (samples,).

        Args:
            sample_ids: int64 of shape (samples,).
            shard_ids: the shards that they are in, which are open.
            shard: gives the readers of these.

        Raises:
            ChecksumError: a page does not have its digest.
        """
        found = np.empty(len(sample_ids), dtype=row_layout(self._schema).dtype)
        for slots, layout, numbers, offsets in self._placed(sample_ids, shard_ids):
            rows = self._pages.take(numbers, offsets, layout.dtype, partial(self._fill, shard))
            found[slots] = rows if layout.schema is self._schema else widen_rows(rows, layout.schema, self._schema)
        return found

    def ranges(self, sample_ids: Int64, shard_ids: Int64, shard: Shard) -> Ranges | None:
        """Returns what is to be read for the rows of samples; None if all of it is there."""
        found: list[tuple[int, int, int]] = []
        for _, _, numbers, _ in self._placed(sample_ids, shard_ids):
            pages = np.unique(numbers)
            for shard_id, some in self._by_shard(pages[self._pages.absent(pages)].tolist()):
                ranges = shard(shard_id).row_ranges(page for page, _ in some)
                found += [(shard_id, start, length) for start, length in ranges]
        return Ranges(*np.array(found, dtype=np.int64).T) if found else None

    def _placed(self, sample_ids: Int64, shard_ids: Int64) -> Iterator[tuple[Int64, RowLayout, Int64, Int64]]:
        """Yields for the samples of each layout their slots in rising order of the ids, their pages, and their rows in these."""
        order = np.argsort(sample_ids, kind="stable")
        for generation, layout in self._layouts.items():
            slots = order
            if len(self._layouts) > 1:
                slots = order[self._generations[shard_ids[order]] == generation]
            if not len(slots):
                continue
            mine = shard_ids[slots]
            pages, offsets = np.divmod(sample_ids[slots] - self._first[mine], layout.rows_per_page)
            yield slots, layout, self._first_pages[mine] + pages, offsets

    def _fill(self, shard: Shard, numbers: list[int], memory: list[memoryview]) -> None:
        for shard_id, pages in self._by_shard(numbers):
            shard(shard_id).read_pages((page, memory[slot]) for page, slot in pages)

    def _by_shard(self, numbers: list[int]) -> Iterator[tuple[int, Iterator[tuple[int, int]]]]:
        """Yields shards with their pages among some whose numbers rise, as numbers within the shard and slots."""
        shard_ids = np.searchsorted(self._first_pages, numbers, side="right") - 1
        pages = (np.array(numbers, dtype=np.int64) - self._first_pages[shard_ids]).tolist()
        places = zip(shard_ids.tolist(), pages, itertools.count(), strict=False)
        for shard_id, some in itertools.groupby(places, operator.itemgetter(0)):
            yield shard_id, ((page, slot) for _, page, slot in some)
