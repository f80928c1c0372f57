"""Batches that were read in parts, from several places, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.ragged import Ragged
from shardload.format.schema import Field
from shardload.reader.access import Buffers
from shardload.reader.batch import Column, SampleBatch
from shardload.reader.strings import ByteStrings

Int64 = NDArray[np.int64]


def merge_batches(
    sample_ids: Int64,
    parts: Sequence[tuple[Int64, SampleBatch]],
    buffers: Buffers,
    fields: Sequence[Field],
    location: str,
) -> SampleBatch:
    """Returns a batch made of several.

    Args:
        sample_ids: ids of the samples: int64 of shape (batch,).
        parts: of each the slots of its samples, int64 of shape (samples,), and the samples. Together they have each slot once.
        buffers: for fixed fields, arrays to be filled and used.
        fields: the fields, in the order of the columns.
        location: where the batch comes from, for messages.
    """
    slots = np.concatenate([some for some, _ in parts])
    # Where the sample of each slot stands among those of all parts, one part after the other.
    order = np.empty(len(slots), dtype=np.int64)
    order[slots] = np.arange(len(slots))
    columns = {}
    for field in fields:
        found = [(some, batch.columns[field.name]) for some, batch in parts]
        valid = _valid(found, len(sample_ids)) if any(column.valid is not None for _, column in found) else None
        values = [column.values for _, column in found]
        if field.fixed:
            out = buffers.get(field.name)
            out = np.empty((len(sample_ids), *field.shape), dtype=field.dtype) if out is None else out
            for some, column in found:
                out[some] = column.values
            columns[field.name] = Column(field, out, valid)
        elif field.ragged:
            columns[field.name] = Column(field, _ragged(values, order), valid)
        else:
            columns[field.name] = Column(field, _strings(values, order), valid)
    return SampleBatch(sample_ids, columns, location)


def _valid(found: Sequence[tuple[Int64, Column]], size: int) -> NDArray[np.bool_]:
    valid = np.ones(size, dtype=np.bool_)
    for slots, column in found:
        if column.valid is not None:
            valid[slots] = column.valid
    return valid


def _ragged(parts: Sequence[Any], order: Int64) -> Ragged:
    joined = np.concatenate([part.values[part.offsets[0] : part.offsets[-1]] for part in parts])
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    offsets = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(joined[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets)


def _strings(parts: Sequence[Any], order: Int64) -> ByteStrings:
    joined = ByteStrings.joined([part if isinstance(part, ByteStrings) else ByteStrings.of(part) for part in parts])
    return joined[order]
