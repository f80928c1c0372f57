"""CRC32C over bytes that come in pieces of any size."""

from __future__ import annotations

import numpy as np

from shardload.format.crc32c import crc32c

_PIECE_BYTES = 1 << 20
"""Summed at once: where the interpreter's lock is held for it, for 0.15 ms."""


class Crc32c:
    """A sum as `FileWriter` takes it."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Takes more bytes in."""
        view = np.frombuffer(data, dtype=np.uint8)
        for start in range(0, len(view), _PIECE_BYTES):
            self.value = crc32c(self.value, view[start : start + _PIECE_BYTES])

    def digest(self) -> bytes:
        """Returns the sum, little-endian."""
        return int(self.value).to_bytes(4, "little")
