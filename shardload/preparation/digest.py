"""What tells samples apart: a digest of the bytes that their fields are stored as."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field
from shardload.preparation.steps import Values
from shardload.writer.values import ValueMismatch, encoder, scalar_code

DIGEST_TYPE = "uint64[2]"
"""Type of a field that holds digests: 128 bits."""
_LENGTH = struct.Struct("<Q")
_MISSING = b"\0"


class ContentDigest:
    """Digests of some fields of samples: equal where, and only where, the fields are stored as the same bytes.

    Of 128 bits of BLAKE2b: among 10^10 different samples two of one digest are there with a probability of 10^-19.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = [(field.name, encoder(field), _as_bytes(field)) for field in fields]

    def of(self, values: Values) -> NDArray[np.uint64]:
        """Returns the digest of a sample: uint64 of shape (2,); 0 where a value does not fit its field."""
        digest = hashlib.blake2b(digest_size=16)
        for name, encode, as_bytes in self._fields:
            value = values.get(name)
            if value is None:
                digest.update(_MISSING)
                continue
            try:
                data = as_bytes(encode(value))
            except ValueMismatch:
                # Whoever encodes the sample says what is wrong with it.
                return np.zeros(2, np.uint64)
            digest.update(b"\1" + _LENGTH.pack(len(data)))
            digest.update(data)
        return np.frombuffer(digest.digest(), "<u8")


def _as_bytes(field: Field) -> Callable[[Any], bytes]:
    """Returns what makes bytes of what is stored for a field: numbers come as numbers."""
    if field.listed or not field.numeric or field.shape or field.ragged:
        return bytes
    number = struct.Struct("<" + scalar_code(field))
    return lambda stored: stored if isinstance(stored, bytes) else number.pack(stored)
