"""The packed row: one fixed-size row a sample (FORMAT.md section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout
from shardload.format.schema import Field, Schema

# Column names of the row that are not fields start with an underscore, which no field name does.
PLACE, STORED, RAW, VALIDITY = "_place", "_stored", "_raw", "_validity"


def sum_column(field: Field) -> str:
    """Returns the name of the row's column that holds a wide field's checksum."""
    return f"_sum_{field.name}"


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
