"""Wide fields: copied and checked by one call or by several, in any order, some of them damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uncompiled import leave_out_compiled_part

import shardload
from shardload.errors import ChecksumError

NUM_SAMPLES = 50
IDS = st.lists(st.integers(0, 12).map(lambda i: i * 4), max_size=20)


ROWS = np.random.default_rng(0).integers(0, 2**31, (NUM_SAMPLES, 260), np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 1,040 bytes, in some shards of unlike sizes."""
    path: Path = tmp_path_factory.mktemp("wide") / "d"
    with shardload.ShardWriter(path, {"row": "int32[260]", "label": "int64"}, shard_size="16KiB") as writer:
        for number in range(NUM_SAMPLES):
            writer.write({"row": ROWS[number], "label": number})
    return path


@pytest.fixture(scope="module", params=["compiled", "plain"])
def patched(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            leave_out_compiled_part(patch)
        yield


@contextlib.contextmanager
def flipped(path: Path, number: int) -> Iterator[None]:
    """A bit of a value is another one in its file, for a while."""
    place = shardload.open(path).places([number])[0]
    at = next(one.start for one in place.ranges if one.kind == "wide") + 1000

    def flip() -> None:
        with open(path / place.shard, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("verify", ["once", "always", "off"])
@settings(deadline=None, max_examples=40)
@given(batches=st.lists(IDS, min_size=1, max_size=4), lent=st.booleans())
def test_rows_come_as_they_were_written(
    path: Path, patched: None, engine: Any, verify: Any, batches: list[list[int]], lent: bool
) -> None:
    """Twice, into memory of ours or of the caller."""
    dataset = shardload.open(path, engine=engine, verify=verify)
    ids = [np.array(batch, dtype=np.int64) for batch in batches]
    for _ in range(2):
        buffers = [{"row": np.full((len(batch), 260), -1, np.int32)} if lent else {} for batch in ids]
        for batch, read in zip(batches, dataset.read_batches(ids, buffers, dataset.field_list), strict=True):
            assert read.columns["label"].values.tolist() == batch
            assert all((values == ROWS[i]).all() for i, values in zip(batch, read.columns["row"].values, strict=True))


@settings(deadline=None, max_examples=60)
@given(ids=IDS, before=IDS, number=st.integers(0, 12).map(lambda i: i * 4), always=st.booleans())
def test_the_first_damaged_row_that_is_due_is_named(
    path: Path, patched: None, ids: list[int], before: list[int], number: int, always: bool
) -> None:
    """And rows that were checked before are not looked at once more, unless that is asked for."""
    dataset = shardload.open(path, engine="map", verify="always" if always else "once")
    dataset.__getitems__(before)
    with flipped(path, number):
        try:
            rows = dataset.__getitems__(ids).columns["row"].values
        except ChecksumError as error:
            assert number in ids and (always or number not in before)
            assert error.sample_id == number and "field 'row'" in str(error)
        else:
            assert number not in ids or (not always and number in before)
            for i, row in zip(ids, rows, strict=True):
                assert (row == ROWS[i]).all() != (i == number)


def test_of_several_damaged_rows_the_first_is_named_and_none_counts_as_checked(path: Path, patched: None) -> None:
    dataset = shardload.open(path, engine="map", verify="once")
    ids = [9, 30, 4, 12, 30, 45, 7]
    with flipped(path, 12), flipped(path, 45):
        for _ in range(2):
            with pytest.raises(ChecksumError, match="sample 12"):
                dataset.__getitems__(ids)
    assert [row.tolist() for row in dataset.__getitems__(ids).columns["row"].values] == [ROWS[i].tolist() for i in ids]
