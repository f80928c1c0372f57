"""The packed row: one fixed-size row a sample (FORMAT.md section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.schema import Field, Schema

# Column names of the row that are not fields start with an underscore, which no field name does.
PLACE, STORED, RAW, VALIDITY = "_place", "_stored", "_raw", "_validity"


def sum_column(field: Field) -> str:
    """Returns the name of the row's column that holds a wide field's checksum."""
    return f"_sum_{field.name}"


def start_column(field: Field) -> str:
    """Returns the name of the row's column with the items before a sample's own in a stream."""
    return f"_start_{field.name}"


def count_column(field: Field) -> str:
    """Returns the name of the row's column with the number of a sample's items in a stream."""
    return f"_count_{field.name}"


@dataclass(frozen=True)
class RowLayout:
    """How the packed rows of a schema are laid out."""

    schema: Schema
    dtype: np.dtype[Any]
    """Structured dtype of one row; `dtype.itemsize` is the row's size."""
    rows_per_page: int
    """Rows under one page digest."""

    def num_pages(self, num_samples: int) -> int:
        """Returns the number of pages of a table of so many rows."""
        return -(-num_samples // self.rows_per_page)

    def page_bounds(self, page: int, num_samples: int) -> tuple[int, int]:
        """Returns the half-open range of bytes of a page within the row table."""
        start = page * self.rows_per_page
        stop = min(start + self.rows_per_page, num_samples)
        return start * self.dtype.itemsize, stop * self.dtype.itemsize


@lru_cache(maxsize=64)
def row_layout(schema: Schema) -> RowLayout:
    """Returns the row layout of a schema."""
    columns: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    if schema.record_fields:
        columns += [(PLACE, np.dtype("<u8"), ()), (STORED, np.dtype("<u4"), ()), (RAW, np.dtype("<u4"), ())]
    columns += [(sum_column(field), np.dtype("<u4"), ()) for field in schema.wide_fields]
    for field in schema.stream_fields:
        columns += [(start_column(field), np.dtype("<u8"), ()), (count_column(field), np.dtype("<u4"), ())]
    columns += [(field.name, field.dtype, field.shape) for field in schema.row_fields]
    if schema.nullable_fields:
        columns.append((VALIDITY, np.dtype("u1"), (-(-len(schema.nullable_fields) // 8),)))
    # Falling scalar sizes put every column on a multiple of its scalar without padding; the sort is stable.
    columns.sort(key=lambda column: -column[1].itemsize)
    offsets, offset = [], 0
    for _, scalar, shape in columns:
        offsets.append(offset)
        offset += scalar.itemsize * int(np.prod(shape, dtype=np.int64))
    dtype = np.dtype(
        {
            "names": [name for name, _, _ in columns],
            "formats": [(scalar, shape) for _, scalar, shape in columns],
            "offsets": offsets,
            "itemsize": layout.align(offset, columns[0][1].itemsize),
        }
    )
    return RowLayout(schema, dtype, max(1, layout.PAGE_BYTES // dtype.itemsize))


def valid_mask(rows: NDArray[Any], schema: Schema, field: Field) -> NDArray[np.bool_]:
    """Returns which of the rows have a value for a nullable field: bool of shape (rows,)."""
    bit = schema.nullable_fields.index(field)
    mask: NDArray[np.bool_] = (rows[VALIDITY][:, bit // 8] >> np.uint8(bit % 8)) & np.uint8(1) != 0
    return mask


def stream_spans(
    rows: NDArray[Any],
    field: Field,
    num_items: int | NDArray[np.int64],
    ids: NDArray[np.int64],
    shard_ids: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first and the last + 1 of samples' items of a stream field: int64 of shape (samples,) each.

    Args:
        rows: the samples' packed rows.
        field: the field.
        num_items: items of the stream, one for all or one a row.
        ids: the samples' numbers, in their shard or in the dataset; they do not fall, and one may stand twice.
        shard_ids: the shards of the samples; None if all are of one.

    Raises:
        FormatError: items lie outside the stream, or overlap; `sample_id` is the row's place among the given ones. Were
            they let overlap, a small shard could ask for any amount of memory.
    """
    starts, counts = rows[start_column(field)], rows[count_column(field)].astype(np.uint64)
    limits = np.asarray(num_items).astype(np.uint64)
    # In this order nothing wraps: no count is added to a start that is not below 2^48 items.
    good = starts <= limits
    stops = np.where(good, starts, np.uint64(0)) + counts
    good &= stops <= limits
    apart = (starts[1:] >= stops[:-1]) | (ids[1:] == ids[:-1])
    good[1:] &= apart if shard_ids is None else apart | (shard_ids[1:] != shard_ids[:-1])
    if not good.all():
        bad = int(np.argmin(good))
        raise FormatError(
            f"a packed row gives {counts[bad]} items of field {field.name!r} from {starts[bad]} on, which cannot be",
            sample_id=bad,
        )
    return starts.astype(np.int64), stops.astype(np.int64)


def widen_rows(rows: NDArray[Any], own: Schema, schema: Schema) -> NDArray[Any]:
    """Returns rows of an earlier generation, of schema `own`, as rows of the whole schema: what it has not is missing."""
    num_nullable = len(own.nullable_fields)
    wide = np.zeros(len(rows), dtype=row_layout(schema).dtype)
    for name in rows.dtype.names or ():
        if name == VALIDITY:
            # Bits of no field are zero, but who would trust them: here they would be those of later fields.
            bits = np.arange(8 * rows[VALIDITY].shape[1]) < num_nullable
            wide[VALIDITY][:, : rows[VALIDITY].shape[1]] = rows[VALIDITY] & np.packbits(bits, bitorder="little")
        else:
            wide[name] = rows[name]
    return wide
