"""A packed dataset as a source in another order, or without duplicates: its samples, cut into units by position."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError, PackError, StateMismatchError, StorageError
from shardload.importers.base import Item, Outcome, Piece, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.units import default_unit_size
from shardload.order import Permutation
from shardload.reader import ShardDataset, open_dataset

MAX_SEED = (1 << 63) - 1
"""Highest seed of a shuffle: manifests hold integers of 64 bits with sign."""

_EPOCH = (1 << 63) - 1
"""The epoch whose order is written: no training gets there, so that none repeats it with the same seed."""
_READ_BYTES = 16 << 20
"""Stored bytes that are read together, about, ..."""
_READ_SAMPLES = 4096
"""... and samples at most."""


class LostCopyError(PackError):
    """The dataset that is rewritten cannot be read any more, so that going on is of no use."""


def plan_shuffled(
    location: str, seed: int | None, unit_size: int | None, left_out: str = "", marks: str = ""
) -> SourcePlan:
    """Returns a dataset as a source: position p gives sample `Permutation(num_samples, seed, 2^63 - 1)(p)`.

    Args:
        location: directory of the dataset.
        seed: 0 to `MAX_SEED`; None for the order in which the samples are.
        unit_size: stored bytes of a unit; None for the default.
        left_out: name of a field that the samples come without, or nothing.
        marks: file of the samples that are dropped, a bit a sample as of `mark_duplicates`; nothing for none.

    Raises:
        LostCopyError: it cannot be read.
    """
    with copy_named(location):
        dataset = open_dataset(location)
    num_samples, num_bytes = len(dataset), dataset.manifest.num_bytes
    size = unit_size or default_unit_size(num_bytes)
    num_units = min(num_samples, -(-num_bytes // size))
    file = SourceFile(location, num_bytes, 0)
    bounds = [num_bytes * number // num_units for number in range(num_units + 1)]
    units = [Unit(i, (Piece(file, bounds[i], bounds[i + 1]),)) for i in range(num_units)]
    reader = ShuffledReader(location, dataset.fingerprint, seed, num_units, left_out, marks)
    types = {field.name: field.type for field in dataset.schema.fields if field.name != left_out}
    return SourcePlan(reader, units, types, {})


@dataclass(frozen=True)
class ShuffledReader:
    """Reads units of positions. The dataset stays open for all units, since each of them touches all of its shards."""

    location: str
    fingerprint: str
    seed: int | None
    num_units: int
    left_out: str = ""
    marks: str = ""

    def read(self, unit: Unit) -> Generator[Item, None, None]:
        """Yields the samples of a unit's positions, read in bursts that are announced one ahead.

        Raises:
            LostCopyError: the dataset is damaged or cannot be read.
        """
        with copy_named(self.location):
            dataset = self._dataset
            num_samples, num_bytes = len(dataset), dataset.manifest.num_bytes
            fields = [field for field in dataset.field_list if field.name != self.left_out]
        first, stop = (num_samples * number // self.num_units for number in (unit.number, unit.number + 1))
        step = min(_READ_SAMPLES, max(1, _READ_BYTES * num_samples // num_bytes))
        bursts = [range(start, min(start + step, stop)) for start in range(first, stop, step)]
        for burst, ahead in zip(bursts, [*bursts[1:], range(0)], strict=True):
            if ahead:
                dataset.will_need(self._kept(self._ids(ahead, num_samples)))
            ids = self._ids(burst, num_samples)
            kept = self._kept(ids)
            with copy_named(self.location):
                samples = iter(dataset.read_batch(kept, None, fields)) if len(kept) else iter(())
            stay = np.isin(ids, kept)
            for position, sample_id, stays in zip(burst, ids.tolist(), stay.tolist(), strict=True):
                # What a sample took of the source is not known any more: each counts alike, and all together as a whole.
                taken = num_bytes * (position + 1) // num_samples - num_bytes * position // num_samples
                if not stays:
                    yield Outcome((), taken)
                    continue
                with copy_named(self.location):
                    sample = next(samples)
                yield Sample(sample, f"sample {sample_id} of {self.location}", taken)

    def _ids(self, positions: range, num_samples: int) -> NDArray[np.int64]:
        """Returns the samples at positions."""
        numbers = np.arange(positions.start, positions.stop)
        if self.seed is None:
            return numbers
        return Permutation(num_samples, seed=self.seed, epoch=_EPOCH).sample_ids(numbers)

    def _kept(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._marks is None:
            return sample_ids
        marked: NDArray[np.bool_] = (self._marks[sample_ids >> 3] >> (sample_ids & 7) & 1).astype(bool)
        return sample_ids[~marked]

    @cached_property
    def _marks(self) -> NDArray[np.uint8] | None:
        return np.memmap(self.marks, np.uint8, "r") if self.marks else None

    @cached_property
    def _dataset(self) -> ShardDataset:
        return open_dataset(self.location, fingerprint=self.fingerprint)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_dataset", "_marks")}


@contextlib.contextmanager
def copy_named(location: str) -> Iterator[None]:
    """Says what to do about a dataset that cannot be read."""
    try:
        yield
    except (FormatError, StateMismatchError, StorageError) as error:
        raise LostCopyError(
            f"{error}; without that copy the pack cannot be continued: begin again with --replace (replace=True), or remove "
            f"{os.path.dirname(location)} to give it up"
        ) from None
