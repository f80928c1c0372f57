"""Long stretches that are read in their order: the right bytes to the right places, and announced only where that helps."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import StorageError
from shardload.reader import runs
from shardload.reader.map_engine import MapEngine
from shardload.reader.runs import RunReader
from shardload.storage import FileReader, LocalStorage

NUM_BYTES = 300_000


class Files:
    """Two files of random bytes in place of shards."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.content = [rng.bytes(NUM_BYTES) for _ in range(2)]
        for number, data in enumerate(self.content):
            (folder / str(number)).write_bytes(data)
        self._files = [LocalStorage(str(folder)).open(str(number)) for number in range(2)]

    def get(self, shard_id: int) -> FileReader:
        return self._files[shard_id]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("runs"))


@st.composite
def stretches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int]]:
    """Shards, starts and lengths of ranges that mostly follow each other, and how many of them go to each target."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    num_ranges, size = draw(st.integers(1, 2500)), draw(st.sampled_from([1, 30, 400, 4096, 40_000]))
    gaps = rng.choice(
        draw(st.sampled_from([[0], [0, 1, 63], [0, 0, 0, 4096], [0] * 50 + [4097], [0] * 50 + [-5]])), num_ranges
    )
    sizes = rng.integers(0, size + 1, num_ranges) if draw(st.booleans()) else np.full(num_ranges, size)
    ids, starts, lengths, shard, at = [], [], [], 0, int(rng.integers(0, 5000))
    for gap, length in zip(gaps.tolist(), sizes.tolist(), strict=True):
        at = max(0, at + gap)
        if at + length > NUM_BYTES:
            shard, at = shard + 1, 0
        if shard == 2:
            break
        ids, starts, lengths = [*ids, shard], [*starts, at], [*lengths, length]
        at += length
    cuts = np.sort(rng.integers(0, len(ids) + 1, draw(st.integers(0, 4))))
    return ids, starts, lengths, np.diff([0, *cuts, len(ids)]).tolist()


@settings(max_examples=100, deadline=None)
@given(case=stretches())
def test_what_is_read_is_what_lies_there(files: Files, case: tuple[list[int], list[int], list[int], list[int]]) -> None:
    ids, starts, lengths, counts = case
    edges = np.cumsum([0, *counts])
    wanted = [files.content[i][start : start + length] for i, start, length in zip(ids, starts, lengths, strict=True)]
    pieces = [b"".join(wanted[a:b]) for a, b in itertools.pairwise(edges)]
    targets = [np.full(len(piece) + 1, 255, dtype=np.uint8) for piece in pieces]
    places = [(one.ctypes.data, len(piece)) for one, piece in zip(targets, pieces, strict=True) if piece]
    reader = RunReader(files.get)
    done = reader.read(*(np.array(column, dtype=np.int64) for column in (ids, starts, lengths)), places)
    # Counted anew, one range after the other.
    num_runs, stop = 0, (-1, 0)
    for i, start, length in zip(ids, starts, lengths, strict=True):
        num_runs += i != stop[0] or not 0 <= start - stop[1] <= 4096
        stop = (i, start + length)
    total = sum(lengths)
    assert done == (len(ids) >= 2 * num_runs and total >= 16384 * num_runs and total > 0)
    for one, piece in zip(targets, pieces, strict=True):
        assert one[-1] == 255
        assert not done or one[:-1].tobytes() == piece


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    files = Files(tmp_path)
    starts, lengths = np.arange(0, NUM_BYTES, 1000), np.full(NUM_BYTES // 1000, 1000)
    target = np.zeros(NUM_BYTES, dtype=np.uint8)
    places = [(target.ctypes.data, NUM_BYTES)]
    reader = RunReader(files.get)
    assert reader.read(np.zeros(300, dtype=np.int64), starts, lengths, places)
    os.truncate(tmp_path / "0", NUM_BYTES - 1)
    assert not reader.read(np.zeros(300, dtype=np.int64), starts, lengths, places)


def data_of(i: int) -> bytes:
    return i.to_bytes(4, "little") * (1 + i % 200)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 2 KiB and records, in several shards of 1 MiB."""
    path = tmp_path_factory.mktemp("runs") / "d"
    with shardload.ShardWriter(path, {"wide": "int32[512]", "data": "bytes"}, shard_size="1MiB") as writer:
        for start in range(0, 2000, 100):
            numbers = np.arange(start, start + 100, dtype=np.int32)
            data = [data_of(i) for i in range(start, start + 100)]
            writer.write_batch({"wide": np.repeat(numbers[:, None], 512, axis=1), "data": data})
    return path


def scanned(dataset: Path, fields: list[str]) -> list[dict[str, Any]]:
    with shardload.scan(shardload.open(dataset), 64, 1, 0, fields=fields) as scan:
        return list(scan)


@pytest.mark.parametrize("read_ahead", [0, 128 << 10, 1 << 20])
def test_a_scan_is_announced_where_the_system_reads_little_ahead(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, read_ahead: int
) -> None:
    monkeypatch.setattr(runs, "read_ahead_bytes", lambda descriptor: read_ahead)
    hinted: list[int] = []
    monkeypatch.setattr(MapEngine, "will_need", lambda self, ranges: hinted.append(len(ranges)))
    batches = scanned(dataset, ["wide"])
    assert np.concatenate([batch["wide"][:, 7] for batch in batches]).tolist() == list(range(2000))
    # Windows at the start are short, and announced all the same; each is once more before it is read, if it was not yet.
    assert sum(hinted) < 1000 if read_ahead == 1 << 20 else sum(hinted) == 2000
    hinted.clear()
    batches = scanned(dataset, ["data"])
    assert [value for batch in batches for value in batch["data"]] == [data_of(i) for i in range(2000)]
    assert sum(hinted) == 2000


def test_other_orders_are_announced(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "read_ahead_bytes", lambda descriptor: 1 << 20)
    hinted: list[int] = []
    monkeypatch.setattr(MapEngine, "will_need", lambda self, ranges: hinted.append(len(ranges)))
    for ids in (np.random.default_rng(0).permutation(2000), np.arange(0, 2000, 4), np.arange(2000)[::-1]):
        shardload.open(dataset, fields=["wide"]).will_need(ids)
        assert hinted.pop() == len(ids)
    shardload.open(dataset, fields=["wide"]).will_need(np.arange(2000))
    assert not sum(hinted)


def test_a_shard_that_is_cut_under_a_scan_is_a_named_error(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "d")
    with shardload.scan(shardload.open(tmp_path / "d"), 64, 1, 0, fields=["wide"], prefetch_batches=0) as scan:
        batches = iter(scan)
        next(batches)
        first, *_ = sorted(os.listdir(tmp_path / "d" / "shards"))
        os.truncate(tmp_path / "d" / "shards" / first, 200_000)
        with pytest.raises(StorageError, match=first):
            list(batches)
