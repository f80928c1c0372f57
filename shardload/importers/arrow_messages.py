"""The messages of an Arrow IPC file or stream: where each lies, found without reading what they hold.

Both formats are rows of messages: a prefix of 8 bytes, metadata as a flatbuffer, a body. A file has a magic before them
and a footer behind them, which is not needed here.
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardload.importers.files import Opened, read_at

MAGIC = b"ARROW1"
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3

_CONTINUATION = 0xFFFFFFFF
_MAX_METADATA_BYTES = 256 << 20


class MessageDamage(Exception):
    """The file is not sound; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a file."""

    kind: int
    start: int
    stop: int
    """The byte after its body."""
    num_rows: int = 0
    nulls: tuple[int, ...] = ()
    """Nulls of each column and of those within it, depth first."""


def read_messages(opened: Opened, num_bytes: int) -> list[Message]:
    """Returns all messages of a file.

    Args:
        opened: the file.
        num_bytes: its size.

    Raises:
        MessageDamage: it is not sound, or ends early.
    """
    head = read_at(opened, 8, 0)
    if head[:4] == b"FEA1":
        raise MessageDamage(
            "it is a Feather file of version 1, which pyarrow.feather.read_table still reads: write it again"
        )
    at, end = (8, num_bytes - len(MAGIC)) if head[:6] == MAGIC else (0, num_bytes)
    if at and (num_bytes < 16 or read_at(opened, len(MAGIC), end) != MAGIC):
        raise MessageDamage("it was cut short: the magic at its end is missing")
    messages: list[Message] = []
    while True:
        prefix = read_at(opened, 8, at)
        if len(prefix) < 8:
            raise MessageDamage(f"it was cut short at byte {at}: the mark of its end is missing")
        mark, length = struct.unpack("<II", prefix)
        if mark != _CONTINUATION:
            older = " (it may be older than Arrow 0.15)" if not messages else ""
            raise MessageDamage(f"at byte {at} there is no message{older}")
        if length == 0:
            break
        if length > min(_MAX_METADATA_BYTES, num_bytes):
            raise MessageDamage(f"the message at byte {at} says that it is longer than the file")
        message = _parse(read_at(opened, length, at + 8), at, length)
        if message.stop > end:
            raise MessageDamage(f"it was cut short in the message at byte {at}")
        messages.append(message)
        at = message.stop
    if not messages or messages[0].kind != SCHEMA or any(one.kind not in (DICTIONARY, RECORDS) for one in messages[1:]):
        raise MessageDamage("its messages are not a schema and then tables")
    return messages


def _parse(metadata: bytes, start: int, length: int) -> Message:
    try:
        table = _Table(metadata, _number("<I", metadata, 0))
        kind, body = table.number(1, "<B"), table.number(3, "<q")
        if body < 0:
            raise MessageDamage(f"the message at byte {start} is broken")
        stop = start + 8 + length + body
        if kind != RECORDS:
            return Message(kind, start, stop)
        batch = table.table(2)
        return Message(kind, start, stop, batch.number(0, "<q"), batch.nulls(1))
    except struct.error:
        raise MessageDamage(f"the message at byte {start} is broken") from None


def _number(code: str, data: bytes, at: int) -> int:
    if at < 0:
        raise struct.error
    number: int = struct.unpack_from(code, data, at)[0]
    return number


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._offsets = at - _number("<i", data, at)
        self._size = _number("<H", data, self._offsets)

    def number(self, field: int, code: str) -> int:
        """Returns a number; 0 where it is left out."""
        place = self._place(field)
        return _number(code, self._data, place) if place else 0

    def table(self, field: int) -> _Table:
        """Returns the table that a field leads to."""
        place = self._place(field)
        if not place:
            raise struct.error
        return _Table(self._data, place + _number("<I", self._data, place))

    def nulls(self, field: int) -> tuple[int, ...]:
        """Returns the second of each pair of numbers in a vector: length and nulls of a column."""
        place = self._place(field)
        if not place:
            return ()
        vector = place + _number("<I", self._data, place)
        count = _number("<I", self._data, vector)
        if count * 16 > len(self._data):
            raise struct.error
        return tuple(struct.unpack_from(f"<{2 * count}q", self._data, vector + 4)[1::2])

    def _place(self, field: int) -> int:
        slot = 4 + 2 * field
        offset = _number("<H", self._data, self._offsets + slot) if slot + 2 <= self._size else 0
        return self._at + offset if offset else 0
