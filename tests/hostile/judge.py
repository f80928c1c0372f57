"""What a hostile dataset may do to a reader: refuse, with one typed error that names the place, at small cost."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import same

import shardload
from shardload.reader.verify import Damage, verify_dataset

EXTRA_BYTES = 256 << 20
"""Memory that a refusal may cost, as address space."""
MAX_MESSAGE = 2000

TYPED = (shardload.FormatError, shardload.StorageError)


@contextlib.contextmanager
def bounded_memory(extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Makes every allocation past a bound fail, whether its pages are ever touched or not."""
    with open("/proc/self/statm") as facts:
        used = int(facts.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reads_of(dataset: shardload.ShardDataset, names: list[str]) -> dict[str, Callable[[], Any]]:
    """Every way to read a dataset, by a name that says which."""
    count = min(len(dataset), 64)
    reads: dict[str, Callable[[], Any]] = {f"item {i}": lambda i=i: dataset[i] for i in range(count)}
    reads["batch"] = lambda: list(dataset.__getitems__(range(count)))
    for one in dataset.schema.fields:
        if one.fixed:
            reads[f"column {one.name}"] = lambda name=one.name: dataset.column(name)
        elif not one.listed:
            reads[f"lengths {one.name}"] = lambda name=one.name: dataset.lengths(name)
    reads["sizes"] = lambda: list(dataset.record_sizes())
    reads["statistics"] = lambda: {name: repr(one) for name, one in dataset.statistics().items()}
    reads["hint"] = lambda: dataset.will_need(np.arange(count))
    for name in names:
        reads[f"find {name}"] = lambda name=name: find(dataset, name)
    return reads


def find(dataset: shardload.ShardDataset, name: str) -> int | None:
    try:
        return dataset.find(name)
    except KeyError:
        return None


@dataclass
class Verdict:
    """What came of reading a dataset in every way."""

    errors: dict[str, BaseException] = field(default_factory=dict)
    """Way of reading -> its error."""
    wrong: list[str] = field(default_factory=list)
    """Ways of reading that gave something else than the sound dataset does, and no error."""


def read_all(path: Path, sound: dict[str, Any], names: list[str], ways: tuple[str, ...] = ()) -> Verdict:
    """Reads a dataset in every way, or in those that start so.

    An error that is not typed, or does not name the dataset, fails the test.
    """
    verdict = Verdict()
    with bounded_memory():
        try:
            dataset = shardload.open(path, verify="always")
        except TYPED as error:
            check_error(error, path)
            return Verdict({"open": error})
        for way, read in reads_of(dataset, names).items():
            if ways and not way.startswith(ways):
                continue
            try:
                value = read()
            except TYPED as error:
                check_error(error, path)
                verdict.errors[way] = error
                continue
            # What another schema or count adds has nothing to be compared with.
            if way in sound and not alike(value, sound[way]):
                verdict.wrong.append(way)
        if len(dataset) != sum(way.startswith("item") for way in sound):
            verdict.wrong.append("length")
    return verdict


def alike(left: Any, right: Any) -> bool:
    """Whether two values are equal; also lists of samples, masked arrays and NaN."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(left, np.ma.MaskedArray):
        return bool(np.array_equal(left.mask, right.mask)) and bool(np.array_equal(left.filled(0), right.filled(0)))
    return same(left, right)


def check_error(error: BaseException, path: Path) -> None:
    """Checks that an error says where, in one sentence of bearable length."""
    message = str(error)
    assert isinstance(error, TYPED)
    assert str(path) in message, message
    assert len(message) <= MAX_MESSAGE and "\n" not in message, message
    assert error.dataset in (None, str(path))
    if error.sample_id is not None:
        assert f"sample {error.sample_id}" in message, message


def check_verify(path: Path) -> list[Damage]:
    """Returns what verify finds."""
    with bounded_memory():
        damages = verify_dataset(path, samples=True, workers=1)
    assert all(damage.message and damage.file for damage in damages)
    return damages


def refused(path: Path, way: str = "", kind: type[BaseException] | tuple[type[BaseException], ...] = TYPED) -> None:
    """Checks the cheap half of a judgement: that opening, or the first sample of the first shard, is refused."""
    with bounded_memory(), pytest.raises(kind) as caught:
        dataset = shardload.open(path)
        assert way != "open", "it opened"
        # The way of the fewest steps; the heads of all shards are looked at.
        dataset[0]
        dataset[-1]
        pytest.fail("the dataset was read")
    check_error(caught.value, path)
