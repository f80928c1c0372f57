"""Writes to be disturbed, and what may be there afterwards.

A scenario is a value: a test of faults goes through any of them without knowing which command writes.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from faults import Counting, NoDevice, files_below

import shardload
from shardload.errors import StorageError
from shardload.reader.verify import verify_dataset
from shardload.storage import Operations
from shardload.writer import ShardWriter

SCHEMA = {"data": "bytes", "x": "int64"}
Content = tuple[tuple[bytes, int], ...]

_ALLOWED_DAMAGE = re.compile(r"was committed after it|was not finished, or damaged since")


def content(first: int, count: int) -> Content:
    """Returns samples, each of which tells its number."""
    return tuple((number.to_bytes(2, "little") * 1500, number) for number in range(first, first + count))


def write(samples: Content, target: Path, operations: Operations, replace: bool = False) -> None:
    """Writes samples in shards of few."""
    with ShardWriter(target, SCHEMA, shard_size="20KiB", replace=replace, operations=operations) as writer:
        for data, number in samples:
            writer.write({"data": data, "x": number})


@dataclass(frozen=True)
class Scenario:
    """A write that is to be disturbed."""

    name: str
    prepare: Callable[[Path, Operations], None]
    """Makes what is there before, and durable."""
    write: Callable[[Path, Operations], None]
    """The write under test."""
    before: Content | None
    """What opens before it; None where nothing does."""
    after: Content
    """What opens after it."""
    version: int
    """The version that it commits."""

    def allowed(self, committed: bool) -> tuple[Content | None, ...]:
        """Returns what may open if the write has returned, or may have been cut off anywhere."""
        return (self.after,) if committed else (self.before, self.after)


def add(samples: Content, target: Path, operations: Operations) -> None:
    """Adds samples to the dataset that is there."""
    with ShardWriter(target, shard_size="20KiB", append=True, operations=operations) as writer:
        for data, number in samples:
            writer.write({"data": data, "x": number})


def _nothing(target: Path, operations: Operations) -> None:
    assert not target.exists()


def _both(first: Content, second: Content, target: Path, operations: Operations) -> None:
    write(first, target, operations)
    write(second, target, operations, replace=True)


_OLD, _NEW, _NEXT = content(100, 5), content(200, 9), content(300, 3)

CREATE = Scenario("create", _nothing, partial(write, _NEW), None, _NEW, 1)
REPLACE = Scenario("replace", partial(write, _OLD), partial(write, _NEW, replace=True), _OLD, _NEW, 2)
AGAIN = Scenario("replace-twice", partial(_both, _NEW, _OLD), partial(write, _NEW, replace=True), _OLD, _NEW, 3)
"""Over several versions, of which an older one holds the same samples."""
APPEND = Scenario("append", partial(write, _OLD), partial(add, _NEW), _OLD, _OLD + _NEW, 2)
NEXT = Scenario("next", partial(write, _OLD), partial(write, _NEXT, replace=True), _OLD, _NEXT, 2)
SCENARIOS = (CREATE, REPLACE, APPEND, AGAIN)


def read(target: Path, version: int | None = None) -> Content | None:
    """Returns what opens, every byte of it checked; None where there is no dataset. Any other error is the test's."""
    try:
        dataset = shardload.open(target, version=version, verify="always")
    except StorageError as error:
        missing = version is not None and f"manifests/{version} is missing" in str(error)
        if "is not a dataset" not in str(error) and not missing:
            raise
        return None
    return tuple((sample["data"], sample["x"]) for sample in dataset)


class Seen:
    """Disks that were looked at before: traces lead to the same ones again and again."""

    def __init__(self) -> None:
        self._seen: set[frozenset[tuple[str, bytes | None]]] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, files: dict[str, bytes | None]) -> bool:
        """Notes a disk, and tells whether it is the first of its kind."""
        key = frozenset(files.items())
        known = key in self._seen
        self._seen.add(key)
        return not known


_looked_at: dict[bytes, tuple[Content | None, list[str]]] = {}


def _look(target: Path, files: dict[str, bytes | None]) -> tuple[Content | None, list[str]]:
    """Returns what opens and what verify minds; found out once for the same files, which many disturbed writes leave."""
    key = hashlib.sha256(pickle.dumps(sorted(files.items()))).digest()
    if key not in _looked_at:
        found = read(target)
        damages = [] if found is None else verify_dataset(target, workers=1)
        _looked_at[key] = found, [damage.message for damage in damages]
    return _looked_at[key]


def check(scenario: Scenario, target: Path, committed: bool, where: Any) -> Content | None:
    """Checks what a disturbed write left: the dataset before or the one after, wholly, and nothing verify minds."""
    found, messages = _look(target, files_below(target))
    assert found in scenario.allowed(committed), f"{where}: {_name(scenario, found)} opens"
    if found is None:
        return None
    damages = [message for message in messages if not _is_allowed(scenario, found, message)]
    assert not damages, f"{where}: {damages}"
    return found


def _is_allowed(scenario: Scenario, found: Content, damage: str) -> bool:
    # FORMAT.md, Commit: a crash after the commit leaves manifest.json behind, one within it an unfinished manifest.
    return found == scenario.before != scenario.after and bool(_ALLOWED_DAMAGE.search(damage))


def _name(scenario: Scenario, found: Content | None) -> str:
    if found is None:
        return "nothing"
    return {scenario.before: "the dataset before", scenario.after: "the dataset after"}.get(found, f"{found!r:.200}")


class Repair:
    """The write that comes after the disturbed one, of other samples, and the files it leaves in undisturbed runs."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        """Makes the undisturbed runs below a directory of their own."""
        self._scenario = scenario
        self._files: dict[bool, dict[str, bytes | None]] = {}
        for committed in (False, True):
            target = directory / f"undisturbed-{committed}"
            scenario.prepare(target, NoDevice())
            if committed:
                scenario.write(target, NoDevice())
            self._write(target)
            self._files[committed] = files_below(target)

    def check(self, target: Path, where: Any, tables: bool = True) -> None:
        """Writes anew and compares every file with what an undisturbed run leaves: nothing else may be there.

        Shard tables that nothing names are passed over unless `tables`.
        """
        committed = _is_committed(self._scenario, target)
        self._write(target)
        found, wanted = files_below(target), self._files[committed]
        assert _look(target, found) == (_NEXT, []), where
        if not tables:
            found = {name: data for name, data in found.items() if not name.startswith("tables/") or name in wanted}
        assert sorted(found) == sorted(wanted), (
            f"{where}: extra {found.keys() - wanted.keys()}, lost {wanted.keys() - found}"
        )
        assert found == wanted, where

    def _write(self, target: Path) -> None:
        write(_NEXT, target, NoDevice(), replace=True)


def _is_committed(scenario: Scenario, target: Path) -> bool:
    try:
        return read(target, scenario.version) is not None
    except shardload.FormatError:
        return False  # cut off within the commit, where there are no hard links


def operations_of(scenario: Scenario, directory: Path, inner: type[Operations] = NoDevice) -> Counting:
    """Returns the operations of an undisturbed run, counted below a directory of its own."""
    # As deep as the targets of the tests: each directory that is made costs operations.
    target = directory / "counted/set"
    scenario.prepare(target, NoDevice())
    counting = Counting(inner())
    scenario.write(target, counting)
    assert read(target) == scenario.after
    shards = [name for name in os.listdir(target / "shards") if name.startswith(f"{scenario.version:04d}-")]
    assert len(shards) >= 3, "several parts are wanted"
    return counting


def every(numbers: Sequence[int], step: int) -> list[int]:
    """Returns every so manyth number and the last."""
    return sorted({*numbers[::step], *numbers[-1:]})
