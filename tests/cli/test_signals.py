"""The real command, ended by real signals in the middle of a pack."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of two units that takes tens of seconds to pack with zstd:19. Read only."""
    path = tmp_path_factory.mktemp("slow") / "rows.jsonl"
    words = random.Random(3).randbytes(1 << 20).hex()
    with path.open("w") as file:
        for number in range(3300):
            file.write(json.dumps({"number": number, "text": words[number * 10 :][:10_000]}) + "\n")
    return path


def start(source: Path, target: Path, workers: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a pack in a process group of its own and returns when it has packed its first samples."""
    words = [sys.executable, "-m", "shardload", "pack", str(source), str(target)]
    words += ["--compression", "zstd:19", "--workers", str(workers)]
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


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "ended by a hang-up"),
    ],
)
def test_ended_by_a_signal(
    tmp_path: Path, slow: Path, environment, number: int, status: int, message: str, workers: int, group: bool
) -> None:
    """To the process alone, as `kill` does, or to its whole group, as a terminal and `timeout` do."""
    process = start(slow, tmp_path / "out", workers, environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= (workers if workers > 1 else 0)
    (os.killpg if group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (status, "", f"shardload: {message}\n")
    assert os.listdir(tmp_path) == []
    assert not any(Path(f"/proc/{child}/cmdline").exists() and "spawn_main" in cmdline(child) for child in children)


def cmdline(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_second_ctrl_c_changes_nothing(tmp_path: Path, slow: Path, environment) -> None:
    process = start(slow, tmp_path / "out", 2, environment)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "") and "Traceback" not in errors
    assert os.listdir(tmp_path) == []


def test_a_killed_worker_is_an_error_that_names_the_unit(tmp_path: Path, slow: Path, environment) -> None:
    process = start(slow, tmp_path / "out", 2, environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(int(child) for child in children if "spawn_main" in cmdline(child))
    os.kill(worker, signal.SIGKILL)
    output, errors = process.communicate(timeout=30)
    pattern = r"shardload: error: unit [01] \(.*rows\.jsonl\): the worker process was killed by SIGKILL .*; nothing was published"
    assert process.returncode == 1 and output == "" and re.fullmatch(pattern, errors.splitlines()[-1])
    assert os.listdir(tmp_path) == []
