"""The zstd codec, on the zstandard package."""

from __future__ import annotations

import re
import threading
from typing import Any

import zstandard

from shardload.errors import FormatError

MAX_WINDOW_BYTES = 1 << 27
"""Largest window a frame may ask for: what zstd's highest level writes."""

_MAX_RATIO = 1 << 15
"""No frame holds more times its length: a block of at most 128 KiB takes at least 4 bytes."""


class ZstdCodec:
    """One zstd frame a record: content size stated, no checksum of its own (the record has one)."""

    def __init__(self, level: str, dictionary: bytes = b"") -> None:
        low, high = -100, zstandard.MAX_COMPRESSION_LEVEL
        if re.fullmatch("-?[0-9]{1,3}", level) is None or not low <= int(level) <= high:
            raise FormatError(f"zstd level {level!r} must be an integer from {low} to {high}, as in zstd:3")
        self.level = int(level)
        self.dictionary = dictionary
        self._dictionary: Any = None
        # A context may not be used by two threads at once, and making one costs more than a small frame.
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[ZstdCodec], tuple[str, bytes]]:
        return ZstdCodec, (str(self.level), self.dictionary)

    def compress(self, data: bytes) -> bytes:
        """Returns `data` as one frame."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self.level,
                dict_data=self._prepared(),
                write_content_size=True,
                write_checksum=False,
                write_dict_id=False,
            )
        return bytes(compressor.compress(data))

    def decompress(self, frame: bytes | memoryview, num_bytes: int) -> bytes:
        """Returns the content of one whole frame of `num_bytes`."""
        try:
            # The size in the frame is compared first: with a size stated, zstandard allocates it whatever the limit.
            facts = zstandard.get_frame_parameters(frame)
            if facts.content_size != num_bytes or facts.window_size > MAX_WINDOW_BYTES or facts.dict_id:
                raise FormatError(
                    f"a zstd frame of {facts.content_size} bytes (window {facts.window_size}, dictionary {facts.dict_id}) "
                    f"stands where one of {num_bytes} was written"
                )
            if num_bytes > len(frame) * _MAX_RATIO:
                raise FormatError(f"a zstd frame of {len(frame)} bytes cannot hold {num_bytes}")
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = self._local.decompressor = zstandard.ZstdDecompressor(dict_data=self._prepared())
            content = decompressor.decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"a zstd frame does not decompress: {error}") from None
        if len(content) != num_bytes:
            raise FormatError(f"a zstd frame gave {len(content)} bytes instead of {num_bytes}")
        return bytes(content)

    def _prepared(self) -> Any:
        """Returns the dictionary as zstd wants it, digested once for all threads."""
        if self.dictionary and self._dictionary is None:
            # Other bytes would be taken for a dictionary of text alone, and frames come out wrong without an error.
            prepared = zstandard.ZstdCompressionDict(self.dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
            prepared.precompute_compress(level=self.level)
            self._dictionary = prepared
        return self._dictionary


def library_version() -> str:
    """Returns the version of libzstd."""
    return ".".join(map(str, zstandard.ZSTD_VERSION))
