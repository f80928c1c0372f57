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
from shardload.importers.files import check_unchanged, open_file, unreadable
from shardload.quantities import format_bytes

MAX_LINE_BYTES = 256 << 20
"""Longest line that is read; a longer one is an error rather than a full memory."""

_READ_BYTES = 1 << 18
# A zstd frame can grow 30,000 times: what is fed at once bounds what comes out at once.
_FED_BYTES = 4096


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

    def __init__(self, root: str, location: str, piece: Piece) -> None:
        self.name = os.path.join(location, piece.file.path)
        self._root = root
        self._piece = piece

    def __iter__(self) -> Iterator[tuple[bytes, LinePlace, int]]:
        """Yields each line with its end, its place, and the bytes of the file that it took.

        Raises:
            PackError: the file cannot be read, is damaged or cut short, has changed, or has a line over the limit.
        """
        with open_file(self._root, self._piece.file, self.name) as opened:
            # Held here: a buffered reader closes its file when it goes.
            buffered = io.BufferedReader(opened, _READ_BYTES)
            try:
                yield from self._compressed(buffered) if compression(self.name) else self._plain(buffered)
                check_unchanged(opened, self._piece.file, self.name)
            except (EOFError, gzip.BadGzipFile, zlib.error, _DamageError) as error:
                raise PackError(f"{self.name} is damaged or was cut short: {error}") from None
            except OSError as error:
                raise unreadable(self.name, error) from error

    def first_number(self) -> int:
        """Returns the number of the first line of the piece, from 1: counts the line ends before it."""
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

    def _plain(self, lines: io.BufferedReader[Any]) -> Iterator[tuple[bytes, LinePlace, int]]:
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
        number = 0
        while at < self._piece.stop and (line := self._line(lines, number)):
            at += len(line)
            yield line, LinePlace(self, number), len(line)
            number += 1

    def _compressed(self, file: io.BufferedReader[Any]) -> Iterator[tuple[bytes, LinePlace, int]]:
        if self._piece.file.num_bytes == 0:
            raise EOFError("it is empty")
        stream: Any = gzip.GzipFile(fileobj=file) if compression(self.name) == "gz" else _ZstdStream(file)
        lines = io.BufferedReader(stream, _READ_BYTES)
        number, before = 0, 0
        while line := self._line(lines, number):
            at = file.tell()
            yield line, LinePlace(self, number), at - before
            number, before = number + 1, at

    def _line(self, lines: io.BufferedReader[Any], number: int) -> bytes:
        line = lines.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise PackError(
                f"{LinePlace(self, number)} is longer than {format_bytes(MAX_LINE_BYTES)}, the limit for a line"
            )
        return line


def compression(path: str) -> str:
    """Returns `gz`, `zst` or nothing, by the suffix of a file."""
    suffix = path.lower().rpartition(".")[2]
    return suffix if suffix in ("gz", "zst") else ""


class _DamageError(Exception):
    """The compressed stream is not sound."""


class _ZstdStream(io.RawIOBase):
    """The content of one zstd frame after another. zstandard's own reader ends without an error in a cut frame."""

    def __init__(self, compressed: io.BufferedReader[Any]) -> None:
        self._compressed = compressed
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            if not self._decompress():
                return 0
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bool:
        """Makes the next bytes ready; tells whether the file goes on."""
        import zstandard

        data = self._left or self._compressed.read(_FED_BYTES)
        self._left = b""
        if not data:
            if self._frame is not None:
                raise _DamageError("a zstd frame has no end")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(data))
        except zstandard.ZstdError as error:
            raise _DamageError(str(error)) from None
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return True
