"""Packs that are cut off: by signals, deaths and full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import shardload
from shardload.errors import PackError
from shardload.packing import Progress, pack
from shardload.packing.signals import signals_held
from shardload.storage import Operations
from shardload.writer.target import Target

SLOWLY: dict[str, Any] = {"compression": "zstd:19", "dictionary": "off"}
"""Samples take their time; a dictionary would take more than a second before the first of them."""
ROOT = str(Path(shardload.__file__).parents[1])


def children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing(tmp_path: Path, slow_rows, workers: int) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done.num_samples:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pack(slow_rows, tmp_path / "out", workers=workers, **SLOWLY, progress=interrupt)
    assert os.listdir(tmp_path) == [] and children() == []


def test_an_error_of_the_callback_leaves_nothing(tmp_path: Path, slow_rows) -> None:
    def fail(progress: Progress) -> None:
        if progress.done.num_samples:
            raise RuntimeError("mine")

    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="mine"):
        pack(slow_rows, tmp_path / "out", workers=2, **SLOWLY, progress=fail)
    assert os.listdir(tmp_path / "out") == [] and children() == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_child_that_a_callback_forks_leaves_the_work_alone(tmp_path: Path, rows, monkeypatch, workers: int) -> None:
    """It ends as any process does, by unwinding: through the pack of its parent."""
    monkeypatch.setattr("shardload.packing.progress.REPORT_SECONDS", 0)
    parent, ends = os.getpid(), []

    def fork(progress: Progress) -> None:
        if progress.done.num_samples and not ends:
            if pid := os.fork():
                ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            else:
                raise SystemExit

    try:
        summary = pack(rows, tmp_path / "out", workers=workers, unit_size=100_000, progress=fork)
    finally:
        if os.getpid() != parent:
            os._exit(7)
    assert ends == [7] and summary.num_samples == len(list(shardload.open(tmp_path / "out"))) == 2000


def test_death_of_a_worker_names_its_unit(tmp_path: Path, slow_rows) -> None:
    def kill(progress: Progress) -> None:
        if progress.done.num_samples:
            os.kill(children()[0], signal.SIGKILL)

    pattern = rf"unit [01] \({re.escape(slow_rows.name)}\): the worker process was killed by SIGKILL \(perhaps for want"
    with pytest.raises(PackError, match=pattern.replace(re.escape(slow_rows.name), ".*rows.jsonl")):
        pack(slow_rows, tmp_path / "out", workers=2, **SLOWLY, progress=kill)
    assert os.listdir(tmp_path) == [] and children() == []


def test_one_bad_unit_ends_the_others_at_once(tmp_path: Path, slow_rows, digests) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").symlink_to(slow_rows)
    (source / "b.jsonl").write_text("{")
    before, told = digests(source), []
    with pytest.raises(PackError, match=r"b\.jsonl line 1: broken JSON"):
        pack(source, tmp_path / "out", workers=2, **SLOWLY, unit_size=slow_rows.stat().st_size, progress=told.append)
    assert told[-1].num_units == 2 and told[-1].done.num_samples < 1000
    assert digests(source) == before and os.listdir(tmp_path) == ["source"]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from shardload.cli import main
sys.exit(main(["pack", sys.argv[1], sys.argv[2], "--workers", sys.argv[3], "--compression", "none"]))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_grow(tmp_path: Path, slow_rows, workers: str) -> None:
    command = [sys.executable, "-c", LIMITED, str(slow_rows), str(tmp_path / "out"), workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": ROOT})
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert last == f"shardload: error: {tmp_path}/out: cannot be written: File too large; nothing was published"
    assert os.listdir(tmp_path) == []


ORPHANED = """
import sys
import shardload
def tell(progress):
    if progress.done.num_samples:
        print("under way", flush=True)
shardload.pack(sys.argv[1], sys.argv[2], workers=2, compression="zstd:19", dictionary="off", progress=tell)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path, slow_rows, digests) -> None:
    command = [sys.executable, "-c", ORPHANED, str(slow_rows), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ROOT}) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        assert process.stdout is not None and process.stdout.readline() == "under way\n"
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [os.pidfd_open(int(pid)) for pid in listed]
        process.kill()
        limit.cancel()
    assert len(workers) >= 2
    for worker in workers:
        ended, _, _ = select.select([worker], [], [], 30)
        os.close(worker)
        assert ended
    # What they left opens nowhere, and the next pack clears it away.
    with pytest.raises(shardload.StorageError, match="is not a dataset"):
        shardload.open(tmp_path / "out")
    small = tmp_path / "small.jsonl"
    small.write_text('{"a": 1}\n')
    with pytest.raises(PackError, match="holds what an unfinished pack left"):
        pack(small, tmp_path / "out")
    pack(small, tmp_path / "out", replace=True)
    assert len(digests(tmp_path / "out")) == 5


BLOCKING = """
import threading
from dataclasses import dataclass
from shardload.errors import PackError
from shardload.format.manifest import Generation, Writer, describe
from shardload.format.schema import parse_schema
from shardload.importers import Piece, SourceFile, Unit
from shardload.packing.processes import Workers
from shardload.packing.unit import Job, Task
from shardload.storage import LocalStorage
from shardload.writer.recipe import Recipe

@dataclass(frozen=True)
class Reader:
    root: str

    def read(self, unit):
        if unit.number == 0:
            raise PackError("the first unit fails")
        print("under way", flush=True)
        threading.Event().wait()
        yield

def pack(root, numbers):
    facts = Generation("none", "", 1, 1, 0, 1, 1 << 20, Writer("", "", ""))
    job = Job(Reader(root), LocalStorage(root), Recipe(describe(parse_schema({"a": "str"}), 1, facts, {})))
    tasks = [Task(Unit(number, (Piece(SourceFile("a", 1, 0), 0, 1),))) for number in numbers]
    with Workers() as workers:
        workers.start(len(tasks))
        workers.pack(job, tasks, lambda unit, news: None, lambda: None)
"""


def test_workers_end_in_the_midst_of_an_endless_sample(tmp_path: Path) -> None:
    """A worker that is busy for ever does not see its pipe close: it watches its parent."""
    (tmp_path / "blocking.py").write_text(BLOCKING)
    code = "import sys, blocking; blocking.pack(sys.argv[1], [1, 2])"
    path = os.pathsep.join([ROOT, str(tmp_path)])
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["under way\n"] * 2
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [os.pidfd_open(int(pid)) for pid in listed]
        process.kill()
        limit.cancel()
        ended = [bool(select.select([worker], [], [], 30)[0]) for worker in workers]
        if not all(ended):
            for pid in listed:
                os.kill(int(pid), signal.SIGKILL)
    for worker in workers:
        os.close(worker)
    assert len(ended) >= 2 and all(ended)


def test_a_failure_ends_a_worker_in_the_midst_of_an_endless_sample(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    monkeypatch.syspath_prepend(tmp_path)
    import blocking  # type: ignore[import-not-found]

    with pytest.raises(PackError, match="the first unit fails"):
        blocking.pack(str(tmp_path), [0, 1])
    assert children() == []


class FailAfterCommit(Operations):
    """The replacement of manifest.json fails: the commit before it stands."""

    def replace(self, source: str, target: str) -> None:
        if target.endswith("manifest.json"):
            raise OSError(errno.EIO, "Input/output error")
        super().replace(source, target)


def test_abandon_after_the_commit_keeps_the_dataset(tmp_path: Path) -> None:
    writer = shardload.ShardWriter(tmp_path / "out", {"a": "int64"}, operations=FailAfterCommit())
    writer.write({"a": 7})
    with pytest.raises(PackError, match="Input/output error"):
        writer.close()
    assert [sample["a"] for sample in shardload.open(tmp_path / "out")] == [7]


class FailAtLink(Operations):
    def link(self, source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_abandon_before_the_commit_takes_the_table_too(tmp_path: Path) -> None:
    writer = shardload.ShardWriter(tmp_path / "out", {"a": "int64"}, operations=FailAtLink())
    writer.write({"a": 7})
    with pytest.raises(PackError, match="No space left on device"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_a_signal_during_the_commit_waits_for_its_end(tmp_path: Path, rows, monkeypatch) -> None:
    commit = Target.commit

    def interrupted(self: Target, *args: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return commit(self, *args)

    monkeypatch.setattr(Target, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(rows, tmp_path / "out", workers=1)
    assert len(shardload.open(tmp_path / "out")) == 2000


def test_signals_are_held_and_then_delivered() -> None:
    order = []
    with pytest.raises(KeyboardInterrupt):
        with signals_held():
            os.kill(os.getpid(), signal.SIGINT)
            order.append("held")
        order.append("never")
    assert order == ["held"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_in_other_threads_are_none_of_theirs() -> None:
    seen = []

    def work() -> None:
        with signals_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [signal.default_int_handler]


def test_workers_that_cannot_be_started(tmp_path: Path, texts) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(progress: Progress) -> None:
        # Enough for the first worker, not for sixty.
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))

    try:
        with pytest.raises(PackError, match=r"worker process \d+ of 60 cannot be started: .*Too many open files"):
            pack(texts, tmp_path / "out", workers=60, unit_size=1000, progress=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == [] and children() == []
