"""Results of a scan written back: one dataset, sample i of sample i, whoever writes which part and whatever goes wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_dataset import ARRAYS, EVERY_TYPE, assert_same, value_of
from faults import FailAt, injected
from samples import EVERY_SCHEMA, LATER_SCHEMA, every_sample

import shardload
from shardload.errors import PackError
from shardload.loader.ranks import RankChoice, Ranks
from shardload.reader.verify import verify_dataset
from shardload.storage import LocalStorage, Operations
from shardload.writer import shared, target
from shardload.writer.lock import DirectoryLock
from shardload.writer.target import WORK

SCHEMA = {"double": "int64", "text": "str", "values": "float32[*]"}
SMALL: dict[str, Any] = {"shard_size": "20KiB", "piece_samples": 32}


@pytest.fixture(autouse=True)
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the device is no part of what is looked at here."""
    monkeypatch.setattr(os, "fsync", os.fstat)


def results_of(x: torch.Tensor) -> dict[str, Any]:
    numbers = x.tolist()
    return {
        "double": x * 2,
        "text": [f"sample {i} " * 40 for i in numbers],
        "values": [torch.full((i % 5,), float(i)) for i in numbers],
    }


def writer_of(
    scanned: Path, target: Path, num_replicas: int = 1, rank: int = 0, schema: Any = None, **options: Any
) -> shardload.ScanWriter:
    scan = shardload.scan(shardload.open(scanned), options.pop("batch_size", 8), num_replicas, rank)
    return shardload.ScanWriter(target, schema or SCHEMA, scan, **SMALL | options)


def do(job: shardload.ScanWriter, stop: int | None = None) -> list[int]:
    """Writes the results of a rank, or of its first batches; returns the samples."""
    done: list[int] = []
    for number, batch in enumerate(job):
        job.write(results_of(batch["x"]))
        done += batch["x"].tolist()
        if stop is not None and number + 1 == stop:
            break
    return done


def run(scanned: Path, target: Path, num_replicas: int = 1, **options: Any) -> str:
    """Runs all ranks, one after the other; returns the fingerprint of the output."""
    for rank in range(num_replicas):
        with writer_of(scanned, target, num_replicas, rank, **options) as job:
            do(job)
        assert (job.manifest is not None) == (rank >= min(num_replicas, 32) - 1)
    return shardload.open(target).fingerprint


@pytest.fixture(scope="module")
def fingerprint(scanned: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of the output of one rank that was not interrupted."""
    return run(scanned, tmp_path_factory.mktemp("whole") / "out")


def test_output_belongs_to_input_by_id(scanned: Path, tmp_path: Path) -> None:
    run(scanned, tmp_path / "out", 3)
    dataset, output = shardload.open(scanned), shardload.open(tmp_path / "out")
    assert len(output) == len(dataset) == 1000
    assert output.metadata["input_fingerprint"] == dataset.fingerprint
    assert (output.column("double") == 2 * dataset.column("x")).all()
    ids = np.random.default_rng(0).permutation(1000)[:200].tolist()
    for one, result in zip(dataset.__getitems__(ids), output.__getitems__(ids), strict=True):
        assert result["text"] == f"sample {one['x']} " * 40
        assert result["values"].tolist() == [one["x"]] * (one["x"] % 5)
    assert not verify_dataset(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "manifests", "packed.json", "shards", "tables"]


@pytest.mark.parametrize(("num_replicas", "batch_size"), [(2, 8), (5, 8), (40, 8), (1, 32), (3, 7), (2, 1000)])
def test_the_bytes_are_the_same_for_any_ranks_and_batches(
    scanned: Path, tmp_path: Path, fingerprint: str, num_replicas: int, batch_size: int
) -> None:
    assert run(scanned, tmp_path / "out", num_replicas, batch_size=batch_size) == fingerprint


def columns_of(samples: list[dict[str, Any]], types: dict[str, str]) -> dict[str, Any]:
    """Samples by field, in the forms that models give them."""
    columns: dict[str, Any] = {}
    for name, text in types.items():
        values = [sample[name] for sample in samples]
        kind, _, shape = text.partition("[")
        if kind in ARRAYS and "*" not in shape and not text.endswith("?"):
            array = np.array(values)
            # By their bits: what torch makes of a NaN is its own.
            bits = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.int16) if kind == "bfloat16" else None
            columns[name] = array.astype(kind) if bits is None else torch.tensor(bits).view(torch.bfloat16)
        else:
            columns[name] = tuple(values)
    return columns


def as_one_writer_does(tmp_path: Path, schema: Any, types: dict[str, str], samples: list[dict[str, Any]]) -> None:
    """Compares files with those of `ShardWriter`: a single piece is nothing else."""
    with shardload.ShardWriter(tmp_path / "in", {"x": "int64"}) as writer:
        for i in range(len(samples)):
            writer.write({"x": i})
    dataset = shardload.open(tmp_path / "in")
    how: dict[str, Any] = {"compression": "zstd:3", "shard_size": "64KiB"}
    facts = {"input_fingerprint": dataset.fingerprint, "model": "none"}
    with shardload.ShardWriter(tmp_path / "one", schema, dictionary="off", metadata=facts, **how) as writer:
        for sample in samples:
            writer.write(sample)
    scan = shardload.scan(dataset, 5, 1, 0)
    with shardload.ScanWriter(tmp_path / "out", schema, scan, metadata={"model": "none"}, **how) as job:
        for batch in job:
            job.write(columns_of([samples[i] for i in batch["x"].tolist()], types))
    assert job.manifest is not None
    assert job.manifest.fingerprint == shardload.open(tmp_path / "one").fingerprint


def test_every_kind_of_value_is_written_as_by_one_writer(tmp_path: Path) -> None:
    types = {f"field{n}": text for n, text in enumerate(EVERY_TYPE.values())}
    rng = np.random.default_rng(1)
    samples = [{name: value_of(text, rng) for name, text in types.items()} for _ in range(12)]
    as_one_writer_does(tmp_path, types, types, samples)
    for got, want in zip(shardload.open(tmp_path / "out"), samples, strict=True):
        for name in types:
            assert_same(got[name], want[name])


def test_missing_values_are_written_as_by_one_writer(tmp_path: Path) -> None:
    schema = EVERY_SCHEMA | LATER_SCHEMA
    types = {name: one["type"] if isinstance(one, dict) else one for name, one in schema.items()}
    as_one_writer_does(tmp_path, schema, types, [every_sample(i, later=True) for i in range(28)])


def test_a_nullable_field_may_be_left_out_of_a_batch(scanned: Path, tmp_path: Path) -> None:
    with writer_of(scanned, tmp_path / "out", schema={"a": "int64", "b": "float32?"}) as job:
        for number, batch in enumerate(job):
            x = batch["x"]
            job.write({"a": x} | ({"b": x.float()} if number % 2 else {}))
    found = shardload.open(tmp_path / "out").column("b")
    assert [i for i in range(1000) if not found.mask[i]] == [i for i in range(1000) if i // 8 % 2]


WRONG = [
    ({"double": np.zeros(7, np.int64)}, "field 'double': expected 8 rows.*got 7"),
    ({"double": np.zeros(8, np.float32)}, "sample 8: field 'double': expected int64, got"),
    ({"double": np.zeros((8, 2), np.int64)}, "sample 8: field 'double': expected int64, got array"),
    ({"double": 5}, "field 'double': expected rows, an array or a list of them, got int 5"),
    ({"text": ["a"] * 7 + [None]}, "sample 15: field 'text': expected str, got None"),
    ({"text": "abcdefgh"}, "field 'text': expected rows"),
    ({"values": [np.zeros(3, np.float32)] * 6 + [np.zeros((2, 2), np.float32)] * 2}, "sample 14: field 'values'"),
    ({"other": [1] * 8}, "field 'other' is not in the schema"),
    (None, "expected a mapping of field name to rows, got NoneType"),
]


def test_wrong_results_are_refused_whole_and_the_right_ones_taken_then(
    scanned: Path, tmp_path: Path, fingerprint: str
) -> None:
    with writer_of(scanned, tmp_path / "out") as job:
        for number, batch in enumerate(job):
            right = results_of(batch["x"])
            if number == 1:
                for wrong, message in WRONG:
                    with pytest.raises(PackError, match=message):
                        job.write(None if wrong is None else right | wrong)  # type: ignore[arg-type]
                with pytest.raises(PackError, match="expected float32"):
                    job.write({name: value for name, value in right.items() if name != "values"})
            job.write(right)
            with pytest.raises(PackError, match="take the next one"):
                job.write(right)
    assert shardload.open(tmp_path / "out").fingerprint == fingerprint


def test_a_batch_without_results_is_told(scanned: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="samples 8 to 16 were not written"), writer_of(scanned, tmp_path / "a") as job:
        do(job, 1)
        next(job)
        next(job)
    with pytest.raises(PackError, match="samples 0 to 8 were not written"), writer_of(scanned, tmp_path / "b") as job:
        next(iter(job))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists(), "nothing was worth keeping"


def test_errors_and_breaks_leave_what_is_finished(scanned: Path, tmp_path: Path, fingerprint: str) -> None:
    target = tmp_path / "out"
    with pytest.raises(PackError, match="goes on after it"), writer_of(scanned, target) as job:
        do(job, 31)
        next(job)
        job.write({})
    with pytest.raises(PackError, match="this writer is"):
        job.write({})
    with writer_of(scanned, target, 2, 1) as job:
        do(job, 2)
    assert job.manifest is None and not (target / "manifest.json").exists()
    with writer_of(scanned, target) as job:
        # 7 pieces of 4 batches, a part of the 8th, and from the other rank the rest of that.
        num_batches, done = len(job), do(job)
        assert job.num_samples == len(done) == 1000 - 8 * 32 and num_batches == 125 - 32
    assert job.manifest is not None and job.manifest.fingerprint == fingerprint
    with writer_of(scanned, target, 2, 0) as job:
        assert do(job) == []
    assert job.manifest.fingerprint == fingerprint


@pytest.mark.parametrize("damage", ["cut", "gone", "line"])
def test_parts_that_a_crash_took_are_written_again(
    scanned: Path, tmp_path: Path, fingerprint: str, damage: str
) -> None:
    target = tmp_path / "out"
    with writer_of(scanned, target) as job:
        do(job, 40)
    shard = sorted((target / "shards").iterdir())[3]
    journal = next((target / ".work").glob("journal-*"))
    if damage == "cut":
        os.truncate(shard, 5000)
    elif damage == "gone":
        shard.unlink()
    else:
        journal.write_bytes(journal.read_bytes()[:-7])
    assert run(scanned, target, 2) == fingerprint
    assert not verify_dataset(target)


def test_another_job_is_refused_and_named(scanned: Path, tmp_path: Path, numbers: Path) -> None:
    target = tmp_path / "out"
    with writer_of(scanned, target) as job:
        do(job, 10)
    for options, message in (
        ({"schema": {"double": "int64"}}, "option schema was"),
        ({"shard_size": "30KiB"}, "option shard_size was 20480 .* and is 30720 now"),
        ({"metadata": {"model": "b"}}, "option metadata"),
        ({"piece_samples": 64}, "option unit_samples was 32 .* and is 64 now"),
    ):
        with pytest.raises(PackError, match=message):
            writer_of(scanned, target, **options).__enter__()
    with pytest.raises(PackError, match="input_fingerprint"):
        writer_of(numbers, target).__enter__()
    with pytest.raises(PackError, match="unfinished pack"):
        shardload.ShardWriter(target, SCHEMA).__enter__()
    run(scanned, target, piece_samples=None)
    with pytest.raises(PackError, match="holds a dataset"):
        writer_of(scanned, target, metadata={"model": "b"}).__enter__()
    run(scanned, target, 2, metadata={"model": "b"}, replace=True)
    assert shardload.open(target).manifest.version == 2
    assert shardload.open(target, version=1).metadata.keys() == {"input_fingerprint"}


def test_other_writers_are_kept_off_and_waited_for(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "JOIN_SECONDS", 0.05)
    target = tmp_path / "out"
    with writer_of(scanned, target, 2, 0) as job:
        with pytest.raises(PackError, match="another writer is at work"):
            shardload.ShardWriter(target, SCHEMA, replace=True).__enter__()
        do(job)
    with (
        shardload.ShardWriter(tmp_path / "other", SCHEMA),
        pytest.raises(PackError, match="another writer is at work"),
    ):
        writer_of(scanned, tmp_path / "other").__enter__()


def test_a_rank_that_runs_twice_is_told_and_does_no_harm(scanned: Path, tmp_path: Path, fingerprint: str) -> None:
    target = tmp_path / "out"
    first, second, third = (writer_of(scanned, target, 2, 0) for _ in range(3))
    with first:
        do(first, 1)
        with pytest.raises(PackError, match="another process is writing samples from 0 on: is a rank running twice"):
            do(second.__enter__())
        third.__enter__()
        do(first)
    with pytest.raises(PackError, match="another process has written the results of samples from 0 on"):
        do(third)
    late = writer_of(scanned, target, 2, 1).__enter__()
    with writer_of(scanned, target) as job:
        do(job)
    with pytest.raises(PackError, match="has written"):
        do(late)
    assert shardload.open(target).fingerprint == fingerprint and not verify_dataset(target)


def at_once(scanned: Path, target: Path) -> list[Any]:
    """Runs two ranks in threads that begin and commit at the same moment; returns their manifests or errors."""
    together = threading.Barrier(2)

    def rank(number: int) -> Any:
        try:
            job = writer_of(scanned, target, 2, number)
            together.wait(60)
            do(job)
            # Both find everything complete then.
            job._output.wait()
            together.wait(60)
            return job.close()
        except BaseException as error:
            together.abort()
            return error

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(rank, range(2)))


def without_locks(*_: object) -> None:
    raise OSError(95, "no locks here")


@pytest.fixture(params=["locks", "no locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", without_locks)
        monkeypatch.setattr(fcntl, "fcntl", without_locks)
    yield request.param == "locks"


def test_two_ranks_that_begin_and_commit_at_once(scanned: Path, tmp_path: Path, fingerprint: str, locks: bool) -> None:
    for number in range(6):
        target = tmp_path / f"{number}"
        told = at_once(scanned, target)
        assert not [one for one in told if isinstance(one, BaseException)], told
        assert {manifest.fingerprint for manifest in told if manifest is not None} == {fingerprint}, told
        assert all(told) or not locks
        assert shardload.open(target).fingerprint == fingerprint
        assert not verify_dataset(target)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rank_that_joins_while_another_publishes_finds_it_done(
    scanned: Path, tmp_path: Path, fingerprint: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    first = writer_of(scanned, tmp_path / "out")
    do(first)
    list_files = LocalStorage.list

    def listed(storage: LocalStorage, name: str) -> list[str]:
        # The journals are looked for, and go before they are listed or before they are read.
        if name != WORK or first.manifest is not None:
            return list_files(storage, name)
        monkeypatch.undo()
        names = list_files(storage, name) if moment == "after" else []
        first.close()
        return names or list_files(storage, name)

    monkeypatch.setattr(LocalStorage, "list", listed)
    with writer_of(scanned, tmp_path / "out", 2, 1) as second:
        assert do(second) == []
    assert second.manifest is not None and first.manifest is not None
    assert second.manifest.fingerprint == first.manifest.fingerprint == fingerprint


def test_a_disk_that_fails_at_the_end_leaves_all_but_the_commit(
    scanned: Path, tmp_path: Path, fingerprint: str
) -> None:
    job = writer_of(scanned, tmp_path / "out")
    do(job)
    told = r"Input/output error; nothing was published; what was finished stays: [\w ]*$"
    fault = FailAt(1, errno.EIO, names=("link",), lasting=True, inner=Operations())
    with injected(fault), pytest.raises(PackError, match=told):
        job.close()
    with writer_of(scanned, tmp_path / "out") as job:
        assert do(job) == []
    assert shardload.open(tmp_path / "out").fingerprint == fingerprint


@pytest.mark.parametrize("moment", ["opened", "passed on"])
def test_a_rank_that_gives_up_does_not_take_the_directory_from_one_that_begins(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: str, moment: str
) -> None:
    root, removed = tmp_path / "out", []

    class Contested(DirectoryLock):
        """Where another process, which saw nobody there, tidies up at a moment at which nobody has the lock."""

        def take(self, shared: bool = False) -> bool:
            if not removed and shared == (moment == "passed on"):
                removed.append(sorted(path.name for path in root.iterdir()))
                shutil.rmtree(root)
            return super().take(shared)

    monkeypatch.setattr(target, "DirectoryLock", Contested)
    assert run(scanned, root, 2) == fingerprint
    assert removed == [[] if moment == "opened" else [".work", "shards"]]
    assert not (root / WORK).exists()


def test_nothing_to_scan_is_an_empty_output(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "in", {"x": "int64"}):
        pass
    run(tmp_path / "in", tmp_path / "out")
    assert len(shardload.open(tmp_path / "out")) == 0


def test_ranks_of_one_mesh_that_read_the_same_do_not_write(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RankChoice, "resolve", lambda self: Ranks(0, 2, "a mesh", num_copies=2))
    with pytest.raises(ValueError, match="only one of them can write"):
        writer_of(scanned, tmp_path / "out").__enter__()
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_are_refused(scanned: Path, tmp_path: Path) -> None:
    for options in (
        {"schema": {"_a": "int64"}},
        {"compression": "lzma"},
        {"shard_size": 0},
        {"piece_samples": 0},
        {"metadata": {"input_fingerprint": "x"}},
        {"metadata": {"a": 1.5}},
    ):
        with pytest.raises(ValueError):
            writer_of(scanned, tmp_path / "out", **options)  # type: ignore[arg-type]
