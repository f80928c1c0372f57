"""What is written behind the loop that gives it: bounded, copied, in its order, and told of when it fails."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import FailAt, injected

import shardload
from shardload.errors import PackError
from shardload.format.schema import parse_schema
from shardload.inference import output
from shardload.inference.behind import Behind
from shardload.inference.output import Output
from shardload.reader.verify import verify_dataset
from shardload.storage import Operations
from shardload.writer.batch import BatchEncoder
from shardload.writer.gathered import Gathered, stored_bytes

SCHEMA = {"x": "int64", "wide": "float32[256]", "items": "int32[*]", "text": "str"}


@pytest.fixture(autouse=True)
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", os.fstat)


def results_of(numbers: np.ndarray) -> dict[str, Any]:
    return {
        "x": numbers,
        "wide": np.repeat(numbers.astype(np.float32), 256).reshape(-1, 256),
        "items": np.repeat(numbers.astype(np.int32), 3).reshape(-1, 3),
        "text": [f"sample {number}" for number in numbers],
    }


def writer_of(scanned: Path, target: Path, batch_size: int = 8, **options: Any) -> shardload.ScanWriter:
    scan = shardload.scan(shardload.open(scanned), batch_size, 1, 0)
    return shardload.ScanWriter(target, SCHEMA, scan, **{"piece_samples": 100} | options)


def run(scanned: Path, target: Path, batch_size: int = 8, **options: Any) -> str:
    with writer_of(scanned, target, batch_size, **options) as job:
        for batch in job:
            job.write(results_of(batch["x"].numpy()))
    return shardload.open(target).fingerprint


@pytest.mark.parametrize("together", [1, 9000, 1 << 30])
def test_how_much_is_written_at_a_time_changes_no_byte(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    for shard_size in ("64KiB", "1MiB"):
        usual = run(scanned, tmp_path / f"usual-{shard_size}", 100, shard_size=shard_size)
        with monkeypatch.context() as patched:
            patched.setattr(output, "_TOGETHER_BYTES", together)
            patched.setattr(output, "_MAX_WAITING_BYTES", 1 if together == 1 else 1 << 30)
            assert run(scanned, tmp_path / f"other-{shard_size}", shard_size=shard_size) == usual
    assert not verify_dataset(tmp_path / "other-64KiB")


def test_results_may_be_changed_once_they_were_given(scanned: Path, tmp_path: Path) -> None:
    with writer_of(scanned, tmp_path / "out") as job:
        for batch in job:
            results = results_of(batch["x"].numpy())
            job.write(results)
            for name in ("x", "wide", "items"):
                results[name][...] = 0
            results["text"].clear()
    run(scanned, tmp_path / "whole")
    assert shardload.open(tmp_path / "out").fingerprint == shardload.open(tmp_path / "whole").fingerprint


@pytest.mark.parametrize("kind", ["open_new", "write", "fsync"])
def test_a_disk_that_fails_is_told_by_a_later_call(scanned: Path, tmp_path: Path, kind: str) -> None:
    fault = FailAt(60, errno.EIO, names=(kind,), lasting=True, inner=Operations())
    job = writer_of(scanned, tmp_path / "out", shard_size="32KiB", piece_samples=64)
    told = r"cannot be written.*Input/output error; nothing was published; what was finished stays"
    with injected(fault), pytest.raises(PackError, match=told), job:
        for batch in job:
            job.write(results_of(batch["x"].numpy()))
    with pytest.raises(PackError, match=r"this writer is (out of use|closed)"):
        next(job)
    with writer_of(scanned, tmp_path / "out", shard_size="32KiB", piece_samples=64) as job:
        for batch in job:
            job.write(results_of(batch["x"].numpy()))
    assert 0 < job.num_samples < 1000
    assert shardload.open(tmp_path / "out").column("x").tolist() == list(range(1000))
    assert not verify_dataset(tmp_path / "out")


def test_a_piece_waits_for_no_other(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece comes to the device last, as by the threads it may, and all are there."""
    add, later = Output._add, threading.Event()

    def held(self: Output, piece: Any, *rest: Any) -> None:
        if piece.number == 0:
            assert later.wait(60)
        add(self, piece, *rest)
        if piece.number == 2:
            later.set()

    monkeypatch.setattr(Output, "_add", held)
    held_back = run(scanned, tmp_path / "out")
    monkeypatch.undo()
    assert held_back == run(scanned, tmp_path / "whole")


def test_a_forked_child_that_leaves_writes_nothing(scanned: Path, tmp_path: Path) -> None:
    job = writer_of(scanned, tmp_path / "out", shard_size="20KiB").__enter__()
    for _ in range(3):
        job.write(results_of(next(job)["x"].numpy()))
    # The last batch is still gathered: with it a part would be begun or come to its end.
    for waiting in (job._output._writing, job._output._behind):  # type: ignore[union-attr]
        waiting.wait()
    assert len(job._output._gathered)  # type: ignore[union-attr]
    before = {path: path.stat().st_size for path in (tmp_path / "out").rglob("*")}
    child = os.fork()
    if not child:
        # Whether a thread would be there to do it is another matter.
        Behind.__call__ = lambda *_: os._exit(3)  # type: ignore[method-assign]
        job._output.leave()  # type: ignore[union-attr]
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert {path: path.stat().st_size for path in (tmp_path / "out").rglob("*")} == before
    for batch in job:
        job.write(results_of(batch["x"].numpy()))
    assert job.close() is not None


def test_who_gives_much_waits_and_is_told_of_errors() -> None:
    behind, go, done = Behind(1, 2, 100), threading.Event(), list[int]()

    def work(number: int) -> None:
        assert go.wait(60)
        done.append(number)
        if number == 1:
            raise OSError(errno.ENOSPC, "full")

    behind(lambda: work(0), 500)
    with ThreadPoolExecutor(1) as other:
        waits = other.submit(behind, lambda: work(1), 60)
        with pytest.raises(TimeoutError):
            waits.result(0.05)
        go.set()
        waits.result(60)
    with pytest.raises(OSError, match="full"):
        behind.wait()
    behind(lambda: work(2), 1)
    behind.close()
    assert done == [0, 1, 2]


def test_gathered_batches_are_one_batch_and_their_memory_is_used_again() -> None:
    schema = parse_schema(SCHEMA)
    gathered = Gathered(schema, 1 << 20, 50)
    for first in (0, 1000):
        whole = BatchEncoder(schema).encode(results_of(np.arange(first, first + 50)), 0, 50)
        for start in range(first, first + 50, 10):
            batch = BatchEncoder(schema).encode(results_of(np.arange(start, start + 10)), 0, 10)
            assert gathered.fits(batch) and not gathered.is_full
            gathered.add(batch, stored_bytes(batch))
        one = gathered.joined()
        assert gathered.is_full and not gathered.fits(batch) and gathered.num_bytes == stored_bytes(one)
        assert [one.sample(i) for i in range(50)] == [whole.sample(i) for i in range(50)]
        memory = one.wide[0].__array_interface__["data"][0]
        gathered.clear()
        assert not len(gathered) and gathered.fits(whole)
    gathered.add(batch := BatchEncoder(schema).encode(results_of(np.arange(10)), 0, 10), 1)
    assert gathered.joined().wide[0].__array_interface__["data"][0] == memory and not batch.wide
