"""Reading ahead in bursts and threads changes no batch, no order and no error."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from range_server import RangeServer
from samples import mixed_sample, write_mixed
from threads import loader_threads

import shardload
from shardload.loader import batches as batches_module
from shardload.loader.ahead import Ahead, plan_ahead, useful_threads
from shardload.loader.hints import Carried, Hints
from shardload.reader import ShardDataset, access
from shardload.reader.access import Access
from shardload.reader.records import RecordReader
from shardload.reader.shard import ShardReader

WAYS = [(0, 0), (1, 0), (8, 0), (8, 1), (3, 3), (16, 2)]
"""prefetch_batches and num_threads."""


def make(path: Path | str, batch_size: int, way: tuple[int, int], **options: Any) -> shardload.ShardLoader:
    options = {"shuffle": True, "with_ids": True, "tail": "short"} | options
    return shardload.ShardLoader(
        shardload.open(path), batch_size, prefetch_batches=way[0], num_threads=way[1], **options
    )


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@pytest.mark.parametrize("batch_size", [1, 7, 300, 1000])
def test_batches_are_the_same_whoever_reads_them(mixed: Path, batch_size: int) -> None:
    first, *others = WAYS if batch_size > 1 else [WAYS[0], WAYS[3], WAYS[5]]
    expected = two_epochs(mixed, batch_size, first)
    assert len(expected) == 2 * -(-500 // batch_size)
    for way in others:
        assert two_epochs(mixed, batch_size, way) == expected, way


def two_epochs(mixed: Path, batch_size: int, way: tuple[int, int]) -> list[str]:
    loader = make(mixed, batch_size, way)
    return [str(plain(batch)) for _ in range(2) for batch in loader]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [1, 5, 40])
def test_a_resume_goes_on_whoever_reads(mixed: Path, way: tuple[int, int], stop: int) -> None:
    whole = [i for batch in make(mixed, 10, (0, 0)) for i in batch["_sample_id"].tolist()]
    loader = make(mixed, 10, way)
    batches = iter(loader)
    seen = [i for _ in range(stop) for i in next(batches)["_sample_id"].tolist()]
    again = make(mixed, 10, way)
    again.load_state_dict(loader.state_dict())
    loader.close()
    assert seen + [i for batch in again for i in batch["_sample_id"].tolist()] == whole


@pytest.mark.parametrize("way", WAYS)
def test_an_error_comes_after_the_batches_before_it(tmp_path: Path, way: tuple[int, int]) -> None:
    path = write_mixed(tmp_path / "d", 100, compression="none", shard_size="1MiB")
    shard = next((path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[data.index(mixed_sample(63)["data"])] ^= 1
    shard.write_bytes(data)
    batches = iter(make(path, 5, way, shuffle=False))
    for first in range(0, 60, 5):
        assert next(batches)["number"].tolist() == list(range(first, first + 5))
    with pytest.raises(shardload.ChecksumError, match="sample 63"):
        next(batches)
    assert not loader_threads()


@pytest.mark.parametrize("far", [False, True])
def test_one_slow_sample_does_not_stop_reading_ahead(mixed: Path, monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    """While a transform of the first batch waits, later bursts are read."""
    read, enough = [], threading.Event()
    real = ShardDataset.read_batches

    def noted(self: ShardDataset, batches: Any, *arguments: Any) -> Any:
        read.append(len(batches))
        if len(read) >= 3:
            enough.set()
        return real(self, batches, *arguments)

    def transform(sample: dict[str, Any]) -> int:
        assert enough.wait(30)
        return int(sample["number"])

    monkeypatch.setattr(ShardDataset, "read_batches", noted)
    with RangeServer(mixed) as server:
        loader = make(server.url if far else mixed, 10, (4, 2), transform=transform, with_ids=False)
        batches = iter(loader)
        assert len(next(batches)) == 10
        loader.close()
    # From a store there is one burst beside the first, of two batches.
    assert read[0] == 1 and max(read) >= (2 if far else 4)


@pytest.mark.parametrize(
    ("seconds", "waits", "transform", "field", "alone"),
    [
        (60, 1 << 30, None, "number", True),
        (60, 1, None, "number", False),
        (0, 1 << 30, None, "number", False),
        (60, 1 << 30, dict, "number", False),
        (60, 1 << 30, None, "text", False),
    ],
)
def test_an_epoch_begins_in_one_thread(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, waits: int, transform: Any, field: str, alone: bool
) -> None:
    """For some time, and unless the loop waits for bursts one after the other; not where something of the user's is to be done,
    or much that needs no lock."""
    readers: list[str] = []
    real = ShardDataset.read_batches

    def noted(self: ShardDataset, batches: Any, *arguments: Any) -> Any:
        readers.append(threading.current_thread().name)
        return real(self, batches, *arguments)

    monkeypatch.setattr(ShardDataset, "read_batches", noted)
    monkeypatch.setattr(batches_module, "_BEGIN_SECONDS", seconds)
    monkeypatch.setattr(batches_module, "_BEGIN_WAITS", waits)
    loader = make(mixed, 10, (32, 2), transform=transform, fields=[field], with_ids=False, helper_process=False)
    assert sum(1 for _ in loader) == 50
    first, *others = (name.startswith("shardload-prefetch") for name in readers)
    assert first and len(others) > 3
    assert all(others) if alone else not any(others)


def test_what_comes_is_announced_once_also_of_the_next_epoch(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(ShardDataset, "will_need", lambda self, ids, fields=None, **_: announced.append(ids.tolist()))
    loader = make(mixed, 50, (4, 1))
    epochs = [[i for batch in loader for i in batch["_sample_id"].tolist()] for _ in range(2)]
    flat = [i for ids in announced for i in ids]
    # The first batch of each epoch is read at once.
    assert flat[:450] == epochs[0][50:]
    assert set(flat[450:950]) & set(epochs[1][:50]) == set(epochs[1][:50])


def test_a_dataset_that_fits_is_hinted_once_others_always(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hinted: list[int] = []
    dataset = shardload.open(mixed)
    access = dataset._process_access()
    real = access.engine.will_need
    monkeypatch.setattr(access.engine, "will_need", lambda ranges: (hinted.append(len(ranges)), real(ranges))[1])
    ids = np.arange(0, 500, 7)
    for _ in range(3):
        dataset.read_batch(ids)
    assert sum(hinted) == 2 * len(ids)
    access._fits = False
    dataset.read_batch(ids)
    assert sum(hinted) == 4 * len(ids)
    assert isinstance(access, Access)


@given(st.floats(0, 1e12), st.integers(1, 64), st.one_of(st.none(), st.integers(0, 8)))
def test_how_far_ahead(batch_bytes: float, prefetch_batches: int, num_threads: int | None) -> None:
    ahead = plan_ahead(batch_bytes, prefetch_batches, num_threads)
    assert 1 <= ahead.burst_batches <= min(32, prefetch_batches)
    assert ahead.burst_batches == 1 or ahead.burst_batches * batch_bytes <= 32 << 20
    assert 2 <= ahead.hinted_batches <= 64
    assert ahead.num_threads == num_threads or (num_threads is None and 0 <= ahead.num_threads <= 4)
    little = plan_ahead(batch_bytes, prefetch_batches, num_threads, prefetch_bytes=1 << 20)
    assert little.burst_batches == 1 or little.burst_batches * batch_bytes <= 1 << 20
    far = plan_ahead(batch_bytes, prefetch_batches, num_threads, far=True)
    assert far.burst_batches == 1 or (far.burst_batches <= 8 and far.burst_batches * batch_bytes <= 8 << 20)
    strings = plan_ahead(batch_bytes, prefetch_batches, num_threads, strings=True)
    assert strings.burst_batches == min(16, ahead.burst_batches)
    few = plan_ahead(batch_bytes, prefetch_batches, num_threads, 1)
    assert few.num_threads == num_threads or (num_threads is None and few.num_threads == min(1, ahead.num_threads))


def test_no_more_is_read_together_than_may_wait(mixed: Path) -> None:
    batch_bytes = 5 * shardload.open(mixed).num_bytes / len(shardload.open(mixed))
    ahead = [
        make(mixed, 5, (8, 2), prefetch_bytes=size)._course.ahead for size in (1, int(3.5 * batch_bytes), "256MiB")
    ]
    assert [one.burst_batches for one in ahead] == [1, 3, 8]


def test_byte_strings_are_read_together_less_far(mixed: Path) -> None:
    made = [make(mixed, 5, (32, 0), fields=fields)._course.ahead.burst_batches for fields in (["number"], None)]
    assert made == [32, 16]


def test_threads_that_would_only_wait() -> None:
    assert useful_threads(1000, plain_strings=True, in_memory=True) == 0
    assert useful_threads(1000, plain_strings=True, in_memory=False) == 1
    assert useful_threads(100_000, plain_strings=True, in_memory=False) == 4
    assert useful_threads(100_000, plain_strings=True, in_memory=True, unlocked=True) == 4
    assert useful_threads(100_000, plain_strings=True, in_memory=True, unlocked=False) == 0
    assert useful_threads(1000, plain_strings=False, in_memory=True) == 4


def test_threads_that_cannot_be(mixed: Path) -> None:
    with pytest.raises(ValueError, match="num_threads"):
        make(mixed, 5, (4, -1))


@pytest.mark.parametrize("way", WAYS)
def test_no_thread_is_left(mixed: Path, way: tuple[int, int]) -> None:
    def begun() -> Iterator[Any]:
        batches = iter(make(mixed, 5, way))
        next(batches)
        return batches

    begun()
    loader = make(mixed, 5, way)
    for _ in loader:
        break
    del loader
    for thread in threading.enumerate():
        if thread.name.startswith("shardload"):
            thread.join(10)
            assert not thread.is_alive()


def test_rows_by_page_are_announced_a_window_before_the_records(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are hinted though their places stand in pages that are not held: those were asked for a window earlier."""
    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", 1000)
    monkeypatch.setattr(access, "fits_in_memory", lambda num_bytes: False)
    monkeypatch.setattr("shardload.loader.ahead._HINTED_BATCHES", 4)
    told: list[tuple[str, list[int]]] = []
    hinted: list[set[int]] = []
    will_need, will_need_rows, ranges = Access.will_need, Access.will_need_rows, RecordReader.ranges
    in_hint = threading.local()

    def note_records(self: Access, ids: Any, *rest: Any) -> None:
        told.append(("records", ids.tolist()))
        hinted.append(set())
        in_hint.now = True
        will_need(self, ids, *rest)
        in_hint.now = False

    def note_rows(self: Access, ids: Any) -> None:
        told.append(("rows", ids.tolist()))
        will_need_rows(self, ids)

    def note_ranges(self: RecordReader, samples: Any) -> Any:
        if getattr(in_hint, "now", False):
            hinted[-1] |= set(samples.sample_ids.tolist())
        return ranges(self, samples)

    monkeypatch.setattr(Access, "will_need", note_records)
    monkeypatch.setattr(Access, "will_need_rows", note_rows)
    monkeypatch.setattr(RecordReader, "ranges", note_ranges)
    epoch = [plain(batch) for batch in make(mixed, 10, (4, 1))]
    assert str(epoch) == str([plain(batch) for batch in make(mixed, 10, (0, 0))])
    windows = [ids for name, ids in told if name == "records"]
    # The first batch is read at once, and the windows grow.
    assert [i for ids in windows for i in ids][:490] == [i for batch in epoch[1:] for i in batch["_sample_id"]]
    assert len(windows[0]) == 20 and all(len(ids) == 40 for ids in windows[1:12])
    # Before the first one there is nothing to wait for: its pages are all that can be told.
    wanted = [("records", windows[0]), ("rows", windows[0])]
    for ids in windows[1:]:
        wanted += [("rows", ids), ("records", ids)]
    assert told[: len(wanted)] == wanted and not [ids for _, ids in told[len(wanted) :] if ids in windows]
    assert hinted == [set(), *map(set, windows[1:])]


def test_rows_that_are_held_are_not_announced(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardReader, "row_ranges", lambda self, ids: pytest.fail("pages were announced"))
    assert len(list(make(mixed, 10, (4, 1)))) == 50


def told(hints: Hints, epoch: int, num_batches: int, skip: int = 0) -> list[tuple[int, list[int]]]:
    """Returns what is announced of an epoch's records: turn and batches, those of an epoch numbered from its hundredfold."""

    def batches(number: int, first: int = 0) -> Iterator[Any]:
        for at in range(first, num_batches):
            yield SimpleNamespace(sample_ids=np.array([100 * number + at]), cursor=at + 1)

    found: list[tuple[int, list[int]]] = []
    for batch in hints.batches(batches(epoch, skip), batches(epoch + 1), None, epoch):
        found += [(hint.turn, np.concatenate(hint.ids).tolist()) for hint in hints.take() if not hint.rows]
        # All but the first are announced before they are read, or were in the epoch before.
        number = int(batch.sample_ids[0])
        assert number == 100 * epoch + skip or number < 100 * epoch + 8 or any(number in ids for _, ids in found)
    return found


def test_the_first_window_of_the_next_epoch_is_announced_by_the_one_before() -> None:
    carried = Carried()
    numbers = [list(range(a, b)) for a, b in [(1, 3), (3, 7), (7, 15), (15, 23), (23, 30), (100, 108)]]
    assert told(Hints(Ahead(4, 8, True), carried), 0, 30) == [(0, ids) for ids in numbers[:-1]] + [(1, numbers[-1])]
    # It goes on where that one has ended; what would be left at its end comes with what is before it.
    numbers = [list(range(a, b)) for a, b in [(108, 116), (116, 128), (200, 208)]]
    assert told(Hints(Ahead(4, 8, True), carried), 1, 28) == [(1, ids) for ids in numbers[:-1]] + [(2, numbers[-1])]
    # From elsewhere in the epoch nothing was announced.
    assert told(Hints(Ahead(4, 8, True), carried), 2, 28, skip=5)[0] == (2, [206, 207])


def test_what_comes_after_an_epoch_is_given_up_only_with_the_loader(numbers: Path) -> None:
    loader = shardload.ShardLoader(shardload.open(numbers), 10, shuffle=True)
    for _ in loader:
        pass
    stop = loader._course.stop
    assert stop is not None and not stop.is_set()
    batches = iter(loader)
    next(batches)
    assert loader._course.stop is stop
    # Left in its midst.
    other = iter(loader)
    assert stop.is_set()
    next(other)
    stop = loader._course.stop
    assert stop is not None and not stop.is_set()
    loader.close()
    assert stop.is_set()
    gc.collect()
    loader = shardload.ShardLoader(shardload.open(numbers), 10, shuffle=True)
    for _ in loader:
        pass
    stop = loader._course.stop
    del loader
    gc.collect()
    assert stop is not None and stop.is_set()
