"""The zstd codec, on the zstandard package."""

from __future__ import annotations

import re
import threading

import zstandard

from shardload.errors import FormatError

MAX_WINDOW_BYTES = 1 << 27
"""Largest window a frame may ask for: what zstd's highest level writes."""


class ZstdCodec:
    """One zstd frame a record: content size stated, no checksum of its own (the record has one)."""

    def __init__(self, level: str) -> None:
        low, high = -100, zstandard.MAX_COMPRESSION_LEVEL
        if re.fullmatch("-?[0-9]{1,3}", level) is None or not low <= int(level) <= high:
            raise FormatError(f"zstd level {level!r} must be an integer from {low} to {high}, as in zstd:3")
        self.level = int(level)
        # A context may not be used by two threads at once, and making one costs more than a small frame.
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[ZstdCodec], tuple[str]]:
        return ZstdCodec, (str(self.level),)

    def compress(self, data: bytes) -> bytes:
        """Returns `data` as one frame."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self.level, write_content_size=True, write_checksum=False, write_dict_id=False
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
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
            content = decompressor.decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"a zstd frame does not decompress: {error}") from None
        if len(content) != num_bytes:
            raise FormatError(f"a zstd frame gave {len(content)} bytes instead of {num_bytes}")
        return bytes(content)


def library_version() -> str:
    """Returns the version of libzstd."""
    return ".".join(map(str, zstandard.ZSTD_VERSION))
