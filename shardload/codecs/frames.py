"""What the headers of many zstd frames say, read by arrays (RFC 8878, section 3.1.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_MAGIC = 0xFD2FB528
# Bits of the descriptor that no frame here has: the reserved one, a checksum, an id of a dictionary.
_FOREIGN, _SINGLE_SEGMENT = 0x0F, 0x20
_BLOCK_HEADER_BYTES = 3
_RUN, _RESERVED = 1, 3
_MAX_BLOCKS = 16


def are_plain_frames(
    data: NDArray[np.uint8], starts: Int64, stops: Int64, sizes: Int64, max_window_bytes: int
) -> NDArray[np.bool_]:
    """Tells which ranges are each one whole frame that states its size: bool of shape (frames,).

    What is inside the blocks is not looked at, so a frame that is one here may still fail to decompress. Of those that are
    not, some can be frames all the same, of more blocks or written by another hand than frames of records are.

    Args:
        data: uint8 of shape (bytes,) that holds the frames.
        starts: first byte of each: int64 of shape (frames,).
        stops: byte after each, not before its start and within `data`.
        sizes: the bytes that each must state as its content.
        max_window_bytes: the largest window that a frame may ask for.
    """
    if len(data) < 4:
        return np.zeros(len(starts), dtype=np.bool_)
    # Every four bytes as one number. Those past the end of a frame are read as well: how long a header is, it tells itself.
    fours: NDArray[np.uint32] = np.ndarray(len(data) - 3, dtype="<u4", buffer=data, strides=(1,))
    last = len(fours) - 1
    four = fours[np.minimum(starts + 4, last)]
    descriptor, exponent, mantissa = four & 0xFF, (four >> 11 & 31).astype(np.int64), (four >> 8 & 7).astype(np.int64)
    single, kind = descriptor & _SINGLE_SEGMENT != 0, (descriptor >> 6).astype(np.int64)
    # Without a whole segment there is no size at all in the shortest form.
    good = (fours[np.minimum(starts, last)] == _MAGIC) & (descriptor & _FOREIGN == 0) & (single | (kind > 0))
    places = starts + 5 + ~single
    content = fours[np.minimum(places, last)].astype(np.int64)
    content = np.where(kind == 0, content & 0xFF, np.where(kind == 1, (content & 0xFFFF) + 256, content))
    window = np.where(single, sizes, (8 + mantissa) << (exponent + 7))
    places += 1 << kind
    good &= (kind < 3) & (places <= stops) & (content == sizes) & (window <= max_window_bytes)
    return _blocks_end(data, places, stops, good)


def _blocks_end(data: NDArray[np.uint8], starts: Int64, stops: Int64, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tells in which frames the last block ends where the frame does."""
    ended = np.zeros(len(starts), dtype=np.bool_)
    left, places = np.flatnonzero(good), starts[good]
    for _ in range(_MAX_BLOCKS):
        inside = places + _BLOCK_HEADER_BYTES <= stops[left]
        left, places = left[inside], places[inside]
        if not len(left):
            break
        low, middle, high = (data[places + i].astype(np.int64) for i in range(_BLOCK_HEADER_BYTES))
        header = low | middle << 8 | high << 16
        kind = header >> 1 & 3
        places = places + _BLOCK_HEADER_BYTES + np.where(kind == _RUN, 1, header >> 3)
        whole = kind != _RESERVED
        is_last = header & 1 == 1
        ended[left] = whole & is_last & (places == stops[left])
        goes_on = whole & ~is_last
        left, places = left[goes_on], places[goes_on]
    return ended
