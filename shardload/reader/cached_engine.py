"""Shards that are a request away, with a cache on a disk before them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.format.external import ExternalFile
from shardload.format.table import ShardTable
from shardload.order.next_use import Uses, all_near
from shardload.planner import Worth
from shardload.reader.engines import Ranges
from shardload.reader.extents import Extents
from shardload.reader.files import NumberedFiles, OpenFiles, digest_of
from shardload.reader.located import Located
from shardload.reader.pieces import pieces_of
from shardload.reader.range_engine import RangeEngine
from shardload.reader.requests import Place
from shardload.storage import CachedStorage
from shardload.storage.cache import Cache
from shardload.storage.slots import key_of, num_blocks

Int64 = NDArray[np.int64]


_NEARLY_ALL = 0.9
"""Part of the samples that an epoch has to have, and of the cache that the dataset may take, for requests to reach further."""


class _Keys:
    """What stands for files in the names of their blocks, by number. Safe for several threads."""

    def __init__(self, known: NumberedFiles, count: int) -> None:
        self._known = known
        self._keys = np.zeros((count, 2), dtype=np.uint64)
        self._named = np.zeros(count, dtype=np.bool_)
        self._lock = threading.Lock()

    def grow(self, count: int) -> None:
        """Makes room for so many files."""
        with self._lock:
            missing = count - len(self._named)
            if missing > 0:
                self._keys = np.concatenate([self._keys, np.zeros((missing, 2), dtype=np.uint64)])
                self._named = np.concatenate([self._named, np.zeros(missing, dtype=np.bool_)])

    def __getitem__(self, numbers: Int64) -> NDArray[np.uint64]:
        unnamed = ~self._named[numbers]
        if unnamed.any():
            with self._lock:
                for number in np.unique(numbers[unnamed]).tolist():
                    entry = self._known[number]
                    self._keys[number] = key_of(digest_of(entry), entry.num_bytes)
                    self._named[number] = True
        keys: NDArray[np.uint64] = self._keys[numbers]
        return keys


class _Keeping:
    """A cache as what keeps all that is fetched."""

    def __init__(self, cache: Cache, keys: _Keys, known: NumberedFiles) -> None:
        self.whole = False
        """Whether an epoch needs all of the files, in processes that share the cache, and they have room in it."""
        self._cache = cache
        self._keys = keys
        self._extents = Extents(lambda number: known[number].num_bytes)

    def lacking(self, places: Sequence[Place]) -> list[Place]:
        """Returns the places that it does not have."""
        shard_ids, starts, stops = np.array(places, dtype=np.int64).T
        there = self._cache.will_need(self._keys[shard_ids], starts, stops)
        return [place for place, has in zip(places, there.tolist(), strict=True) if not has]

    def reached(self, requests: Sequence[Place], worth: Worth) -> list[Place]:
        """Returns requests that reach further."""
        return self._extents.reached(requests, worth) if self.whole and self._cache.data_bytes else list(requests)


class CachedEngine(RangeEngine):
    """Reads what is in the cache from there, many ranges at once, and fetches only the rest.

    What is fetched comes into the cache by the files that it is read from (`CachedFile`). Where an epoch needs all of a dataset
    that has room in the cache, requests reach further than what they are for.
    """

    def __init__(self, files: OpenFiles, table: ShardTable, storage: CachedStorage) -> None:
        """Describes it.

        Args:
            files: the shards.
            table: what is known of them.
            storage: where they are.
        """
        self._cache = storage.cache
        storage.counted_elsewhere = True
        known = NumberedFiles(table)
        self._keys = _Keys(known, len(table))
        self._keeping = _Keeping(self._cache, self._keys, known)
        self._num_samples = int(table.entries["num_samples"].sum(dtype=np.int64))
        num_bytes = int(table.entries["num_bytes"].sum(dtype=np.uint64))
        self._has_room = num_bytes <= _NEARLY_ALL * self._cache.data_bytes
        super().__init__(files, known, self._keeping)

    def read(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> None:
        """Copies ranges into targets."""
        some = ranges.lengths > 0
        # What was announced and was not in the cache waits in memory: it is taken from there, not read twice.
        fetched = self._holds(ranges)
        asked = np.flatnonzero(some & ~fetched)
        if not len(asked):
            self._missed(ranges)
            super().read(ranges, targets)
            return
        pieces = [np.frombuffer(piece, dtype=np.uint8) for piece in pieces_of(ranges.lengths, targets)]
        mine = Ranges(ranges.shard_ids[asked], ranges.starts[asked], ranges.lengths[asked])
        wanted = [pieces[number] for number in asked.tolist()]
        missing = self._cache.read(self._keys[mine.shard_ids], mine.starts, wanted)
        rest = some & fetched
        rest[asked[sorted({number for number, _, _ in missing})]] = True
        self._missed(ranges[rest])
        held = ranges[some & ~rest]
        self._cache.count(_num_blocks(held), 0)
        # Needed, too, and not fetched.
        self._needed_bytes += int(held.lengths.sum())
        if rest.any():
            super().read(ranges[rest], [pieces[number] for number in np.flatnonzero(rest).tolist()])

    def read_bytes(self, ranges: Ranges) -> list[bytes]:
        """Returns the bytes of each range."""
        if self._holds(ranges).all():
            self._missed(ranges)
            return super().read_bytes(ranges)
        data = np.empty(int(ranges.lengths.sum()), dtype=np.uint8)
        self.read(ranges, [data])
        return [piece.tobytes() for piece in pieces_of(ranges.lengths, [data])]

    def read_joined(self, ranges: Ranges) -> bytes:
        """Returns the bytes of all ranges."""
        if self._holds(ranges).all():
            self._missed(ranges)
            return super().read_joined(ranges)
        data = np.empty(int(ranges.lengths.sum()), dtype=np.uint8)
        self.read(ranges, [data])
        return data.tobytes()

    def will_need(self, ranges: Ranges, urgent: bool = False) -> None:
        """Has fetched what is not in the cache; what is, is read ahead by the system."""
        ranges = ranges[ranges.lengths > 0]
        if len(ranges):
            stops = ranges.starts + ranges.lengths
            there = self._cache.will_need(self._keys[ranges.shard_ids], ranges.starts, stops)
            super().will_need(ranges[~there], urgent)

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files beside the shards."""
        numbers = super().add(others)
        if numbers:
            self._keys.grow(max(numbers) + 1)
            # They may be much longer than what is needed of them, and than the cache.
            self._has_room = self._keeping.whole = False
        return numbers

    def expect(self, samples: Located, uses: Uses, lie: Sequence[Callable[[Located], Ranges]]) -> None:
        """Takes in when samples are read, so that what is needed soonest stays.

        Args:
            samples: the samples.
            uses: of each of them.
            lie: what gives the ranges of samples in the order of their ids: one each, for samples of one generation. Others are
                passed over.
        """
        forecast = uses.forecast
        needed = _NEARLY_ALL * self._num_samples <= forecast.num_positions <= self._num_samples
        self._keeping.whole = self._has_room and needed and all_near(forecast.num_replicas)
        self._cache.tell(forecast.job, uses.cursor, forecast.num_positions)
        order = np.argsort(samples.sample_ids, kind="stable")
        following = uses.following()
        generations = samples.table.entries["generation"][samples.shard_ids[order]]
        for generation in np.unique(generations).tolist():
            mine = order[generations == generation]
            for ranges_of in lie:
                ranges = ranges_of(samples[mine])
                some = ranges.lengths > 0
                if len(ranges) == len(mine) and some.any():
                    ranges, those = ranges[some], mine[some]
                    keys, stops = self._keys[ranges.shard_ids], ranges.starts + ranges.lengths
                    self._cache.expect(keys, ranges.starts, stops, uses.positions[those], following[those])

    def _missed(self, ranges: Ranges) -> None:
        """Notes ranges that are read now, and do not come from the cache."""
        self._cache.count(0, _num_blocks(ranges))
        ranges = ranges[ranges.lengths > 0]
        # Another process may have brought them since they were announced, not knowing who needs them when.
        self._cache.used(self._keys[ranges.shard_ids], ranges.starts, ranges.starts + ranges.lengths)

    def _holds(self, ranges: Ranges) -> NDArray[np.bool_]:
        """Tells which ranges were announced and are not in the cache, or were not then."""
        places = zip(ranges.shard_ids.tolist(), ranges.starts.tolist(), ranges.lengths.tolist(), strict=True)
        return np.array(self._arrivals.holds(places), dtype=np.bool_)


def _num_blocks(ranges: Ranges) -> int:
    return num_blocks(ranges.starts, ranges.starts + ranges.lengths)
