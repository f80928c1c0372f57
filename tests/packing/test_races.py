"""Several packs at one target at once: one wins, the others are told, and readers keep what they opened."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import in_child
from killing import Counted, KilledAt

import shardload
from shardload.errors import PackError
from shardload.packing import pack
from shardload.reader.verify import verify_dataset

WRITERS = 16
TOLD = ("another writer", "exists and holds", "was written by another writer", "cannot be written", "cannot be read")


def rows(path: Path, label: int, count: int = 30) -> Path:
    path.write_text("".join(json.dumps({"label": label, "n": n}) + "\n" for n in range(count)))
    return path


def race(works: list[Callable[[], object]]) -> list[str]:
    """Lets processes start at the same moment; returns what became of each: nothing, or the message of its PackError."""
    go, gone = os.pipe()
    results, pids = [], []
    for work in works:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            text = "no end"
            try:
                os.close(gone)
                os.read(go, 1)
                work()
                text = ""
            except PackError as error:
                text = str(error)
            except BaseException as error:
                text = f"unexpected {type(error).__name__}: {error}"
            finally:
                os.write(writing, text.encode()[:4000])
                os._exit(0)
        os.close(writing)
        pids.append(pid)
        results.append(reading)
    os.close(go)
    os.close(gone)
    texts = []
    for pid, reading in zip(pids, results, strict=True):
        with open(reading, "rb") as pipe:
            texts.append(pipe.read().decode())
        os.waitpid(pid, 0)
    return texts


def without_locks(*_: object) -> None:
    raise OSError(95, "no locks here")


def run_round(tmp_path: Path, number: int, locks: bool) -> None:
    target = tmp_path / f"{number}"
    sources = [rows(tmp_path / f"{n}.jsonl", n) for n in range(WRITERS)]
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "operations": Counted()}
    works = [lambda source=source: pack(source, target, **more) for source in sources]
    told = race(works)  # type: ignore[arg-type]
    assert all(not text or any(known in text for known in TOLD) for text in told), told
    winners = [n for n, text in enumerate(told) if not text]
    # Without locks all may stand in each other's way; but no two may win, and nothing half done may appear.
    assert len(winners) == 1 if locks else len(winners) <= 1, told
    if winners:
        assert set(shardload.open(target).column("label").tolist()) == set(winners)
        assert not verify_dataset(target)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_one_of_sixteen_wins(tmp_path: Path) -> None:
    for number in range(3):
        run_round(tmp_path, number, locks=True)


@pytest.mark.slow  # tools/test --slow tests/packing/test_races.py
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("locks", [True, False])
def test_one_of_sixteen_wins_fifty_times(tmp_path: Path, monkeypatch, locks: bool) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    for number in range(50):
        run_round(tmp_path, number, locks)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_at_most_one_of_sixteen_wins_without_locks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    for number in range(2):
        run_round(tmp_path, number, locks=False)


few_rounds = pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@few_rounds
@pytest.mark.parametrize("locks", [True, False])
def test_replacing_ones_each_make_a_version_and_readers_keep_theirs(
    tmp_path: Path, monkeypatch, locks: bool, rounds: int
) -> None:
    target = tmp_path / "out"
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "operations": Counted(), "replace": True}
    pack(rows(tmp_path / "first.jsonl", 99), target, **more)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    reader, version = shardload.open(target), 1
    sources = [rows(tmp_path / f"{n}.jsonl", n) for n in range(6)]
    for _ in range(rounds):
        told = race([lambda source=source: pack(source, target, **more) for source in sources])  # type: ignore[misc]
        assert not [text for text in told if text and not any(known in text for known in TOLD)]
        num_won = told.count("")
        assert num_won >= 1 or not locks
        # A loser without a lock may have been cut off by another one after its commit.
        versions = sorted(int(name) for name in os.listdir(target / "manifests"))
        assert len(versions) - version >= num_won if not locks else len(versions) - version == num_won
        version = len(versions)
        for number in versions:
            dataset = shardload.open(target, version=number)
            assert len(set(dataset.column("label").tolist())) == 1 and dataset.column("n").tolist() == list(range(30))
    assert [sample["label"] for sample in reader] == [99] * 30


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@few_rounds
@pytest.mark.parametrize("locks", [True, False])
def test_continuing_races_with_continuing_and_replacing(
    tmp_path: Path, monkeypatch, digests, locks: bool, rounds: int
) -> None:
    source, other = rows(tmp_path / "a.jsonl", 1, 400), rows(tmp_path / "b.jsonl", 2, 400)
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "unit_size": 3000, "operations": Counted()}
    pack(source, tmp_path / "whole", **more)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    for number in range(rounds):
        target = tmp_path / f"{number}"
        at = KilledAt((40, 67, 49, 58)[number % 4])
        assert in_child(lambda: pack(source, target, **more | {"operations": at}), group=True) == -signal.SIGKILL  # noqa: B023
        works: list[Callable[[], object]] = [lambda: pack(source, target, resume=True, **more)] * 5  # noqa: B023
        works += [lambda: pack(other, target, replace=True, **more)] * 3  # noqa: B023
        told = race(works)
        assert not any("unexpected" in text for text in told), told
        if not (target / "manifest.json").exists():
            assert not locks
            continue
        for version in os.listdir(target / "manifests"):
            labels = shardload.open(target, version=int(version)).column("label").tolist()
            assert labels in ([1] * 400, [2] * 400)
        if locks and told[5:].count("") == 0:
            assert digests(target) == digests(tmp_path / "whole")


@pytest.mark.parametrize("moment", [100, 400])
def test_who_was_overtaken_is_told_and_takes_nothing_away(tmp_path: Path, monkeypatch, moment: int) -> None:
    """A pack that another process continues to its end, as can be where nothing locks, publishes nothing itself."""
    monkeypatch.setattr(fcntl, "flock", without_locks)
    source, target = rows(tmp_path / "a.jsonl", 1, 400), tmp_path / "out"
    monkeypatch.setattr("shardload.packing.progress.REPORT_SECONDS", 0)
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "unit_size": 3000}
    statuses: list[int] = []

    def overtake(progress: shardload.packing.Progress) -> None:
        if progress.done.num_samples >= moment and not statuses:
            statuses.append(in_child(lambda: pack(source, target, resume=True, **more), group=True))

    with pytest.raises(PackError, match=r"another writer has taken over|written by another writer") as caught:
        pack(source, target, progress=overtake, **more)
    assert "--continue" not in str(caught.value)
    assert statuses == [0] and len(shardload.open(target)) == 400 and not verify_dataset(target)


def test_the_shards_of_another_pack_are_never_taken_for_own_ones(tmp_path: Path, monkeypatch) -> None:
    """Without locks, another pack may have begun between this one's look at the target and its first file there."""
    monkeypatch.setattr(fcntl, "flock", without_locks)
    mine, theirs, target = rows(tmp_path / "a.jsonl", 1, 400), rows(tmp_path / "b.jsonl", 2, 400), tmp_path / "out"
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "unit_size": 3000, "replace": True}
    write_record, statuses = shardload.packing.session.write_record, []

    def begin_late(*arguments: Any) -> None:
        if not statuses:
            statuses.append(0)
            at = KilledAt(70)
            statuses[0] = in_child(lambda: pack(theirs, target, **more, operations=at), group=True)
            assert (target / ".work" / "journal").stat().st_size
        write_record(*arguments)

    monkeypatch.setattr(shardload.packing.session, "write_record", begin_late)
    with pytest.raises(PackError, match="another writer is at work there"):
        pack(mine, target, **more)
    assert statuses == [-signal.SIGKILL] and not (target / "manifest.json").exists()


@pytest.mark.parametrize("name", ["table", "manifest"])
def test_a_file_of_another_writer_is_not_published_as_own(tmp_path: Path, monkeypatch, name: str) -> None:
    """Without locks, what was prepared may be replaced by another writer's before it gets its name."""
    monkeypatch.setattr(fcntl, "flock", without_locks)
    write = shardload.storage.LocalStorage.write

    def replaced(storage: Any, path: str, data: bytes) -> None:
        write(storage, path, data + b" " if path == f".work/{name}" else data)

    monkeypatch.setattr(shardload.storage.LocalStorage, "write", replaced)
    with pytest.raises(PackError, match="another writer is at work there"):
        pack(rows(tmp_path / "a.jsonl", 1), tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()
