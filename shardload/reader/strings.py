"""Byte strings of many samples that lie in one, taken out when they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.ragged import Ragged, join_ragged
from shardload.format.schema import Field
from shardload.memory.ranges import slices, texts
from shardload.reader.pieces import inverse

Int64 = NDArray[np.int64]


class ByteStrings(Sequence[bytes]):
    """Values of one field that were read together: each is copied once, when it is asked for.

    Keeps all that was read with them. Never changes.
    """

    __slots__ = ("_pieces", "_starts", "_stops", "_which", "_whole")

    def __init__(
        self, pieces: Sequence[Any], which: Int64 | None, starts: Int64, stops: Int64, whole: bool = False
    ) -> None:
        """Describes the values.

        Args:
            pieces: what they lie in.
            which: number of the piece of each: int64 of shape (values,); None where each is all of its own piece, in turn.
            starts: first byte of each in its piece, likewise.
            stops: byte after each, likewise.
            whole: whether each is all of its piece.
        """
        self._pieces = pieces
        self._whole = whole or which is None
        self._which = which
        self._starts = starts
        self._stops = stops

    @classmethod
    def of(cls, values: Sequence[Any], lengths: Int64 | None = None) -> Self:
        """Returns values as they are; their `lengths` in bytes, where they are known, spare counting."""
        if lengths is None:
            lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        return cls(values, None, np.zeros(len(values), dtype=np.int64), lengths)

    @staticmethod
    def joined(parts: Sequence[ByteStrings]) -> ByteStrings:
        """Returns the values of several, one after the other."""
        kind = Texts if all(isinstance(part, Texts) for part in parts) else ByteStrings
        parts = [part if kind is Texts else part.stored() for part in parts]
        first = np.cumsum([0, *(len(part._pieces) for part in parts)])
        which = np.concatenate([part._numbers() + shift for part, shift in zip(parts, first[:-1], strict=True)])
        starts, stops = (np.concatenate([getattr(part, edge) for part in parts]) for edge in ("_starts", "_stops"))
        pieces = [piece for part in parts for piece in part._pieces]
        return kind(pieces, which, starts, stops, all(part._whole for part in parts))

    def stored(self) -> ByteStrings:
        """Returns the values as bytes."""
        return self

    def copied(self, as_text: bool = False) -> ByteStrings:
        """Returns the values on their own, each of them made now: as text at once, if they are and it is asked for."""
        if as_text:
            with contextlib.suppress(UnicodeDecodeError):
                return Texts.of(self.texts(), self.lengths())
        return self if self._whole else ByteStrings.of(self.tolist(), self.lengths())

    def lengths(self) -> Int64:
        """Returns the bytes of each: int64 of shape (values,)."""
        return self._stops - self._starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice | Int64) -> Self: ...
    def __getitem__(self, index: Any) -> Any:
        starts, stops = self._starts[index], self._stops[index]
        if self._which is None and isinstance(index, slice):
            return type(self)(self._pieces[index], None, starts, stops)
        which = self._numbers()[index]
        if isinstance(which, np.ndarray):
            return type(self)(self._pieces, which, starts, stops, self._whole)
        return self._pieces[int(which)] if self._whole else self._pieces[int(which)][int(starts) : int(stops)]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.tolist())

    def tolist(self) -> list[bytes]:
        """Returns all values."""
        if self._whole:
            return self._picked()
        if len(self._pieces) == 1:
            return slices(self._pieces[0], self._starts, self._stops)
        spans = zip(self._numbers().tolist(), self._starts.tolist(), self._stops.tolist(), strict=True)
        return [self._pieces[i][start:stop] for i, start, stop in spans]

    def texts(self) -> list[str]:
        """Returns all values as text.

        Raises:
            UnicodeDecodeError: one is no UTF-8.
        """
        if len(self._pieces) == 1 and not self._whole:
            return texts(self._pieces[0], self._starts, self._stops)
        return [value.decode() for value in self.tolist()]

    def _numbers(self) -> Int64:
        return np.arange(len(self)) if self._which is None else self._which

    def _picked(self) -> list[Any]:
        if self._which is None:
            return list(self._pieces)
        return list(map(self._pieces.__getitem__, self._which.tolist()))


class Texts(ByteStrings):
    """Values that were decoded when they were read. One of them is a str; all of them are bytes or texts, as is asked for."""

    __slots__ = ()

    def stored(self) -> ByteStrings:
        """Returns the values as bytes."""
        return ByteStrings.of(self.tolist(), self.lengths())

    def copied(self, as_text: bool = False) -> ByteStrings:
        """Returns the values as they are: each is on its own."""
        del as_text
        return self

    def tolist(self) -> list[bytes]:
        """Returns all values as bytes."""
        return [text.encode() for text in self._picked()]

    def texts(self) -> list[str]:
        """Returns all values."""
        return self._picked()


def in_turn(parts: Sequence[ByteStrings], slots: Sequence[Int64], count: int) -> ByteStrings:
    """Returns values that were read in parts, and empty ones for the slots of none."""
    missing = np.ones(count, dtype=np.bool_)
    for some in slots:
        missing[some] = False
    rest = np.flatnonzero(missing)
    if len(rest) or not count:
        parts, slots = [*parts, ByteStrings.of([b""] * len(rest))], [*slots, rest]
    back = inverse(np.concatenate(slots))
    return parts[0][back] if len(parts) == 1 else ByteStrings.joined(parts)[back]


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
