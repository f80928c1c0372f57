"""Duplicates by digest, against a set of Python; and that digests tell apart what is stored differently."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.format.schema import parse_schema
from shardload.preparation.digest import ContentDigest
from shardload.preparation.duplicates import mark_duplicates


def marked(path: Path, num_samples: int) -> list[bool]:
    bits = np.unpackbits(np.fromfile(path, np.uint8), bitorder="little")
    assert not bits[num_samples:].any()
    return bits[:num_samples].astype(bool).tolist()  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 1 << 63, (1 << 64) - 1]), st.integers(0, 5)), max_size=400),
    st.integers(1, 50_000),
    st.integers(1, 90),
)
def test_marks_are_those_of_a_set(
    tmp_path_factory: pytest.TempPathFactory, found, budget_bytes: int, together: int
) -> None:
    folder = tmp_path_factory.mktemp("marks")
    array = np.array(found, np.uint64).reshape(-1, 2)
    parts = (array[start : start + together] for start in range(0, len(array), together))
    num_duplicates = mark_duplicates(parts, len(array), str(folder), str(folder / "marks"), budget_bytes)
    seen: set[tuple[int, int]] = set()
    expected = [one in seen or bool(seen.add(one)) for one in found]  # type: ignore[func-returns-value]
    assert marked(folder / "marks", len(found)) == expected and num_duplicates == sum(expected)
    assert [path.name for path in folder.iterdir()] == ["marks"]


@pytest.mark.parametrize("different", [100_000, 1])
def test_memory_is_bounded_also_where_most_are_equal(tmp_path: Path, different: int) -> None:
    """200,000 entries take 4.8 MB on the disk, and a quarter of that in memory."""
    num_samples, rng = 200_000, np.random.default_rng(1)
    pool = rng.integers(0, 1 << 64, (different, 2), np.uint64)
    picks = rng.integers(0, different, num_samples)
    parts = (pool[picks[start : start + 1000]] for start in range(0, num_samples, 1000))
    tracemalloc.start()
    try:
        num_duplicates = mark_duplicates(parts, num_samples, str(tmp_path), str(tmp_path / "marks"), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1_200_000
    finally:
        tracemalloc.stop()
    first = np.zeros(num_samples, bool)
    first[np.unique(picks, return_index=True)[1]] = True
    assert num_duplicates == num_samples - first.sum()
    assert marked(tmp_path / "marks", num_samples) == (~first).tolist()


VALUES = st.fixed_dictionaries(
    {
        "text": st.one_of(st.none(), st.text("ab", max_size=2)),
        "more": st.one_of(st.none(), st.binary(max_size=2)),
        "number": st.integers(-1, 1),
        "flag": st.booleans(),
        "list": st.lists(st.text("ab", max_size=1), max_size=2),
        "ragged": st.lists(st.integers(0, 2), max_size=2),
        "pair": st.lists(st.floats(0, 1, width=16), min_size=2, max_size=2),
    }
)
TYPES = {"text": "str?", "more": "bytes?", "number": "int8", "flag": "bool"}
SCHEMA = parse_schema({**TYPES, "list": "str[*]", "ragged": "int32[*]", "pair": "float32[2]"})


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_digests_are_equal_where_the_values_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    digest = ContentDigest(SCHEMA.fields)
    arrays = {**one, "ragged": np.array(one["ragged"], np.int32), "pair": np.array(one["pair"], np.float32)}
    assert np.array_equal(digest.of(one), digest.of(arrays))
    equal = one == other and [str(value) for value in one["pair"]] == [str(value) for value in other["pair"]]
    assert np.array_equal(digest.of(one), digest.of(other)) == equal
