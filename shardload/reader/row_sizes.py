"""How many bytes samples take, as their packed rows tell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.record import external_records
from shardload.format.rows import RAW, STORED, count_column, row_layout
from shardload.format.schema import Schema

Int64 = NDArray[np.int64]


def fixed_bytes(schema: Schema) -> int:
    """Returns the bytes that each sample takes outside of records and streams."""
    return row_layout(schema).dtype.itemsize + sum(field.num_bytes for field in schema.wide_fields)


def sizes_of(rows: NDArray[Any], schema: Schema) -> Int64:
    """Returns the bytes of samples as stored and decompressed, all their fields together.

    Args:
        rows: packed rows: structured array of shape (samples,).
        schema: the dataset's.

    Returns:
        int64 of shape (2, samples). Of external records the fields count where they lie.
    """
    sizes = np.full((2, len(rows)), fixed_bytes(schema), dtype=np.int64)
    if schema.record_fields:
        sizes += np.stack([np.where(external_records(rows), rows[RAW], rows[STORED]), rows[RAW]])
    for field in schema.stream_fields:
        sizes += rows[count_column(field)].astype(np.int64) * field.num_bytes
    return sizes
