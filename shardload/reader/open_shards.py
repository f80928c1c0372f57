"""The shards that a process has opened, and their packed rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.codecs import Codec
from shardload.format import layout
from shardload.format.keys import find_keys
from shardload.format.rows import row_layout
from shardload.format.shard import TAIL_READ_BYTES, Contents, plan_sections, shard_bytes
from shardload.format.statistics import FieldStatistics
from shardload.reader.codecs import Codecs
from shardload.reader.engines import Ranges
from shardload.reader.external import ExternalFiles
from shardload.reader.facts import ShardFacts
from shardload.reader.far_files import FarFiles
from shardload.reader.files import OpenFiles
from shardload.reader.paged_rows import PagedRows
from shardload.reader.rows import RowCache
from shardload.reader.shard import ShardReader
from shardload.reader.snapshot import Snapshot

Int64 = NDArray[np.int64]

_TAILS_BYTES = 64 << 20
"""Ends of shards that are fetched at once, or that of one shard."""
_GROUP_SHARDS = 32
"""Shards of which a section each is announced at a time."""
_DESCRIPTION_BYTES, _DICTIONARY_BYTES = 16 << 10, 128 << 10
"""What these sections are taken to have where nobody has told; a longer one costs another request."""


class OpenShards:
    """Opens shards at their first use. Safe for several threads."""

    def __init__(
        self, snapshot: Snapshot, files: OpenFiles | FarFiles, external: ExternalFiles, index_budget_bytes: int
    ) -> None:
        """Describes them.

        Args:
            snapshot: the version of the dataset.
            files: its shards' files.
            external: the existing files that they name, which are noted as shards are opened.
            index_budget_bytes: row tables are held whole if all of them together fit this; else read by page within it.
        """
        self._manifest = manifest = snapshot.manifest
        self._table = snapshot.table
        self._first = self._table.first_sample_ids
        self._files = files
        self._external = external
        self._schema = manifest.parsed_schema
        self._codecs = Codecs(manifest)
        self._cache = RowCache(index_budget_bytes)
        self.facts = ShardFacts(self._schema, self._table)
        self.readers: dict[int, ShardReader] = {}
        row_dtype, num_samples = row_layout(self._schema).dtype, manifest.num_samples
        # Its memory is taken as shards fill it, after their checks.
        whole = num_samples * row_dtype.itemsize <= index_budget_bytes
        self.store: NDArray[Any] | None = np.empty(num_samples, dtype=row_dtype) if whole else None
        """The rows of all samples, valid where they were asked for; None where tables are read by page."""
        self._paged = None if whole else PagedRows(manifest, self._table, index_budget_bytes)
        self._ready = np.zeros(len(self._table), dtype=np.bool_)
        self._opened = np.zeros(len(self._table), dtype=np.bool_)
        self._lock = threading.Lock()
        self._far_lock = threading.Lock()

    def get(self, shard_id: int) -> ShardReader:
        """Returns the reader of a shard, opened and checked at the first call."""
        shard = self.readers.get(shard_id)
        if shard is None:
            with self._lock:
                shard = self.readers.get(shard_id)
                if shard is None:
                    first, last = (int(n) for n in self._first[shard_id : shard_id + 2])
                    entry, store = self._table[shard_id], None if self.store is None else self.store[first:last]
                    shard = ShardReader(
                        shard_id, first, entry, self._manifest, self._codecs, self._files, self._cache, store
                    )
                    self._external.add(shard_id, shard.sections.external())
                    self.facts.add(shard_id, shard)
                    self.readers[shard_id] = shard
                    self._opened[shard_id] = True
        return shard

    def open(self, shard_ids: Int64) -> None:
        """Opens shards that are not yet; those far away all at once, and with their rows where these are held."""
        opened = self._opened[shard_ids]
        if opened.all():
            return
        missing = np.unique(shard_ids[~opened])
        if not isinstance(self._files, FarFiles):
            for shard_id in missing.tolist():
                self.get(shard_id)
            return
        with self._far_lock:
            sizes = [
                (shard_id, self._tail_bytes(shard_id)) for shard_id in missing.tolist() if not self._opened[shard_id]
            ]
            while sizes:
                count, total = 1, sizes[0][1]
                while count < len(sizes) and total + sizes[count][1] <= _TAILS_BYTES:
                    total += sizes[count][1]
                    count += 1
                self._open_far(self._files, sizes[:count])
                sizes = sizes[count:]

    def rows(self, sample_ids: Int64, shard_ids: Int64) -> NDArray[Any] | None:
        """Returns packed rows of samples; None if they are in the store. Their shards are open then."""
        self.open(shard_ids)
        if self._paged is None:
            missing = ~self._ready[shard_ids]
            if missing.any():
                for shard_id in np.unique(shard_ids[missing]).tolist():
                    self._load(shard_id)
            return None
        if isinstance(self._files, FarFiles) and (found := self.row_ranges(sample_ids)) is not None:
            self._files.engine.will_need(found, urgent=True)
        return self._paged.rows(sample_ids, shard_ids, self.get)

    def row_ranges(self, sample_ids: Int64) -> Ranges | None:
        """Returns the pages of row tables that are to be read for samples; None if there are none."""
        if self._paged is None:
            return None
        shard_ids = self._table.spans.of(sample_ids)
        self.open(shard_ids)
        return self._paged.ranges(sample_ids, shard_ids, self.get)

    def in_groups(self, kind: int, number: int = layout.NO_FIELD) -> Iterator[ShardReader]:
        """Yields all shards; of those far away some are opened, and have a section announced, at a time.

        Args:
            kind: of the section that is to be read of each.
            number: of its field.
        """
        for first in range(0, len(self._table), _GROUP_SHARDS):
            group = range(first, min(first + _GROUP_SHARDS, len(self._table)))
            self.open(np.array(group))
            if isinstance(self._files, FarFiles):
                sections = [self.get(shard_id).head.section(kind, number) for shard_id in group]
                rows = [(shard_id, one.start, one.num_bytes) for shard_id, one in zip(group, sections, strict=True)]
                self._files.engine.will_need(Ranges(*np.array(rows, dtype=np.int64).T))
            yield from map(self.get, group)

    def sums(self, shard_id: int, number: int) -> NDArray[np.uint32]:
        """Returns the checksums of all blocks of a stream in a shard: uint32 of shape (blocks,)."""
        key = (shard_id, number, 0)
        found = self._cache.get(key)
        if found is None:
            section = self.get(shard_id).head.section(layout.SECTION_SUMS, number)
            data = self._files.get(shard_id, self._table[shard_id]).read(section.start, section.stop)
            found = np.frombuffer(data, dtype="<u4")
            self._cache.put(key, found)
        return found

    def sum_ranges(self, shard_ids: Sequence[int], number: int) -> Ranges | None:
        """Returns where the checksums that are not there yet lie; None if there are none."""
        found = []
        for shard_id in shard_ids:
            shard = self.get(shard_id)
            # Fields of later generations come after those of earlier ones.
            if number < len(shard.schema) and self._cache.get((shard_id, number, 0)) is None:
                section = shard.head.section(layout.SECTION_SUMS, number)
                found.append((shard_id, section.start, section.num_bytes))
        return Ranges(*np.array(found, dtype=np.int64).T) if found else None

    def find(self, digests: Sequence[bytes]) -> Int64:
        """Returns the id of the sample of each key's digest, -1 where there is none: int64 of shape (digests,)."""
        ids = np.full(len(digests), -1, dtype=np.int64)
        number = self._schema.number(self._schema.key)
        for shard_id, shard in enumerate(self.in_groups(layout.SECTION_KEYS, number)):
            missing = np.flatnonzero(ids < 0)
            if not len(missing):
                break
            found = find_keys(shard.sections.keys(), [digests[slot] for slot in missing.tolist()])
            ids[missing[found >= 0]] = self._first[shard_id] + found[found >= 0]
        return ids

    def statistics(self) -> list[FieldStatistics]:
        """Returns what the fields of the schema hold, over all shards."""
        total = [FieldStatistics() for _ in self._schema.fields]
        for shard in self.in_groups(layout.SECTION_STATISTICS):
            total = [a + b for a, b in zip(total, shard.sections.statistics(), strict=True)]
        return total

    def discard(self, name: str, start: int | None, stop: int | None) -> bool:
        """Drops copies of a shard's bytes, all of them if no range is told; returns whether another read may give others."""
        shard_id = next((i for i in range(len(self._table)) if self._table[i].name == name), None)
        if shard_id is None:
            return False
        entry = self._table[shard_id]
        for field in self._schema.stream_fields:
            self._cache.drop((shard_id, self._schema.number(field.name), 0))
        low, high = (0, entry.num_bytes) if start is None or stop is None else (start, stop)
        return self._files.get(shard_id, entry).discard(low, high)

    def _open_far(self, files: FarFiles, sizes: Sequence[tuple[int, int]]) -> None:
        files.bring_tails([(shard_id, self._table[shard_id], size) for shard_id, size in sizes])
        try:
            for shard_id, _ in sizes:
                shard = self.get(shard_id)
                if self.store is not None:
                    self._load(shard_id)
                    for field in shard.schema.stream_fields:
                        self.sums(shard_id, self._schema.number(field.name))
        finally:
            files.let_go([shard_id for shard_id, _ in sizes])

    def _tail_bytes(self, shard_id: int) -> int:
        """Returns how much of the end of a shard far away is fetched first: its head, and its rows if they are held."""
        entry = self._table[shard_id]
        if self.store is None:
            return min(TAIL_READ_BYTES, entry.num_bytes)
        schema = self._manifest.schema_of(entry.generation)
        dictionary = _DICTIONARY_BYTES if self._manifest.generation(entry.generation).dictionary else 0
        items = entry.num_items[: len(schema.stream_fields)]
        contents = Contents(entry.num_samples, 0, items, dictionary, _DESCRIPTION_BYTES)
        rows = next(one for one in plan_sections(schema, contents) if one.kind == layout.SECTION_ROWS)
        return min(shard_bytes(schema, contents) - rows.start + layout.PAGE_BYTES, entry.num_bytes)

    def _load(self, shard_id: int) -> None:
        """Brings the rows of a shard into the store."""
        shard = self.get(shard_id)
        assert self.store is not None
        if shard.schema is self._schema:
            shard.load_rows()
        else:
            self.store[self._first[shard_id] : self._first[shard_id + 1]] = shard.rows()
        self._ready[shard_id] = True


def codec_of(shards: Mapping[int, ShardReader]) -> Callable[[int], Codec | None]:
    """Returns what gives the codec of an open shard. Of the open shards only: a cycle would keep their files open."""
    return lambda shard_id: shards[shard_id].codec
