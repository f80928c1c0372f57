"""Keys: how a sample is found by the value of its key field (FORMAT.md section 9)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.schema import Field

KEY_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("local_id", "<u4")])
"""The digest as two numbers, so that sorting by them sorts by the bytes, and the sample's number in the shard."""


def key_bytes(field: Field, value: object) -> bytes:
    """Returns a key as it is stored.

    Raises:
        TypeError: the value is not of the key's type.
    """
    if field.kind == "bytes" and isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if field.kind == "str" and isinstance(value, str):
        return value.encode()
    if field.fixed and isinstance(value, int | np.integer) and not isinstance(value, bool):
        try:
            return int(value).to_bytes(field.num_bytes, "little", signed=field.dtype.kind == "i")
        except OverflowError:
            pass
    raise TypeError(f"{value!r:.60} is no key: field {field.name!r} is {field.type}")


def key_digest(stored: bytes) -> bytes:
    """Returns the first 16 bytes of the SHA-256 of a key as it is stored."""
    return hashlib.sha256(stored).digest()[: layout.KEY_DIGEST_BYTES]


def encode_keys(digests: Sequence[bytes]) -> bytes:
    """Returns the content of a shard's section of keys, from the digests in the order of the samples."""
    entries = np.empty(len(digests), dtype=KEY_ENTRY)
    pairs = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
    entries["high"], entries["low"] = pairs[:, 0], pairs[:, 1]
    entries["local_id"] = np.arange(len(digests))
    return entries[np.lexsort((entries["low"], entries["high"]))].tobytes()


def decode_keys(data: bytes) -> NDArray[np.void]:
    """Returns a section's entries: structured array of dtype `KEY_ENTRY`, of shape (samples,).

    Raises:
        FormatError: they are not sorted, or do not name each sample once.
    """
    entries = np.frombuffer(data, dtype=KEY_ENTRY)
    high, low = entries["high"].astype(np.uint64), entries["low"].astype(np.uint64)
    rising = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    named = np.zeros(len(entries), dtype=np.bool_)
    named[entries["local_id"][entries["local_id"] < len(entries)]] = True
    if not rising.all() or not named.all():
        raise FormatError("the keys are not sorted, or do not name each sample once")
    return entries


def find_keys(entries: NDArray[np.void], digests: Sequence[bytes]) -> NDArray[np.int64]:
    """Returns the number in the shard of the sample of each digest, -1 where there is none: int64 of shape (digests,)."""
    wanted = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    high, low = entries["high"].astype(np.uint64), entries["low"].astype(np.uint64)
    found = np.full(len(digests), -1, dtype=np.int64)
    starts, stops = np.searchsorted(high, wanted[:, 0]), np.searchsorted(high, wanted[:, 0], side="right")
    for slot in np.flatnonzero(starts < stops):
        # Nearly always one entry: two keys that share 64 bits are rare, but not impossible.
        same = np.flatnonzero(low[starts[slot] : stops[slot]] == wanted[slot, 1])
        if len(same):
            found[slot] = entries["local_id"][starts[slot] + same[0]]
    return found
