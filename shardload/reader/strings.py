"""Byte strings of many samples that lie in one, taken out when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.ragged import Ragged, join_ragged
from shardload.format.schema import Field
from shardload.memory.byte_strings import slices

Int64 = NDArray[np.int64]


class ByteStrings(Sequence[bytes]):
    """Values of one field that were read together: each is copied once, when it is asked for.

    Keeps all that was read with them. Never changes.
    """

    __slots__ = ("_pieces", "_starts", "_stops", "_which", "_whole")

    def __init__(self, pieces: Sequence[bytes], which: Int64, starts: Int64, stops: Int64, whole: bool = False) -> None:
        """Describes the values.

        Args:
            pieces: what they lie in.
            which: number of the piece of each: int64 of shape (values,).
            starts: first byte of each in its piece, likewise.
            stops: byte after each, likewise.
            whole: whether each is all of its piece.
        """
        self._pieces = pieces
        self._whole = whole
        self._which = which
        self._starts = starts
        self._stops = stops

    @classmethod
    def of(cls, values: Sequence[bytes], lengths: Int64 | None = None) -> ByteStrings:
        """Returns byte strings as they are; `lengths`, where they are known, spare counting."""
        if lengths is None:
            lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        return cls(values, np.arange(len(values)), np.zeros(len(values), dtype=np.int64), lengths, whole=True)

    @classmethod
    def joined(cls, parts: Sequence[ByteStrings]) -> ByteStrings:
        """Returns the values of several, one after the other."""
        first = np.cumsum([0, *(len(part._pieces) for part in parts)])
        which = np.concatenate([part._which + shift for part, shift in zip(parts, first[:-1], strict=True)])
        starts, stops = (np.concatenate([getattr(part, edge) for part in parts]) for edge in ("_starts", "_stops"))
        pieces = [piece for part in parts for piece in part._pieces]
        return cls(pieces, which, starts, stops, all(part._whole for part in parts))

    def copied(self) -> ByteStrings:
        """Returns the values on their own, each of them made now."""
        return self if self._whole else ByteStrings.of(self.tolist(), self.lengths())

    def lengths(self) -> Int64:
        """Returns the bytes of each: int64 of shape (values,)."""
        return self._stops - self._starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice | Int64) -> ByteStrings: ...
    def __getitem__(self, index: Any) -> bytes | ByteStrings:
        which, starts, stops = self._which[index], self._starts[index], self._stops[index]
        if isinstance(which, np.ndarray):
            return ByteStrings(self._pieces, which, starts, stops, self._whole)
        return self._pieces[int(which)][int(starts) : int(stops)]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.tolist())

    def tolist(self) -> list[bytes]:
        """Returns all values."""
        if self._whole:
            return [self._pieces[i] for i in self._which.tolist()]
        if len(self._pieces) == 1:
            return slices(self._pieces[0], self._starts, self._stops)
        spans = zip(self._which.tolist(), self._starts.tolist(), self._stops.tolist(), strict=True)
        return [self._pieces[i][start:stop] for i, start, stop in spans]

    def texts(self) -> list[str]:
        """Returns all values as text.

        Raises:
            UnicodeDecodeError: one is no UTF-8.
        """
        return [value.decode() for value in self.tolist()]


def joined_values(field: Field, values: ByteStrings, sample_ids: Int64, location: str) -> ByteStrings | Ragged:
    """Returns the values of a field as they are in a batch: those of ragged fields end to end.

    Raises:
        FormatError: a value is not whole items; names dataset and sample.
    """
    if not field.ragged:
        return values
    try:
        return join_ragged(field, values.tolist())
    except FormatError as error:
        sample_id = int(sample_ids[error.sample_id or 0])
        raise FormatError(
            f"{location}: {error.message} (sample {sample_id})", dataset=location, sample_id=sample_id
        ) from None
