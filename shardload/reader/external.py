"""Records whose fields lie in existing files beside the shards: found by arrays, and read as records are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError, ShardloadError, StorageError
from shardload.format.checksum import block_sum, block_sums
from shardload.format.external import ExternalFile, ExternalPlaces, external_places
from shardload.format.manifest import Manifest
from shardload.format.record import RecordLayout, RecordPlaces
from shardload.reader.engines import Engine, Ranges
from shardload.reader.located import Located, damaged
from shardload.reader.strings import ByteStrings

Int64 = NDArray[np.int64]

_DIRECT_BYTES = 16 << 10
"""From this mean size on, values are read into their own byte strings: one copy instead of two."""
_AGAIN = "put the tar back as it was, or run `shardload index --replace` again"


class ExternalFiles:
    """The existing files that the shards name, numbered behind the shards as shards are opened."""

    def __init__(self, num_shards: int, engine: Engine) -> None:
        self._engine = engine
        self._first = np.zeros(num_shards, dtype=np.int64)
        self._counts = np.zeros(num_shards, dtype=np.int64)
        # The first stands for files that are not there.
        self._numbers = np.zeros(1, dtype=np.int64)
        self._sizes = np.zeros(1, dtype=np.int64)
        self.names: dict[int, str] = {}
        """Number -> name."""

    def add(self, shard_id: int, named: Sequence[ExternalFile]) -> None:
        """Notes the files that a shard names. Called by one thread at a time, before the shard is read by any."""
        numbers = self._engine.add(named)
        self.names.update(zip(numbers, (file.name for file in named), strict=True))
        self._first[shard_id] = len(self._numbers)
        # What others have taken hold of stays as it is.
        self._numbers = np.append(self._numbers, np.array(numbers, dtype=np.int64))
        self._sizes = np.append(self._sizes, np.array([file.num_bytes for file in named], dtype=np.int64))
        self._counts[shard_id] = len(named)

    def of(self, shard_ids: Int64, files: Int64) -> tuple[Int64, Int64, NDArray[np.bool_]]:
        """Returns for files that records name their numbers and lengths, and which of them there are."""
        there = files < self._counts[shard_ids]
        places = np.where(there, self._first[shard_ids] + files, 0)
        return self._numbers[places], self._sizes[places], there


@dataclass(frozen=True, slots=True)
class Outside:
    """What lies in existing files, by sample and in each by place: arrays of shape (ranges,)."""

    slots: Int64
    """Numbers of the samples among those that were asked for."""
    fields: Int64
    """Places of the fields among the record's."""
    ranges: Ranges
    """Bytes of the files."""
    names: Mapping[int, str]
    """Number of a file in the ranges -> its name."""


@dataclass(frozen=True, slots=True)
class _Found:
    """External records of some samples, taken apart; arrays of shape (records, fields) unless said otherwise."""

    places: ExternalPlaces
    numbers: Int64
    """Numbers of their files for the engine: shape (records,)."""
    ranks: Int64
    """Fields in the order of their places: those in the record come last."""


class ExternalRecords:
    """Reads fields of external records. Safe for several threads."""

    def __init__(self, engine: Engine, files: ExternalFiles) -> None:
        self._engine = engine
        self._files = files

    def find(self, samples: Located, records: RecordLayout, places: RecordPlaces) -> _Found:
        """Returns where the fields of samples lie, checked against files and each other. The ids of the samples do not fall.

        Raises:
            FormatError: a record names what there is not, or what another one has; names shard, bytes and sample.
        """
        heads = np.empty((len(samples), records.external_bytes), dtype=np.uint8)
        size = np.full(len(samples), records.external_bytes, dtype=np.int64)
        self._engine.read(Ranges(samples.shard_ids, places.start, size), [heads.reshape(-1)])
        return self._checked(samples, records, places, heads)

    def ranges(self, samples: Located, records: RecordLayout, places: RecordPlaces) -> Outside:
        """Returns which ranges of files hold fields; raises as `find`."""
        return self._outside(self.find(samples, records, places), None)

    def read(
        self,
        samples: Located,
        records: RecordLayout,
        places: RecordPlaces,
        wanted: Sequence[int],
        due: NDArray[np.bool_],
        identities: NDArray[np.uint32],
    ) -> list[ByteStrings]:
        """Returns the values of some fields.

        Args:
            samples: samples with external records; their ids do not fall.
            records: the layout of their records.
            places: where their records lie.
            wanted: places of the fields among the record's.
            due: which records are to be compared with their checksums: bool of shape (samples,).
            identities: how those start.

        Raises:
            FormatError: a record is damaged, or a file has changed; names shard or file, bytes and sample.
            StorageError: a file is missing or cannot be read.
        """
        data = self._engine.read_joined(Ranges(samples.shard_ids, places.start, places.stored))
        offsets = np.cumsum(places.stored) - places.stored
        whole = np.frombuffer(data, dtype=np.uint8)
        heads = whole[offsets[:, None] + np.arange(records.external_bytes)]
        found = self._checked(samples, records, places, heads)
        some = np.zeros(found.places.outside.shape, dtype=np.bool_)
        some[:, list(wanted)] = True
        # A checksum covers all fields, whichever are wanted.
        outside = self._outside(found, some | due[:, None])
        pieces, which, starts = self._read_outside(samples, outside)
        if due.any():
            begins, ends = (offsets + 4)[due].tolist(), (offsets + places.stored)[due].tolist()
            sums = block_sums(data, begins, ends, identities[due].tolist())
            totals = _carried_on(sums, np.flatnonzero(due), outside, pieces, starts)
            stored = heads[due, :4].copy().view("<u4")[:, 0]
            wrong = np.array(totals, dtype=np.uint32) != stored
            if wrong.any():
                raise self._changed(samples, int(np.flatnonzero(due)[np.argmax(wrong)]), found)
        table = np.zeros((2, *some.shape), dtype=np.int64)
        table[1] = found.places.starts + offsets[:, None]
        table[:, outside.slots, outside.fields] = which + 1, starts
        lengths = found.places.lengths
        pieces = [data, *pieces]
        columns = ((table[0][:, i], table[1][:, i], lengths[:, i]) for i in wanted)
        return [ByteStrings(pieces, number, start, start + length) for number, start, length in columns]

    def _checked(
        self, samples: Located, records: RecordLayout, places: RecordPlaces, heads: NDArray[np.uint8]
    ) -> _Found:
        try:
            found = external_places(heads, records, places.stored, places.raw)
        except FormatError as error:
            raise self._damaged(samples, places, error.sample_id or 0, error.message) from None
        numbers, sizes, there = self._files.of(samples.shard_ids, found.files)
        if not there.all():
            bad = int(np.argmin(there))
            raise self._damaged(samples, places, bad, f"the record names the external file {found.files[bad]}")
        stops = np.where(found.outside, found.starts + found.lengths, 0)
        inside = stops <= sizes[:, None]
        if not inside.all():
            bad = int(np.argmin(inside.all(axis=1)))
            name, size = self._files.names[int(numbers[bad])], sizes[bad]
            detail = f"the record points at byte {stops[bad].max()} of {name}, which has {size}"
            raise self._damaged(samples, places, bad, detail)
        ranks = np.argsort(np.where(found.outside, found.starts, np.iinfo(np.int64).max), axis=1, kind="stable")
        self._check_apart(samples, places, found, numbers)
        return _Found(found, numbers, ranks)

    def _check_apart(self, samples: Located, places: RecordPlaces, found: ExternalPlaces, numbers: Int64) -> None:
        """Checks that no two fields have the same bytes: else a small shard could ask for any amount of memory."""
        slots, fields = np.nonzero(found.outside)
        files, starts, lengths = numbers[slots], found.starts[slots, fields], found.lengths[slots, fields]
        order = np.lexsort((slots, starts, files))
        slots, files, starts, stops = slots[order], files[order], starts[order], (starts + lengths)[order]
        # A sample asked for twice stands twice, with the same ranges.
        ids = samples.sample_ids[slots]
        twice = (ids[1:] == ids[:-1]) & (slots[1:] != slots[:-1]) & (starts[1:] == starts[:-1])
        apart = (files[1:] != files[:-1]) | (starts[1:] >= stops[:-1]) | twice
        if not apart.all():
            bad = int(slots[int(np.argmin(apart)) + 1])
            raise self._damaged(samples, places, bad, "the record shares bytes of an external file with another field")

    def _outside(self, found: _Found, some: NDArray[np.bool_] | None) -> Outside:
        """Returns what lies in files: all, or some of the fields of each sample."""
        places = found.places
        mask = places.outside if some is None else places.outside & some
        slots, order = np.nonzero(np.take_along_axis(mask, found.ranks, axis=1))
        fields = found.ranks[slots, order]
        ranges = Ranges(found.numbers[slots], places.starts[slots, fields], places.lengths[slots, fields])
        return Outside(slots, fields, ranges, self._files.names)

    def _read_outside(self, samples: Located, outside: Outside) -> tuple[list[bytes], Int64, Int64]:
        """Returns pieces that hold the ranges, and for each range the number of its piece and its first byte there."""
        ranges = outside.ranges
        try:
            if len(ranges) and ranges.lengths.mean() >= _DIRECT_BYTES:
                pieces = self._engine.read_bytes(ranges)
                return pieces, np.arange(len(ranges)), np.zeros(len(ranges), dtype=np.int64)
            joined = self._engine.read_joined(ranges)
        except (StorageError, FormatError) as error:
            raise self._lost(samples, outside, error) from None
        return [joined], np.zeros(len(ranges), dtype=np.int64), np.cumsum(ranges.lengths) - ranges.lengths

    def _changed(self, samples: Located, slot: int, found: _Found) -> ChecksumError:
        mine = found.places.outside[slot]
        starts, lengths = found.places.starts[slot][mine], found.places.lengths[slot][mine]
        name, start, stop = (
            self._files.names[int(found.numbers[slot])],
            int(starts.min()),
            int((starts + lengths).max()),
        )
        shard, sample_id = samples.table[int(samples.shard_ids[slot])].name, int(samples.sample_ids[slot])
        return ChecksumError(
            f"{samples.dataset}: {name} has changed since it was indexed, at bytes {start} to {stop}, or {shard} is damaged: the "
            f"sample does not have its checksum (sample {sample_id}); {_AGAIN}",
            dataset=samples.dataset,
            shard=name,
            start=start,
            stop=stop,
            sample_id=sample_id,
        )

    def _lost(self, samples: Located, outside: Outside, error: ShardloadError) -> ShardloadError:
        """Returns the error for a file that cannot be read any more, with the first sample that lies in it."""
        in_it = np.array([self._files.names[number] == error.shard for number in outside.ranges.shard_ids.tolist()])
        if in_it.any():
            error.sample_id = int(samples.sample_ids[outside.slots[int(np.argmax(in_it))]])
            error.message += f"; sample {error.sample_id} lies in it"
        error.message += f"; if the tar has changed since it was indexed, {_AGAIN}"
        return error

    def _damaged(self, samples: Located, places: RecordPlaces, slot: int, detail: str) -> FormatError:
        start = int(places.start[slot])
        return damaged(FormatError, samples, slot, detail, start, start + int(places.stored[slot]))


def spare_bytes(manifest: Manifest) -> int:
    """Returns the addresses to keep for existing files that records lie in, whose lengths are known when their shards are open."""
    # Each starts on a page of its own, of which a tar has at least two and a half. Those on large pages take less than twice their
    # bytes, and are moved on to the next such page by less than the bytes of one more.
    return 3 * manifest.external_bytes + (4 << 20) if manifest.external else 0


def _carried_on(
    sums: Sequence[int], slots: Int64, outside: Outside, pieces: Sequence[bytes], starts: Int64
) -> list[int]:
    """Returns the checksums of records, given those over what stands in the heap, carried on over what lies in files.

    Args:
        sums: of the samples with these slots.
        slots: they rise.
        outside: all that lies in files of them, and perhaps of others.
        pieces: what holds it: one for each range, or one for all, where the ranges of a sample follow each other without a gap.
        starts: first byte of each range in its piece.
    """
    first, last = np.searchsorted(outside.slots, slots), np.searchsorted(outside.slots, slots, side="right")
    if len(pieces) == 1:
        stops = starts + outside.ranges.lengths
        return block_sums(pieces[0], starts[first].tolist(), stops[last - 1].tolist(), sums)
    totals = []
    for low, high, total in zip(first.tolist(), last.tolist(), sums, strict=True):
        for piece in pieces[low:high]:
            total = block_sum(piece, total)
        totals.append(total)
    return totals
