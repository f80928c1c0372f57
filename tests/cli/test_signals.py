"""The real command, ended by real signals in the middle of a pack."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import shardload

SLOWLY = ("--compression", "zstd:19", "--dictionary", "off")
"""Samples take their time; a dictionary would take more than a second before the first of them."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of two units that takes tens of seconds to pack with zstd:19. Read only."""
    path = tmp_path_factory.mktemp("slow") / "rows.jsonl"
    words = random.Random(3).randbytes(1 << 20).hex()
    with path.open("w") as file:
        for number in range(3300):
            file.write(json.dumps({"number": number, "text": words[number * 10 :][:10_000]}) + "\n")
    return path


def start(source: Path, target: Path, workers: int, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """Starts a pack in a process group of its own and returns when it has packed its first samples."""
    words = [sys.executable, "-m", "shardload", "pack", str(source), str(target)]
    words += [*SLOWLY, "--workers", str(workers), *more]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    limit = threading.Timer(60, process.kill)
    limit.start()
    assert process.stderr is not None
    told = []
    while line := process.stderr.readline():
        told.append(line)
        if re.match(r"\d+ %: [\d,]+ samples", line):
            break
    limit.cancel()
    assert line, told
    return process


each_signal = pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "ended by a hang-up"),
    ],
)


@pytest.mark.parametrize(
    ("workers", "group"),
    [
        (1, False),
        pytest.param(1, True, marks=pytest.mark.slow),  # a group of one
        pytest.param(2, False, marks=pytest.mark.slow),  # test_ended_by_a_signal_to_the_process_alone has one of them
        (2, True),
    ],
)
@each_signal
def test_ended_by_a_signal(
    tmp_path: Path, slow: Path, environment, number: int, status: int, message: str, workers: int, group: bool
) -> None:
    """To the process alone, as `kill` does, or to its whole group, as a terminal and `timeout` do."""
    end_by_a_signal(tmp_path, slow, environment, number, status, message, workers, group)


def test_ended_by_a_signal_to_the_process_alone(tmp_path: Path, slow: Path, environment) -> None:
    """Its workers are told by it."""
    end_by_a_signal(tmp_path, slow, environment, signal.SIGTERM, 143, "terminated", 2, False)


def end_by_a_signal(
    tmp_path: Path, slow: Path, environment, number: int, status: int, message: str, workers: int, group: bool
) -> None:
    process = start(slow, tmp_path / "out", workers, environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= (workers if workers > 1 else 0)
    (os.killpg if group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (status, "", f"shardload: {message}\n")
    assert os.listdir(tmp_path) == []
    assert not any(Path(f"/proc/{child}/cmdline").exists() and "spawn_main" in cmdline(child) for child in children)


def test_a_hang_up_under_nohup_is_ignored(tmp_path: Path, environment) -> None:
    """By the workers too, which a terminal that closes reaches as well."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": random.Random(i).randbytes(5000).hex()}) + "\n" for i in range(400)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(source, tmp_path / "out", 2, environment)
    finally:
        signal.signal(signal.SIGHUP, before)
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(shardload.open(tmp_path / "out")) == 400


def cmdline(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, slow: Path, environment) -> None:
    process = start(slow, tmp_path / "out", 2, environment)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "") and "Traceback" not in errors
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_killed_worker_is_an_error_that_names_the_unit(tmp_path: Path, slow: Path, environment) -> None:
    process = start(slow, tmp_path / "out", 2, environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(int(child) for child in children if "spawn_main" in cmdline(child))
    os.kill(worker, signal.SIGKILL)
    output, errors = process.communicate(timeout=30)
    pattern = r"shardload: error: unit [01] \(.*rows\.jsonl\): the worker process was killed by SIGKILL .*; nothing was published"
    assert process.returncode == 1 and output == "" and re.fullmatch(pattern, errors.splitlines()[-1])
    assert os.listdir(tmp_path) == []


STAYS = "what was packed stays: go on with the same command and --continue (resume=True)"


def first_shard(target: Path, process: subprocess.Popen[str]) -> None:
    """Returns when a part is in the journal; a process that ends before it is an error."""
    journal = target / ".work" / "journal"
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None
        select.select([], [], [], 0.01)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@each_signal
def test_what_was_packed_before_a_signal_is_gone_on_with(
    tmp_path: Path, slow: Path, environment, run, number: int, status: int, message: str, workers: int
) -> None:
    go_on_after_a_signal(tmp_path, slow, environment, run, number, status, message, workers)


def test_what_workers_packed_before_a_signal_is_gone_on_with(tmp_path: Path, slow: Path, environment, run) -> None:
    """The signals are told apart where there are no workers, and by `test_ended_by_a_signal`."""
    go_on_after_a_signal(tmp_path, slow, environment, run, signal.SIGINT, 130, "interrupted", 2)


def go_on_after_a_signal(
    tmp_path: Path, slow: Path, environment, run, number: int, status: int, message: str, workers: int
) -> None:
    more = ["--shard-size", "256KiB"]
    process = start(slow, tmp_path / "out", workers, environment, *more)
    first_shard(tmp_path / "out", process)
    os.killpg(process.pid, number)
    # Time for a busy machine; by itself it takes a tenth of a second.
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors.splitlines()[-1]) == (status, "", f"shardload: {message}; {STAYS}")
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "out/shards").iterdir()}
    assert kept
    words = ["pack", slow, tmp_path / "out", *SLOWLY, *more]
    status, _, errors = run(*words)
    assert status == 1 and "go on with the same command and --continue (resume=True), or replace it" in errors[-1]
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out/shards").iterdir()} == kept


def test_continued_after_a_signal_to_the_same_bytes(tmp_path: Path, environment, run) -> None:
    source = tmp_path / "rows.jsonl"
    words = random.Random(6).randbytes(1 << 16).hex()
    source.write_text("".join(json.dumps({"text": words[i % 5000 :][:9000]}) + "\n" for i in range(500)))
    more = ["--shard-size", "64KiB"]
    process = start(source, tmp_path / "out", 1, environment, *more)
    first_shard(tmp_path / "out", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    words_now = [*SLOWLY, *more, "--workers", "2"]
    status, output, _ = run("pack", source, tmp_path / "out", *words_now, "--continue")
    assert status == 0 and "500 samples packed and on disk" in output
    assert run("pack", source, tmp_path / "whole", *words_now)[0] == 0
    names = sorted(str(path.relative_to(tmp_path / "whole")) for path in (tmp_path / "whole").rglob("*"))
    assert names == sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    for name in names:
        if (tmp_path / "out" / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    status, output, _ = run("pack", source, tmp_path / "out", *words_now, "--continue")
    assert status == 0 and "500 samples complete before: nothing was left to do" in output


def test_a_closed_standard_output_is_status_141(tmp_path: Path, environment) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"a": 1}\n')
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shardload", "pack", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, env=environment)
    os.close(writing)
    assert done.returncode == 141 and (tmp_path / "out/manifest.json").exists() and b"Traceback" not in done.stderr
