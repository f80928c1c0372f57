"""Compressed streams that are told apart from damaged ones."""

from __future__ import annotations

import io
from typing import Any

# A zstd frame can grow 30,000 times: what is fed at once bounds what comes out at once.
_FED_BYTES = 4096


class DamageError(Exception):
    """The compressed stream is not sound."""


class ZstdStream(io.RawIOBase):
    """The content of one zstd frame after another. zstandard's own reader ends without an error in a cut frame."""

    def __init__(self, compressed: io.BufferedReader[Any]) -> None:
        self._compressed = compressed
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Returns True, for the buffer above."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the front; returns how many bytes, 0 at the end.

        Raises:
            DamageError: the stream is broken or has no end.
        """
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
                raise DamageError("a zstd frame has no end")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(data))
        except zstandard.ZstdError as error:
            raise DamageError(str(error)) from None
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return True
