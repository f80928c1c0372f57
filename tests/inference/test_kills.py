"""Inference jobs whose ranks are killed with -9: complete, each sample once, nothing redone, and the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inference.kill_program import BATCH, PIECE, rank_of_job
from launch import ROOT, python_path

import shardload
from shardload.reader.verify import verify_dataset

PROGRAM = Path(__file__).parent / "kill_program.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": python_path(ROOT, ROOT / "tests"),
    "OMP_NUM_THREADS": "1",
}


def check(output: Path, fingerprint: str) -> None:
    dataset = shardload.open(output)
    assert dataset.column("double").tolist() == [2 * i for i in range(1000)]
    assert [sample["text"] for sample in dataset] == [f"sample {i} " * 40 for i in range(1000)]
    assert dataset.fingerprint == fingerprint
    assert not verify_dataset(output)
    assert not (output / ".work").exists() and len(os.listdir(output / "shards")) == dataset.manifest.num_shards


def uninterrupted(scanned: Path, output: Path) -> str:
    rank_of_job(str(scanned), str(output), 1, 0)
    return shardload.open(output).fingerprint


@pytest.mark.parametrize("wanted", [20, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_at_random_operations(scanned: Path, tmp_path: Path, wanted: int) -> None:
    command = [sys.executable, str(PROGRAM), str(scanned), str(tmp_path), str(wanted), str(wanted)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = json.loads(done.stdout)
    assert sum(job["kills"] for job in jobs) >= wanted
    assert not any(job["redone"] for job in jobs)
    fingerprint = uninterrupted(scanned, tmp_path / "whole")
    for job in jobs:
        check(Path(job["output"]), fingerprint)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_by_somebody_else(scanned: Path, tmp_path: Path) -> None:
    fingerprint, draw, kills = uninterrupted(scanned, tmp_path / "whole"), random.Random(6), 0
    for number in range(100):
        output, rounds = tmp_path / f"job-{number}", 0
        while not (output / "manifest.json").exists() or (output / ".work").exists():
            code = "import sys, inference.kill_program as k; k.rank_of_job(*sys.argv[1:3], 2, int(sys.argv[3]), pause=0.02)"
            command = [sys.executable, "-c", code, str(scanned), str(output)]
            ranks = [subprocess.Popen([*command, str(rank)], env=ENVIRONMENT) for rank in range(2)]
            while not output.exists() and all(rank.poll() is None for rank in ranks):
                time.sleep(0.01)
            time.sleep(draw.random() * 2)
            # The last rounds run to the end.
            for rank in ranks[: draw.randint(1, 2)] if rounds < 4 else []:
                rank.send_signal(signal.SIGKILL)
            kills += sum(rank.wait(120) == -signal.SIGKILL for rank in ranks)
            rounds += 1
            assert rounds < 50
        check(output, fingerprint)
        if kills >= 20:
            break
    assert kills >= 20 and PIECE % BATCH == 0
