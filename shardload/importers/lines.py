"""Lines of plain and compressed files: bounded in length, counted only when a number is asked for."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import Any

from shardload.errors import PackError
from shardload.importers.base import Piece
from shardload.importers.compressed import DamageError, ZstdStream
from shardload.importers.files import Root, check_unchanged, open_file, unreadable
from shardload.quantities import format_bytes

MAX_LINE_BYTES = 256 << 20
"""Longest line that is read; a longer one is passed over rather than filling the memory."""

_READ_BYTES = 1 << 18


class LinePlace:
    """A line as the place of a sample; its number is found when the text is asked for."""

    __slots__ = ("_lines", "_number")

    def __init__(self, lines: PieceLines, number: int) -> None:
        self._lines = lines
        self._number = number

    def __str__(self) -> str:
        return f"{self._lines.name} line {self._lines.first_number() + self._number}"


class PieceLines:
    """The lines that start in a piece of a file; the last may end behind it."""

    def __init__(self, root: Root, location: str, piece: Piece) -> None:
        self.name = os.path.join(location, piece.file.path)
        self._root = root
        self._piece = piece
        self._first_number = 0

    def __iter__(self) -> Iterator[tuple[bytes | None, LinePlace, int]]:
        """Yields each line with its end, its place, and the bytes of the file that it took.

        Of a line over the limit only the place comes; what is left of it is read when the next one is asked for.

        Raises:
            PackError: the file cannot be read, is damaged or cut short, or has changed.
        """
        with open_file(self._root, self._piece.file, self.name) as opened:
            # Held here: a buffered reader closes its file when it goes.
            buffered = io.BufferedReader(opened, _READ_BYTES)
            try:
                yield from self._compressed(buffered) if compression(self.name) else self._plain(buffered)
                check_unchanged(opened, self._piece.file, self.name)
            except (EOFError, gzip.BadGzipFile, zlib.error, DamageError) as error:
                raise PackError(f"{self.name} is damaged or was cut short: {error}") from None
            except OSError as error:
                raise unreadable(self.name, error) from error

    def first_number(self) -> int:
        """Returns the number of the first line of the piece, from 1: counts the line ends before it, once."""
        if not self._first_number:
            self._first_number = self._count_lines()
        return self._first_number

    def _count_lines(self) -> int:
        start, number, last = self._piece.start, 1, b""
        if start == 0:
            return number
        with open_file(self._root, self._piece.file, self.name) as opened:
            lines = io.BufferedReader(opened, _READ_BYTES)
            left = start
            while left and (data := lines.read(min(left, _READ_BYTES))):
                number += data.count(b"\n")
                left -= len(data)
                last = data[-1:]
            # A line that starts before the piece and ends inside it comes before the piece's first line.
            return number + (last != b"\n")

    def _plain(self, lines: io.BufferedReader[Any]) -> Iterator[tuple[bytes | None, LinePlace, int]]:
        at = self._piece.start
        if at:
            # Whether a line starts at the piece's first byte shows in the byte before it.
            lines.seek(at - 1)
            at -= 1
            while part := lines.readline(_READ_BYTES):
                at += len(part)
                if part.endswith(b"\n") or at >= self._piece.stop:
                    break
            if not part.endswith(b"\n"):
                return
        number, before = 0, at
        while at < self._piece.stop and (line := lines.readline(MAX_LINE_BYTES + 1)):
            at += len(line)
            whole = len(line) <= MAX_LINE_BYTES
            yield line if whole else None, LinePlace(self, number), at - before
            number, before = number + 1, at
            if not whole:
                at += _pass_over(lines, line)

    def _compressed(self, file: io.BufferedReader[Any]) -> Iterator[tuple[bytes | None, LinePlace, int]]:
        if self._piece.file.num_bytes == 0:
            raise EOFError("it is empty")
        stream: Any = gzip.GzipFile(fileobj=file) if compression(self.name) == "gz" else ZstdStream(file)
        lines = io.BufferedReader(stream, _READ_BYTES)
        number, before = 0, 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            at, whole = file.tell(), len(line) <= MAX_LINE_BYTES
            yield line if whole else None, LinePlace(self, number), at - before
            number, before = number + 1, at
            if not whole:
                _pass_over(lines, line)


def _pass_over(lines: io.BufferedReader[Any], part: bytes) -> int:
    """Reads on to the end of a line that was begun, piece by piece; returns how many bytes that took."""
    num_bytes = 0
    while part and not part.endswith(b"\n"):
        part = lines.readline(_READ_BYTES)
        num_bytes += len(part)
    return num_bytes


def too_long() -> str:
    """Returns what is wrong with a line over the limit."""
    return f"is longer than {format_bytes(MAX_LINE_BYTES)}, the limit for a line"


def compression(path: str) -> str:
    """Returns `gz`, `zst` or nothing, by the suffix of a file."""
    suffix = path.lower().rpartition(".")[2]
    return suffix if suffix in ("gz", "zst") else ""
