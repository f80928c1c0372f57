"""Parquet files as tables: row groups are read alone, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shardload.importers.arrow_types import is_media, pyarrow, storage_type
from shardload.importers.files import Opened

_READ_BYTES = 1 << 18
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096


class ParquetTable:
    """An open Parquet file."""

    def __init__(self, opened: Opened) -> None:
        """Reads the footer.

        Args:
            opened: the file; stays the caller's.

        Raises:
            pyarrow.ArrowException: it is not sound.
        """
        import pyarrow.parquet

        source = pyarrow.PythonFile(opened, mode="r")
        # Without pre_buffer a row group is read page by page, however large it is.
        self._file = pyarrow.parquet.ParquetFile(
            source, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        self._footer = self._file.metadata
        self.schema = self._file.schema_arrow
        self.num_rows = self._footer.num_rows
        self._groups = [self._footer.row_group(i) for i in range(self._footer.num_row_groups)]

    def has_nulls(self, number: int) -> bool:
        """Tells whether a column may hold nulls, by the statistics of its parts."""
        column = self.schema.field(number)
        if not column.nullable:
            return False
        counts = [_num_leaves(self.schema.field(i).type) for i in range(len(self.schema))]
        if sum(counts) != self._footer.num_columns:
            return True
        first = sum(counts[:number])
        leaves = list(range(first, first + counts[number]))
        if is_media(column.type):
            # Paths are often missing, and not needed.
            leaves = [first + column.type.get_field_index("bytes")]
        return any(all(_has_nulls(group.column(leaf)) for leaf in leaves) for group in self._groups)

    def batches(self, start: int, stop: int, columns: Sequence[int]) -> Iterator[tuple[int, Any, int]]:
        """Yields the rows of the row groups that start in a range of bytes: first row, batch, bytes of the file.

        Args:
            start: first byte of the range.
            stop: the byte after its last.
            columns: numbers of the columns that are read.
        """
        first = 0
        for number, group in enumerate(self._groups):
            if start <= _start(group) < stop:
                yield from self._group(number, group, first, columns)
            first += group.num_rows

    def _group(self, number: int, group: Any, first: int, columns: Sequence[int]) -> Iterator[tuple[int, Any, int]]:
        num_rows = group.num_rows
        if not num_rows:
            return
        stored = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, group.total_byte_size)))
        names = [self.schema.field(i).name for i in columns]
        done = 0
        for batch in self._file.iter_batches(size, row_groups=[number], columns=names, use_threads=False):
            stop = done + batch.num_rows
            yield first + done, batch, stored * stop // num_rows - stored * done // num_rows
            done = stop
        if done != num_rows:
            raise pyarrow("it").ArrowInvalid(f"row group {number} has {done} rows, not {num_rows} as its footer says")


def _start(group: Any) -> int:
    """Returns the first byte of a row group."""
    if not group.num_columns:
        return 0
    columns = [group.column(i) for i in range(group.num_columns)]
    # A dictionary stands before the data; some writers give 0 where there is none.
    first: int = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    return first


def _has_nulls(column: Any) -> bool:
    statistics = column.statistics
    return bool(statistics is None or not statistics.has_null_count or statistics.null_count > 0)


def _num_leaves(kind: Any) -> int:
    """Returns the columns of a Parquet file that a type takes."""
    kind = storage_type(kind)
    types = pyarrow("it").types
    if types.is_struct(kind):
        return sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_map(kind):
        return _num_leaves(kind.key_type) + _num_leaves(kind.item_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _num_leaves(kind.value_type)
    return 1
