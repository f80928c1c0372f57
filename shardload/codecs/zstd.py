"""The zstd codec, on the zstandard package."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from shardload.codecs.frames import are_plain_frames
from shardload.errors import FormatError

MAX_WINDOW_BYTES = 1 << 27
"""Largest window a frame may ask for: what zstd's highest level writes."""

_MAX_RATIO = 1 << 15
"""No frame holds more times its length: a block of at most 128 KiB takes at least 4 bytes."""

_TAKES_MANY = {"buffer_types", "multi_decompress_to_buffer"} <= set(zstandard.backend_features)
"""Whether this build of zstandard decompresses many frames a call; that of its cffi backend does not."""
_FRAMES_A_CALL = 256
"""What a call returns is memory of its own: small enough to be the same one each time."""

Int64 = NDArray[np.int64]


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
            content = self._decompressor().decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"a zstd frame does not decompress: {error}") from None
        if len(content) != num_bytes:
            raise FormatError(f"a zstd frame gave {len(content)} bytes instead of {num_bytes}")
        return bytes(content)

    def decompress_many(self, data: Any, starts: Int64, stops: Int64, sizes: Int64) -> list[bytes]:
        """Returns the content of each of many frames.

        Frames are refused by what their headers say before memory is taken for them; whatever is not as usual is left to
        `decompress`, which tells what is wrong.
        """
        if _TAKES_MANY and len(starts) > 1 and (sizes <= (stops - starts) * _MAX_RATIO).all():
            frames = np.frombuffer(data, dtype=np.uint8)
            if are_plain_frames(frames, starts, stops, sizes, MAX_WINDOW_BYTES).all():
                with contextlib.suppress(zstandard.ZstdError):
                    return self._by_calls(data, starts, stops, sizes)
        contents, view = [], memoryview(data)
        for i, (start, stop, size) in enumerate(zip(starts.tolist(), stops.tolist(), sizes.tolist(), strict=True)):
            try:
                contents.append(self.decompress(view[start:stop], size))
            except FormatError as error:
                error.sample_id = i
                raise
        return contents

    def _by_calls(self, data: Any, starts: Int64, stops: Int64, sizes: Int64) -> list[bytes]:
        """Decompresses frames by some calls that let other threads run."""
        segments = np.stack([starts, stops - starts], axis=1).astype(np.uint64)
        expected, decompressor, contents = sizes.astype(np.uint64), self._decompressor(), []
        for first in range(0, len(starts), _FRAMES_A_CALL):
            part = slice(first, first + _FRAMES_A_CALL)
            frames = zstandard.BufferWithSegments(data, segments[part].tobytes())
            # One thread, which is this one: those that read are many already.
            found = decompressor.multi_decompress_to_buffer(
                frames, decompressed_sizes=expected[part].tobytes(), threads=0
            )
            contents += [found[i].tobytes() for i in range(len(found))]
        return contents

    def _decompressor(self) -> Any:
        """Returns the calling thread's own."""
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor(dict_data=self._prepared())
        return decompressor

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
