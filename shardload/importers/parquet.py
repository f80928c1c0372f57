"""Parquet files as tables: row groups are read alone, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shardload.importers.arrow_types import is_media, pyarrow, storage_type
from shardload.importers.files import Opened

_READ_BYTES = 1 << 18
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096
# What a batch may come to where pages say little of it: a value that stands once in them may come in every row.
_REPEATED_BYTES = 64 << 20
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


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

        self._source = pyarrow.PythonFile(opened, mode="r")
        # Without pre_buffer a row group is read page by page, however large it is.
        self._how = {"buffer_size": _READ_BYTES, "pre_buffer": False, "page_checksum_verification": True}
        self._file = pyarrow.parquet.ParquetFile(self._source, **self._how)
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
        names = [self.schema.field(i).name for i in columns]
        size = self._batch_rows(number, group, columns)
        done = 0
        for batch in self._file.iter_batches(size, row_groups=[number], columns=names, use_threads=False):
            stop = done + batch.num_rows
            yield first + done, batch, stored * stop // num_rows - stored * done // num_rows
            done = stop
        if done != num_rows:
            raise pyarrow("it").ArrowInvalid(f"row group {number} has {done} rows, not {num_rows} as its footer says")

    def _batch_rows(self, number: int, group: Any, columns: Sequence[int]) -> int:
        """Returns how many rows of a group are read at once, so that they take little memory also where values repeat."""
        leaves = self._leaves(columns)
        # Of values of one width it is known what they take, however little their pages take.
        widths = 0
        for leaf in leaves:
            part = group.column(leaf)
            widths += part.num_values * _WIDTHS.get(part.physical_type, self._footer.schema.column(leaf).length or 0)
        num_rows: int = group.num_rows
        rows: int = max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, group.total_byte_size, widths)))
        for part in map(group.column, leaves):
            values = max(1, -(-part.num_values // num_rows))
            if _repeats(part) and rows * values * part.total_uncompressed_size > _REPEATED_BYTES:
                rows = min(rows, max(1, _REPEATED_BYTES // (values * self._longest(number, part))))
        return rows

    def _leaves(self, columns: Sequence[int]) -> list[int]:
        """Returns the numbers of the leaves of columns; all where it is not known which are whose."""
        counts = [_num_leaves(self.schema.field(i).type) for i in range(len(self.schema))]
        if sum(counts) != self._footer.num_columns:
            return list(range(self._footer.num_columns))
        return [sum(counts[:column]) + leaf for column in columns for leaf in range(counts[column])]

    def _longest(self, number: int, leaf: Any) -> int:
        """Returns the most bytes of a value that may stand in a column more often than in its pages."""
        most: int = max(1, leaf.total_uncompressed_size)
        if "DELTA_BYTE_ARRAY" in leaf.encodings:
            return most
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet

        path = leaf.path_in_schema
        try:
            file = pa.parquet.ParquetFile(self._source, metadata=self._footer, read_dictionary=[path], **self._how)
            batch = next(file.iter_batches(1, row_groups=[number], columns=[path], use_threads=False))
            lengths = pa.compute.binary_length(_dictionary(batch.column(0)))
        # What cannot be read alone, such as the keys of a map, or at all, which shows when it is read.
        except (pa.ArrowException, AttributeError, IndexError, StopIteration):
            return most
        # Nothing is read of a dictionary before it is needed, as for a list that is empty.
        longest = pa.compute.max(lengths).as_py()
        return most if longest is None else max(1, int(longest))


def _repeats(leaf: Any) -> bool:
    """Tells whether values of a column may stand in it more often than in its pages."""
    return leaf.physical_type == "BYTE_ARRAY" and any(
        "DICTIONARY" in name or name == "DELTA_BYTE_ARRAY" for name in leaf.encodings
    )


def _dictionary(array: Any) -> Any:
    """Returns the dictionary of the one leaf of a column."""
    while not hasattr(array, "dictionary"):
        array = array.field(0) if hasattr(array, "field") else array.values
    return array.dictionary


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
