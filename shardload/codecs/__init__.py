"""Codecs by name: how the compressed part of a record is packed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError


class Codec(Protocol):
    """Packs and unpacks byte strings. Safe to use from several threads."""

    def compress(self, data: bytes) -> bytes:
        """Returns `data` as one frame that states its own size."""
        ...

    def decompress(self, frame: bytes | memoryview, num_bytes: int) -> bytes:
        """Returns the content of one whole frame, which must be exactly `num_bytes` long.

        Raises:
            FormatError: the frame is damaged, or of another size; found before memory is taken for it.
        """
        ...

    def decompress_many(
        self, data: Any, starts: NDArray[np.int64], stops: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> list[bytes]:
        """Returns the content of each of many frames.

        Args:
            data: a buffer that holds the frames.
            starts: first byte of each: int64 of shape (frames,).
            stops: byte after each, likewise.
            sizes: bytes of each frame's content, likewise.

        Raises:
            FormatError: as `decompress`; its `sample_id` is the frame's place among the given ones.
        """
        ...


def make_codec(compression: str, dictionary: bytes = b"") -> Codec | None:
    """Returns the codec of a compression such as `zstd:3`, or None for `none`.

    Args:
        compression: `none` or `zstd:<level>`.
        dictionary: a zstd dictionary that every frame is made with, or nothing.

    Raises:
        FormatError: there is no such codec or level.
    """
    name, _, level = compression.partition(":")
    if compression == "none":
        return None
    if name != "zstd":
        raise FormatError(f"unknown compression {compression!r}; use none or zstd:<level>, such as zstd:3")
    # zstandard is loaded only where something is compressed.
    from shardload.codecs.zstd import ZstdCodec

    return ZstdCodec(level, dictionary)
