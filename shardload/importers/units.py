"""How a source is cut into units: a pure rule of file sizes and unit size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from shardload.importers.base import Piece, SourceFile, Unit

MIN_UNIT_BYTES = 16 << 20
MAX_UNIT_BYTES = 1 << 30
UNITS_OF_A_SOURCE = 64
"""Units that a source of middling size is cut into: enough for many workers, few enough for large shards."""


def default_unit_size(num_bytes: int) -> int:
    """Returns the bytes of a unit for a source of so many bytes: a 64th of it, between 16 MiB and 1 GiB."""
    return min(max(-(-num_bytes // UNITS_OF_A_SOURCE), MIN_UNIT_BYTES), MAX_UNIT_BYTES)


def cut_units(files: Sequence[SourceFile], divisible: Sequence[bool], unit_size: int | None) -> list[Unit]:
    """Returns the units of files, in order.

    A file longer than a unit is cut into equal ranges of at most a unit, if it can be divided; whatever results is
    gathered into units up to the unit size. A single file that is longer and cannot be divided is a unit of its own.

    Args:
        files: the files in their order.
        divisible: for each whether it may be cut.
        unit_size: bytes of a unit; None for the default.
    """
    size = unit_size or default_unit_size(sum(file.num_bytes for file in files))
    units: list[Unit] = []
    pieces: list[Piece] = []
    filled = 0
    for file, may_cut in zip(files, divisible, strict=True):
        for piece in _cut(file, size if may_cut else file.num_bytes):
            num_bytes = piece.stop - piece.start
            if pieces and filled + num_bytes > size:
                units.append(Unit(len(units), tuple(pieces)))
                pieces, filled = [], 0
            pieces.append(piece)
            filled += num_bytes
    if pieces:
        units.append(Unit(len(units), tuple(pieces)))
    return units


def _cut(file: SourceFile, size: int) -> list[Piece]:
    count = max(1, -(-file.num_bytes // max(1, size)))
    bounds = [file.num_bytes * i // count for i in range(count + 1)]
    return [Piece(file, start, stop) for start, stop in itertools.pairwise(bounds)]
