"""Arrow IPC files and streams as tables (Feather of version 2 is such a file): record batches are read alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from shardload.importers.arrow_messages import DICTIONARY, RECORDS, MessageDamage, read_messages
from shardload.importers.arrow_types import is_media, pyarrow
from shardload.importers.files import Opened, read_at

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_SLICE_ROWS = 1024


class ArrowTable:
    """An open Arrow file or stream."""

    def __init__(self, opened: Opened) -> None:
        """Finds its messages.

        Args:
            opened: the file; stays the caller's.

        Raises:
            MessageDamage: it is not sound.
            pyarrow.ArrowException: its schema is not sound.
        """
        self._opened = opened
        self._messages = read_messages(opened, opened.seek(0, io.SEEK_END))
        self._records = [message for message in self._messages if message.kind == RECORDS]
        self.schema = self._stream([self._messages[0]], None).schema
        self.num_rows = sum(message.num_rows for message in self._records)

    def has_nulls(self, number: int) -> bool:
        """Tells whether a column holds nulls, as its record batches say."""
        column = self.schema.field(number)
        if not column.nullable:
            return False
        counts = [_num_nodes(self.schema.field(i).type) for i in range(len(self.schema))]
        node = sum(counts[:number])
        nodes = [node]
        if is_media(column.type):
            inner = [column.type.field(i) for i in range(column.type.get_field_index("bytes"))]
            nodes.append(node + 1 + sum(_num_nodes(one.type) for one in inner))
        return any(
            len(one.nulls) != sum(counts) or any(one.nulls[number] > 0 for number in nodes) for one in self._records
        )

    def batches(self, start: int, stop: int, columns: Sequence[int]) -> Iterator[tuple[int, Any, int]]:
        """Yields the rows of the record batches that start in a range of bytes: first row, batch, bytes of the file.

        Args:
            start: first byte of the range.
            stop: the byte after its last.
            columns: numbers of the columns that are read.
        """
        wanted = [one for one in self._records if start <= one.start < stop]
        if not wanted:
            return
        last = wanted[-1].start
        dictionaries = [one for one in self._messages if one.kind == DICTIONARY and one.start < last]
        needed = sorted([self._messages[0], *dictionaries, *wanted], key=lambda one: one.start)
        stream = self._stream(needed, columns)
        first = sum(one.num_rows for one in self._records if one.start < wanted[0].start)
        for message in wanted:
            batch = stream.read_next_batch()
            # Its offsets come from the file and lead into memory.
            batch.validate(full=True)
            if batch.num_rows != message.num_rows:
                raise MessageDamage(f"the record batch at byte {message.start} has {batch.num_rows} rows")
            stored, num_rows = message.stop - message.start, batch.num_rows
            for low in range(0, num_rows, _SLICE_ROWS):
                high = min(low + _SLICE_ROWS, num_rows)
                yield first + low, batch.slice(low, high - low), stored * high // num_rows - stored * low // num_rows
            first += num_rows

    def _stream(self, messages: Sequence[Any], columns: Sequence[int] | None) -> Any:
        module = pyarrow("it")
        source = io.BufferedReader(_Spliced(self._opened, [(one.start, one.stop) for one in messages]))
        options = module.ipc.IpcReadOptions(
            use_threads=False, included_fields=None if columns is None else list(columns)
        )
        return module.ipc.open_stream(module.PythonFile(source, mode="r"), options=options)


class _Spliced(io.RawIOBase):
    """Ranges of a file one after the other, and the mark of the end of a stream."""

    def __init__(self, opened: Opened, ranges: Sequence[tuple[int, int]]) -> None:
        self._opened = opened
        self._ranges = list(reversed(ranges))
        self._end = memoryview(_END)

    def readable(self) -> bool:
        """Returns True, for the buffer above."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the front; returns how many bytes, 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._ranges:
            count = min(len(view), len(self._end))
            view[:count], self._end = self._end[:count], self._end[count:]
            return count
        start, stop = self._ranges.pop()
        data = read_at(self._opened, min(len(view), stop - start), start)
        count = len(data)
        view[:count] = data
        if not count:
            raise MessageDamage("it was cut short while it was being read")
        if start + count < stop:
            self._ranges.append((start + count, stop))
        return count


def _num_nodes(kind: Any) -> int:
    """Returns the columns that a type takes in a record batch, those within it included."""
    types = pyarrow("it").types
    if types.is_dictionary(kind):
        return 1
    kind = kind.storage_type if isinstance(kind, pyarrow("it").BaseExtensionType) else kind
    if types.is_dictionary(kind):
        return 1
    if types.is_struct(kind) or types.is_union(kind):
        return 1 + sum(_num_nodes(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_map(kind):
        return 2 + _num_nodes(kind.key_type) + _num_nodes(kind.item_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return 1 + _num_nodes(kind.value_type)
    return 1
