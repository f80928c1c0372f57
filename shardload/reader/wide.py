"""Values of wide fields, of many samples at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError
from shardload.format.checksum import block_sum, data_sums, joined_sums
from shardload.format.rows import sum_column
from shardload.format.schema import Field
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.engines import Engine, Ranges, ReadEngine
from shardload.reader.facts import ShardFacts
from shardload.reader.located import Located, damaged
from shardload.reader.map_engine import MapEngine
from shardload.storage.mapping import in_one

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]


class WideReader:
    """Reads the values of one wide field. Safe for several threads."""

    def __init__(
        self, field: Field, number: int, facts: ShardFacts, engine: Engine, checked: CheckedBlocks, verify: Verify
    ) -> None:
        """Describes the field.

        Args:
            field: the field.
            number: its number in the schema.
            facts: where its values lie.
            engine: what reads them.
            checked: which samples' values have been checked in this process.
            verify: whether checksums are compared; not `auto`.
        """
        self._field = field
        self._number = number
        self._facts = facts
        self._engine = engine
        self._checked = checked
        self._verify = verify

    def ranges(self, samples: Located) -> Ranges:
        """Returns where the values lie; samples of generations without the field are left out."""
        starts, size = self._facts.wide_starts(self._field)[samples.shard_ids], self._field.num_bytes
        here = starts >= 0
        if not here.all():
            samples, starts = samples[here], starts[here]
        return Ranges(samples.shard_ids, starts + samples.local_ids * size, np.full(len(samples), size, dtype=np.int64))

    def read(self, samples: Located, targets: Sequence[NDArray[Any]]) -> None:
        """Fills targets with the samples' values, one after another, and checks those that are due.

        Args:
            samples: the samples.
            targets: for consecutive samples an array of shape (some, *field_shape) each, C-contiguous, as stored; belong to
                the caller. Zero where a generation has not the field.

        Raises:
            ChecksumError: a value is damaged; names shard, bytes and sample.
            StorageError: a file cannot be read.
        """
        size = self._field.num_bytes
        flat = [data.reshape(-1, size) for data in in_one([target.reshape(-1).view(np.uint8) for target in targets])]
        ranges, due = self.ranges(samples), self._checked.due(samples.sample_ids, self._verify)
        sums: UInt32 | None = None
        if len(ranges) == len(samples):
            sums = self._fill(ranges, [data.reshape(-1) for data in flat], summed=bool(due.any()))
        else:
            values = np.empty(len(ranges) * size, dtype=np.uint8)
            self._engine.read(ranges, [values])
            spread = np.zeros((len(samples), size), dtype=np.uint8)
            spread[self._facts.wide_starts(self._field)[samples.shard_ids] >= 0] = values.reshape(-1, size)
            for data, part in zip(flat, np.split(spread, np.cumsum([len(data) for data in flat])[:-1]), strict=True):
                data[...] = part
        if due.any():
            self._check(samples, flat, due, sums)

    def _fill(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]], *, summed: bool) -> UInt32 | None:
        """Copies ranges; returns the plain sum of each if that was asked for and made by the way: uint32 of shape (ranges,)."""
        engine = self._engine
        places = [(target.ctypes.data, target.nbytes) for target in targets if target.nbytes]
        if isinstance(engine, MapEngine):
            if engine.runs.read(ranges.shard_ids, ranges.starts, ranges.lengths, places):
                return None
            if summed and (sums := engine.read_and_add_up(ranges, targets)) is not None:
                return sums
        engine.read(ranges, targets)
        return None

    def _check(
        self, samples: Located, flat: Sequence[NDArray[np.uint8]], due: NDArray[np.bool_], plain: UInt32 | None
    ) -> None:
        """Compares the sums of values that are due with what `plain` says they are, or with those made here if that is None."""
        here = self._facts.wide_starts(self._field)[samples.shard_ids] >= 0
        due = here & due
        bases = self._facts.identities(self._number)[samples.shard_ids]
        sums = data_sums(samples.rows[sum_column(self._field)], bases, samples.local_ids, self._field.num_bytes)
        if plain is not None:
            for i in np.flatnonzero(due & (plain != sums))[:1].tolist():
                raise self._damaged(samples, i)
        # Rows that are not due are looked at once more: sums of whole pieces cost less than those of single rows.
        elif not here.all() or not self._match(flat, sums):
            rows = np.flatnonzero(due)
            edges = np.cumsum([0, *(len(data) for data in flat)])
            for i, piece in zip(rows.tolist(), (np.searchsorted(edges, rows, side="right") - 1).tolist(), strict=True):
                if block_sum(flat[piece][i - edges[piece]], 0) != sums[i]:
                    raise self._damaged(samples, i)
        self._checked.add(samples.sample_ids[due])

    def _match(self, flat: Sequence[NDArray[np.uint8]], sums: NDArray[np.uint32]) -> bool:
        """Tells whether all rows have their plain sums: one CRC a piece, the sums of pieces of one length joined at once."""
        first = 0
        for num_rows, pieces in itertools.groupby(flat, len):
            group = list(pieces)
            last = first + num_rows * len(group)
            if num_rows:
                joined = joined_sums(sums[first:last].reshape(len(group), num_rows), self._field.num_bytes)
                if [block_sum(data.reshape(-1), 0) for data in group] != joined.tolist():
                    return False
            first = last
        return True

    def _damaged(self, samples: Located, slot: int) -> Exception:
        ranges = self.ranges(samples[slot : slot + 1])
        start = int(ranges.starts[0])
        detail = f"the value of field {self._field.name!r} does not have its checksum"
        return damaged(ChecksumError, samples, slot, detail, start, start + self._field.num_bytes)


def read_ahead(
    engine: Engine, first_sample_ids: Int64, rows_held: bool, sample_ids: Int64, fields: Sequence[Field]
) -> bool:
    """Tells whether samples need no announcement beside their rows.

    So it is where the system itself reads ahead of who reads these fields of them, and where all fields lie in rows of files.

    Args:
        engine: what reads.
        first_sample_ids: of each shard: int64 of shape (shards + 1,).
        rows_held: whether row tables are held whole.
        sample_ids: the samples, in the order in which they are read.
        fields: the fields.
    """
    sizes = [field.num_bytes for field in fields if field.wide]
    if isinstance(engine, MapEngine | ReadEngine) and not (sizes or any(f.in_record or f.streamed for f in fields)):
        # Not for nothing: which of 10^9 samples were announced is noted all over 120 MB, that are touched for the first time.
        return True
    if not rows_held or not sizes or not isinstance(engine, MapEngine) or not all(field.fixed for field in fields):
        return False
    return engine.runs.follow(sample_ids, min(sizes) * len(sample_ids), first_sample_ids)
