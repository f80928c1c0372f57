"""Rows by page, against rows that are computed; and what is damaged is told, and not kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardload
import shardload.reader.access as access_module
from shardload.errors import ChecksumError
from shardload.format import layout
from shardload.reader import row_pages
from shardload.reader.row_pages import RowPages

DTYPE = np.dtype([("number", "<u4"), ("offset", "u1")])
PER_PAGE = 7
NUM_PAGES = 12


class Filled:
    """Writes pages that tell their number and each row's place, and notes which."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.bad = -1
        self.together: threading.Barrier | None = None
        self.begun = self.go_on = threading.Event()

    def __call__(self, numbers: list[int], memory: list[memoryview]) -> None:
        assert numbers == sorted(set(numbers)) and len(memory) == len(numbers)
        self.numbers += numbers
        if self.together is not None:
            self.together.wait(30)
        if self.begun is not self.go_on:
            self.begun.set()
            assert self.go_on.wait(30)
        for number, data in zip(numbers, memory, strict=True):
            if number == self.bad:
                raise ValueError("damaged")
            page = np.empty(PER_PAGE, dtype=DTYPE)
            page["number"], page["offset"] = number, np.arange(PER_PAGE)
            data[: page.nbytes] = page.tobytes()


def pages_of(num_places: int) -> RowPages:
    return RowPages(PER_PAGE * DTYPE.itemsize, num_places * layout.SECTION_ALIGNMENT, NUM_PAGES)


def take(pages: RowPages, rows: Any, fill: Filled) -> list[tuple[int, int]]:
    numbers, offsets = np.divmod(np.sort(np.array(rows, dtype=np.int64)), PER_PAGE)
    taken = pages.take(numbers, offsets, DTYPE, fill)
    assert taken["number"].tolist() == numbers.tolist() and taken["offset"].tolist() == offsets.tolist()
    return taken.tolist()


ROWS = st.lists(st.integers(0, NUM_PAGES * PER_PAGE - 1), min_size=1, max_size=40)


@pytest.fixture(scope="module", params=[1024, 2], autouse=True)
def first_places(request: pytest.FixtureRequest) -> Iterator[None]:
    """Memory for few pages, which then has to grow, is as good as memory for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_pages, "_FIRST_PLACES", request.param)
        patch.setattr(row_pages, "_MOST_PAGES", request.param)
        yield


def test_memory_is_taken_as_it_is_needed(first_places: None) -> None:
    pages, fill = pages_of(NUM_PAGES), Filled()
    take(pages, [0, PER_PAGE], fill)
    assert len(pages._memory) == min(row_pages._FIRST_PLACES, NUM_PAGES)
    take(pages, range(NUM_PAGES * PER_PAGE), fill)
    assert len(pages._memory) == NUM_PAGES and fill.numbers == list(range(NUM_PAGES))


def test_memory_does_not_grow_under_who_reads_into_it(first_places: None) -> None:
    pages, slow, fill = pages_of(NUM_PAGES), Filled(), Filled()
    slow.begun, slow.go_on = threading.Event(), threading.Event()
    first = threading.Thread(target=take, args=(pages, [0], slow))
    second = threading.Thread(target=take, args=(pages, range(PER_PAGE, NUM_PAGES * PER_PAGE), fill))
    first.start()
    assert slow.begun.wait(30)
    second.start()
    # Whether it waits or reads into memory that is there, what the first one reads is not lost.
    second.join(0.2)
    slow.go_on.set()
    first.join(30)
    second.join(30)
    take(pages, range(NUM_PAGES * PER_PAGE), fill)
    assert sorted(fill.numbers) == list(range(1, NUM_PAGES)) and slow.numbers == [0]


@given(st.lists(ROWS, max_size=8), st.integers(0, NUM_PAGES))
def test_rows_are_those_of_their_pages_and_the_last_pages_stay(batches: list[list[int]], num_places: int) -> None:
    pages, fill, used = pages_of(num_places), Filled(), list[int]()
    for rows in batches:
        before, fill.numbers = used, []
        take(pages, rows, fill)
        mine = sorted({row // PER_PAGE for row in rows})
        used = [page for page in before if page not in mine] + mine
        held = np.flatnonzero(~pages.absent(np.arange(NUM_PAGES))).tolist()
        # At the end of what was used lately: those that had a place before may have been used before those that had none.
        assert len(held) == min(len(used), max(1, num_places)) and set(held) <= set(used)
        if len(mine) <= num_places:
            assert set(mine) <= set(held)
        if num_places == NUM_PAGES:
            assert fill.numbers == [page for page in mine if page not in before]


def test_of_pages_that_fail_none_is_kept_and_no_place_is_lost() -> None:
    pages, fill = pages_of(8), Filled()
    take(pages, [0], fill)
    fill.bad = 3
    for _ in range(20):
        with pytest.raises(ValueError, match="damaged"):
            take(pages, [0, 2 * PER_PAGE, 3 * PER_PAGE], fill)
    assert pages.absent(np.array([3])).all() and not pages.absent(np.array([0])).any()
    fill.bad = -1
    take(pages, range(8 * PER_PAGE), fill)
    assert not pages.absent(np.arange(8)).any()


def test_two_threads_that_read_the_same_pages_keep_one_of_each() -> None:
    pages, fill = pages_of(NUM_PAGES), Filled()
    fill.together = threading.Barrier(2)
    threads = [threading.Thread(target=take, args=(pages, [5 * PER_PAGE], fill)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert fill.numbers == [5, 5]
    fill.together = None
    take(pages, range(NUM_PAGES * PER_PAGE), fill)
    assert not pages.absent(np.arange(NUM_PAGES)).any()


@pytest.mark.parametrize("num_places", [1, 3, NUM_PAGES])
def test_threads_wait_for_room_and_get_their_own_rows(num_places: int) -> None:
    pages, done = pages_of(num_places), list[int]()

    def work(seed: int) -> None:
        rng, fill = np.random.default_rng(seed), Filled()
        for _ in range(200):
            fill.bad = int(rng.integers(-20, NUM_PAGES))
            with contextlib.suppress(ValueError):
                take(pages, rng.integers(0, NUM_PAGES * PER_PAGE, int(rng.integers(1, 30))), fill)
        done.append(seed)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_damaged_page_is_told_and_read_again(tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "INDEX_BUDGET_BYTES", budget)
    num_samples = 100_000
    with shardload.ShardWriter(tmp_path / "d", {"a": "int64", "b": "int64"}, shard_size="1MiB") as writer:
        for i in range(num_samples):
            writer.write({"a": i, "b": -i})
    dataset, per_page = shardload.open(tmp_path / "d", engine="pread"), layout.PAGE_BYTES // 16
    shard = dataset._process_access().shard(1)
    first, rows = int(dataset.table.first_sample_ids[1]), shard.head.section(layout.SECTION_ROWS)
    ids = np.array([num_samples - 1, 4 * per_page, first + 2 * per_page, 5, first + per_page, 5])

    def flip() -> None:
        with open(tmp_path / "d" / shard.entry.name, "r+b") as file:
            file.seek(rows.start + 3 * layout.PAGE_BYTES - 1)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))

    flip()
    for _ in range(2):
        with pytest.raises(ChecksumError, match="packed rows") as caught:
            dataset.__getitems__(ids)
        assert (caught.value.shard, caught.value.start) == (shard.entry.name, rows.start + 2 * layout.PAGE_BYTES)
        assert caught.value.stop == rows.start + 3 * layout.PAGE_BYTES
        assert [one["b"] for one in dataset.__getitems__(ids[[0, 1, 3, 4]])] == (-ids[[0, 1, 3, 4]]).tolist()
    flip()
    assert [one["a"] for one in dataset.__getitems__(ids)] == ids.tolist()
