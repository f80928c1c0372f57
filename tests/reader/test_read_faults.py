"""Reads that fail or fall short: a typed error that names shard and bytes, or the right samples; never a wrong one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Counting, FailAt, Instrument, ShortTransfers, injected
from samples import mixed_sample, same, write_mixed

import shardload
from shardload.errors import StorageError
from shardload.storage import OPERATIONS

COUNT = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples in several shards. Read only."""
    return write_mixed(tmp_path_factory.mktemp("faults") / "set", COUNT, shard_size="32KiB")


def batches() -> Iterator[list[int]]:
    """Batches that go over all shards, in an order that is none of theirs."""
    order = [number * 7 % COUNT for number in range(COUNT)]
    for start in range(0, COUNT, 12):
        yield order[start : start + 12]


def read_all(dataset: Path) -> tuple[int, list[StorageError]]:
    """Reads every sample in batches; returns how many came, all of them right, and the errors in the place of others."""
    found, errors = 0, []
    opened = None
    while opened is None:
        try:
            opened = shardload.open(dataset, verify="always")
        except StorageError as error:
            errors.append(error)
            if len(errors) > 1:
                return 0, errors
    for ids in batches():
        try:
            samples: list[dict[str, Any]] = list(opened.__getitems__(ids))
        except StorageError as error:
            errors.append(error)
            continue
        for number, sample in zip(ids, samples, strict=True):
            assert same(sample, mixed_sample(number)), f"sample {number} is wrong"
        found += len(samples)
    return found, errors


def check_error(dataset: Path, error: StorageError, code: int, name: str) -> None:
    message = str(error)
    assert error.dataset == str(dataset) and error.shard and error.shard in message, message
    assert os.strerror(code) in message or (code == errno.ENOENT and "is missing" in message), message
    if name == "preadv":
        assert error.start is not None and error.stop is not None and error.start < error.stop, message
        assert f"bytes {error.start} to {error.stop}" in message


def counted(dataset: Path, *names: str) -> int:
    counting = Counting()
    with injected(counting):
        assert read_all(dataset) == (COUNT, [])
    count = sum(name in names for name in counting.all)
    assert count > 3
    return count


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("preadv", errno.EIO),
        ("preadv", errno.ESTALE),
        ("open_read", errno.ENOENT),
        ("open_read", errno.EACCES),
        ("open_read", errno.EMFILE),
        ("stat", errno.EIO),
    ],
)
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_read_that_fails(dataset: Path, name: str, code: int, lasting: bool, step: int) -> None:
    for number in range(1, counted(dataset, name) + 1, step if name == "preadv" else 1):
        failing = FailAt(number, code, lasting=lasting, names=(name,))
        with injected(failing):
            found, errors = read_all(dataset)
        where = f"{name} {number}: {errors}"
        assert failing.fired >= 1 and errors, where
        for error in errors:
            check_error(dataset, error, code, name)
        if not lasting:
            # What failed once is read by the next who asks, of every other batch nothing is lost.
            assert failing.fired == len(errors) == 1 and found >= COUNT - 12, where
    assert read_all(dataset) == (COUNT, [])


@pytest.mark.parametrize("name", ["preadv", "open_read", "stat"])
def test_the_next_try_of_the_same_dataset_reads_what_failed_once(dataset: Path, name: str) -> None:
    """Nothing half read is kept: no cache, no note that a block was checked, no open file."""
    for number in range(1, 30):
        opened = shardload.open(dataset, verify="once")
        failing, errors = FailAt(number, errno.EIO, names=(name,)), 0
        with injected(failing):
            for _ in range(2):
                for ids in batches():
                    try:
                        samples = list(opened.__getitems__(ids))
                    except StorageError:
                        errors += 1
                        samples = list(opened.__getitems__(ids))
                    assert all(same(sample, mixed_sample(i)) for i, sample in zip(ids, samples, strict=True)), number
        assert errors == failing.fired
        if not failing.fired:
            assert number > 1
            return


class OneShardFails(Instrument):
    """Every read of one shard fails."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fired = name, 0
        self._descriptors: set[int] = set()

    def carry_out(self, name: str, *arguments: Any) -> Any:
        if name == "preadv" and arguments[0] in self._descriptors:
            self.fired += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        result = super().carry_out(name, *arguments)
        if name == "open_read" and arguments[0].endswith(self.name):
            self._descriptors.add(result)
        if name == "close":
            self._descriptors.discard(arguments[0])
        return result


def test_the_other_shards_stay_usable(dataset: Path) -> None:
    opened = shardload.open(dataset, verify="always")
    table = opened.table
    assert len(table) >= 3
    for shard_id in range(len(table)):
        opened = shardload.open(dataset, verify="always")
        failing, bad = OneShardFails(table[shard_id].name), []
        with injected(failing):
            for number in range(COUNT):
                try:
                    assert same(opened[number], mixed_sample(number)), f"sample {number} is wrong"
                except StorageError as error:
                    bad.append(number)
                    assert error.shard == table[shard_id].name
                    check_error(dataset, error, errno.EIO, "preadv")
        first = int(table.first_sample_ids[shard_id])
        assert failing.fired and bad == list(range(first, first + table[shard_id].num_samples))
        # And it is usable itself as soon as the device is.
        assert same(opened[first], mixed_sample(first))


def test_reads_that_fall_short(dataset: Path) -> None:
    for seed in range(5):
        short = ShortTransfers(seed)
        with injected(short):
            assert read_all(dataset) == (COUNT, []), f"seed {seed}"
        assert short.fired > 20, f"seed {seed}"


def test_nothing_stays_injected(dataset: Path) -> None:
    with injected(FailAt(1, errno.EIO, lasting=True)), pytest.raises(StorageError):
        shardload.open(dataset)
    assert not vars(OPERATIONS)
