"""Packed sequences as tensors: rows of one length, and where in them each sample lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.ragged import Ragged
from shardload.format.schema import Field
from shardload.loader.collate import WIDENED, Batch
from shardload.order.cursor import RankBatch, Units
from shardload.reader.batch import SampleBatch
from shardload.reader.decode import Lease

Int64 = NDArray[np.int64]

ADDED = ("position_ids", "segment_ids", "lengths", "cu_seqlens", "max_seqlen")
"""What batches of packed sequences have beside their fields."""
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class Values(NamedTuple):
    """A field's items in the samples of a batch, end to end."""

    field: Field
    items: NDArray[Any]
    """Array of shape (items, *item_shape), dtype as stored."""
    offsets: Int64
    """Where each sample's start, and the end of the last: int64 of shape (samples + 1,)."""


def values_of(samples: SampleBatch) -> dict[str, Values]:
    """Returns the ragged fields of samples as they were read."""
    found = {}
    for name, column in samples.columns.items():
        assert isinstance(column.values, Ragged)
        found[name] = Values(column.field, column.values.values, column.values.offsets)
    return found


@dataclass(frozen=True)
class Rows:
    """How sequences become rows of tensors."""

    length: int
    """Items of a row."""
    pad: Mapping[str, float]
    """What stands behind the items of a row that is not full, by field."""

    def batch(
        self,
        values: Mapping[str, Values],
        ids: RankBatch,
        dtypes: Mapping[str, torch.dtype],
        lease: Lease,
        location: str,
    ) -> Batch:
        """Returns the batch of sequences.

        Args:
            values: what was read of its samples.
            ids: the samples and the sequences.
            dtypes: dtypes by field that override the usual ones.
            lease: where memory for tensors comes from.
            location: directory of the dataset, for messages.

        Returns:
            By field a tensor of shape (sequences, length, *item_shape); `position_ids`, int64, and `segment_ids`, int32, of
            shape (sequences, length), `lengths`, int64 of shape (sequences,), `cu_seqlens`, int32 of shape (segments + 1,), and
            `max_seqlen`, an integer. Of no sequences all are empty.

        Raises:
            FormatError: two fields of a sample differ in length.
        """
        assert ids.units is not None
        units = ids.units
        _check_alike(values, ids, location)
        made: Batch = {}
        for name, (field, items, offsets) in values.items():
            made[name] = self._filled(
                field, _used(items, offsets, units), units, self.pad[name], dtypes.get(name), lease
            )
        return made | self._places(units, lease)

    def _filled(
        self, field: Field, items: NDArray[Any], units: Units, pad: float, dtype: torch.dtype | None, lease: Lease
    ) -> torch.Tensor:
        wide = field.kind in WIDENED and dtype not in _UNSIGNED
        if wide and field.kind == "uint64" and len(items) and int(items.max()) > np.iinfo(np.int64).max:
            raise ValueError(
                f"field {field.name!r}: {items.max()} does not fit int64; ask for dtypes={{{field.name!r}: torch.uint64}}"
            )
        out = self._row_by_row(items, units, np.dtype(np.int64) if wide else field.dtype, stored_pad(field, pad), lease)
        if field.kind == "bool":
            return torch.from_numpy(out).view(torch.bool)
        if field.kind == "bfloat16":
            tensor = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(out)
        return tensor if dtype is None else tensor.to(dtype)

    def _row_by_row(
        self, items: NDArray[Any], units: Units, dtype: np.dtype[Any], pad: float, lease: Lease
    ) -> NDArray[Any]:
        ends = np.concatenate([[0], np.cumsum(units.lengths)])[units.edges].tolist()
        out: NDArray[Any] = lease((len(units.positions), self.length, *items.shape[1:]), dtype)
        for row, start, stop in zip(out, ends[:-1], ends[1:], strict=True):
            row[: stop - start] = items[start:stop]
            row[stop - start :] = pad
        return out

    def _places(self, units: Units, lease: Lease) -> Batch:
        lengths, int64 = units.lengths, np.dtype(np.int64)
        sizes = np.diff(units.edges)
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        # From 1 in each row: 0 is for what it is filled up with.
        numbers = np.repeat(np.arange(len(lengths)) - np.repeat(units.edges[:-1], sizes) + 1, lengths)
        filled = np.diff(np.concatenate([[0], np.cumsum(lengths)])[units.edges])
        # What fills a row up is a segment too, so that they cover all rows end to end.
        segments = np.insert(lengths, units.edges[1:], self.length - filled)
        segments = segments[segments > 0]
        return {
            "position_ids": torch.from_numpy(self._row_by_row(positions, units, int64, 0, lease)),
            "segment_ids": torch.from_numpy(self._row_by_row(numbers, units, np.dtype(np.int32), 0, lease)),
            "lengths": torch.from_numpy(filled),
            "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(segments)]).astype(np.int32)),
            "max_seqlen": int(segments.max(initial=0)),
        }


def row_ids(ids: RankBatch, epoch: int, sources: Int64 | None) -> dict[str, Any]:
    """Returns what `with_ids` adds to sequences: by sequence a tensor of their samples, and of mixtures one of their sources.

    Args:
        ids: the batch.
        epoch: its epoch.
        sources: the source of each sample: int64 of shape (samples,); None where sources have no names.

    Returns:
        `_sample_id`, and `_source` where there are sources, a list of int64 tensors of shape (segments,); `_position` and
        `_epoch`, int64 of shape (sequences,). Fillers have -1.
    """
    assert ids.units is not None
    units, sizes = ids.units, np.diff(ids.units.edges).tolist()
    positions = units.positions.copy()
    positions[units.num_valid :] = -1
    named: dict[str, Any] = {
        "_position": torch.from_numpy(positions),
        "_epoch": torch.full((len(positions),), epoch, dtype=torch.int64),
    }
    for name, numbers in (("_sample_id", ids.sample_ids), ("_source", sources)):
        if numbers is not None:
            marked = np.where(np.arange(len(numbers)) < ids.num_valid, numbers, -1)
            named[name] = list(torch.split(torch.from_numpy(marked), sizes))
    return named


def stored_pad(field: Field, pad: float) -> float:
    """Returns what stands for a filler in an array as stored.

    Raises:
        ValueError: the field cannot hold it.
    """
    if field.kind == "bfloat16":
        return int(np.float32(pad).view(np.uint32) >> 16)
    if field.kind == "bool":
        return int(bool(pad))
    if field.dtype.kind == "f":
        return float(pad)
    limits = np.iinfo(np.int64 if field.kind in WIDENED else field.dtype)
    if pad != int(pad) or not limits.min <= pad <= limits.max:
        raise ValueError(f"pad: {pad!r} cannot stand in field {field.name!r}, which is {field.type}")
    return int(pad)


def _used(items: NDArray[Any], offsets: Int64, units: Units) -> NDArray[Any]:
    """Returns the items that the sequences have of what was read of their samples."""
    if len(items) == units.lengths.sum():
        return items
    lengths = units.lengths
    shifts = offsets[:-1] + units.starts - (np.cumsum(lengths) - lengths)
    used: NDArray[Any] = items[np.arange(int(lengths.sum())) + np.repeat(shifts, lengths)]
    return used


def _check_alike(values: Mapping[str, Values], ids: RankBatch, location: str) -> None:
    first, *others = values.items()
    sizes = np.diff(first[1].offsets)
    for name, (_, _, offsets) in others:
        other = np.diff(offsets)
        if not np.array_equal(sizes, other):
            bad = int(np.argmax(sizes != other))
            sample_id = int(ids.sample_ids[bad])
            raise FormatError(
                f"{location}: sample {sample_id} has {sizes[bad]:,} items of {first[0]!r} and {other[bad]:,} of {name!r}: fields "
                "that are packed together must be of one length",
                dataset=location,
                sample_id=sample_id,
            )
