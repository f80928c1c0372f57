from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.importers.base import SourceFile
from shardload.importers.units import MAX_UNIT_BYTES, MIN_UNIT_BYTES, cut_units, default_unit_size

FILES = st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=30)


@given(FILES, st.integers(1, 6000))
def test_every_byte_once_and_in_order(facts: list[tuple[int, bool]], unit_size: int) -> None:
    files = [SourceFile(f"{number}", size, 0) for number, (size, _) in enumerate(facts)]
    units = cut_units(files, [divisible for _, divisible in facts], unit_size)
    assert [unit.number for unit in units] == list(range(len(units)))
    pieces = [piece for unit in units for piece in unit.pieces]
    joined: dict[str, int] = {}
    for piece in pieces:
        assert piece.start == joined.get(piece.file.path, 0)
        joined[piece.file.path] = piece.stop
    assert list(joined.items()) == [(file.path, file.num_bytes) for file in files]
    for unit in units:
        whole = len(unit.pieces) == 1 and not facts[int(unit.pieces[0].file.path)][1]
        assert unit.num_bytes <= unit_size or whole


def test_small_files_are_gathered_and_large_ones_cut_evenly() -> None:
    files = [SourceFile("a", 10, 0), SourceFile("b", 20, 0), SourceFile("c", 250, 0), SourceFile("d", 5, 0)]
    units = cut_units(files, [True] * 4, 100)
    bounds = [[(piece.file.path, piece.start, piece.stop) for piece in unit.pieces] for unit in units]
    assert bounds == [
        [("a", 0, 10), ("b", 0, 20)],
        [("c", 0, 83)],
        [("c", 83, 166)],
        [("c", 166, 250), ("d", 0, 5)],
    ]


@pytest.mark.parametrize(
    ("num_bytes", "size"),
    [
        (0, MIN_UNIT_BYTES),
        (64 * MIN_UNIT_BYTES, MIN_UNIT_BYTES),
        (64 * MIN_UNIT_BYTES + 1, MIN_UNIT_BYTES + 1),
        (64 * MAX_UNIT_BYTES, MAX_UNIT_BYTES),
        (1 << 50, MAX_UNIT_BYTES),
    ],
)
def test_default_unit_size_is_a_64th_within_bounds(num_bytes: int, size: int) -> None:
    assert default_unit_size(num_bytes) == size
