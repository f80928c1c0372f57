"""Training on gloo ranks, killed with -9 anywhere, also within a checkpoint: it goes on exactly, on any number of ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, python_path

import shardload

PROGRAM = Path(__file__).parent / "train_program.py"
NUM_SAMPLES, BATCH_SIZE, SEED = 151, 4, 5

Attempt = dict[str, Any]
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("few") / "dataset"
    with shardload.ShardWriter(path, {"number": "int64"}, shard_size="4KiB") as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"number": i})
    return path


def run(few: Path, directory: Path, attempts: list[Attempt]) -> list[list[int]]:
    """Runs attempts one after another and returns how their ranks ended."""
    environment = os.environ | {"PYTHONPATH": python_path(ROOT, ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(few), str(directory), json.dumps(attempts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 + 20 * len(attempts))
    assert done.returncode == 0, done.stderr[-4000:]
    statuses = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(status in (0, -signal.SIGKILL) for one in statuses for status in one), done.stderr[-4000:]
    return statuses


def lines_of(directory: Path, attempt: Attempt) -> Lines:
    """Returns what the ranks of an attempt wrote. The last line of one that was killed may be half a line."""
    found: Lines = []
    for rank in range(attempt["world"]):
        path = directory / f"record-{attempt['name']}-{rank}"
        text = path.read_text() if path.exists() else ""
        found += [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return found


def of(lines: Lines, kind: str) -> Lines:
    return [line for line in lines if line["kind"] == kind]


def surviving(directory: Path, attempts: list[Attempt]) -> Lines:
    """Returns the steps of the history that counts: each attempt cuts off what came after the step that it began with."""
    kept: Lines = []
    saved = 0
    for attempt in attempts:
        lines = lines_of(directory, attempt)
        starts = {line["step"] for line in of(lines, "start")}
        assert len(starts) <= 1, "all ranks begin at one step"
        for start in starts:
            assert start >= saved, "what save() has returned for is not lost"
            kept = [line for line in kept if line["step"] <= start]
        kept += of(lines, "step")
        saved = max([saved, *(line["step"] for line in of(lines, "saved"))])
    return sorted(kept, key=lambda line: line["step"])


def check_ids(few: Path, kept: Lines, epochs: int, last_world: int) -> None:
    """Every step of all ranks together has the next positions of the order, and their samples."""
    options: dict[str, Any] = {"tail": "short", "num_replicas": 1, "rank": 0, "with_ids": True}
    with shardload.ShardLoader(shardload.open(few), 64, shuffle=True, seed=SEED, **options) as loader:
        wanted = [(epoch, i) for epoch in range(epochs) for batch in loader for i in batch["number"].tolist()]
    steps: dict[int, dict[tuple[int, int], int]] = {}
    for line in kept:
        for epoch, position, number in zip(line["_epoch"], line["_position"], line["number"], strict=True):
            place = (epoch, position)
            assert place not in steps.setdefault(line["step"], {}), "two ranks had the same sample"
            steps[line["step"]][place] = number
    assert list(steps) == list(range(1, len(steps) + 1)), "no step is missing"
    delivered = [(place[0], number) for step in steps.values() for place, number in sorted(step.items())]
    assert delivered == wanted[: len(delivered)]
    assert len(wanted) - len(delivered) < BATCH_SIZE * last_world


def losses(kept: Lines) -> dict[tuple[int, int], str]:
    return {(line["step"], line["rank"]): line["loss"] for line in kept}


def random_attempts(folder: str, number: int, worlds: list[int], seed: int) -> list[Attempt]:
    """Returns attempts that are killed after some steps, or at some operation within a checkpoint, and one that ends."""
    rng, attempts = random.Random(seed), []
    for i in range(number):
        attempt: Attempt = {"name": f"{folder}-{i}", "folder": folder, "world": rng.choice(worlds)}
        attempt["asynchronous"] = rng.random() < 0.5
        if i % 2:
            attempt["after"] = rng.randint(1, 6)
        else:
            attempt["by"] = rng.randrange(attempt["world"])
            attempt["operation"] = rng.randint(1, 50 if attempt["by"] == 0 else 8)
        attempts.append(attempt)
    return [*attempts, {"name": f"{folder}-last", "folder": folder, "world": rng.choice(worlds)}]


def check_attempts(few: Path, directory: Path, number: int, epochs: int, seed: int) -> None:
    """Trains on changing numbers of ranks, then on two, killed so many times each, and compares with runs in one piece."""
    elastic = random_attempts("elastic", number, [1, 2, 3], seed)
    equal = random_attempts("equal", number, [2], seed + 1)
    whole: Attempt = {"name": "whole", "folder": "whole", "world": 2}
    attempts = [attempt | {"epochs": epochs} for attempt in [*elastic, *equal, whole]]
    for attempt, statuses in zip(attempts, run(few, directory, attempts), strict=True):
        killed = "after" in attempt or "operation" in attempt
        assert set(statuses) == {-signal.SIGKILL if killed else 0}, attempt
    check_ids(few, surviving(directory, elastic), epochs, elastic[-1]["world"])
    kept, expected = surviving(directory, equal), lines_of(directory, whole)
    check_ids(few, kept, epochs, 2)
    assert losses(kept) == losses(of(expected, "step")), "the loss curve is that of the run in one piece, bit for bit"
    weights = [line["weights"] for line in of(lines_of(directory, equal[-1]) + expected, "end")]
    assert len(weights) == 4 and weights[:2] == weights[2:]
    for folder in ("elastic", "equal"):
        assert all(name.startswith("step-") for name in os.listdir(directory / folder)), "nothing is left behind"


def test_goes_on_after_kills(few: Path, tmp_path: Path) -> None:
    check_attempts(few, tmp_path, 3, epochs=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_goes_on_after_twenty_kills(few: Path, tmp_path: Path, seed: int) -> None:
    check_attempts(few, tmp_path, 20, epochs=8, seed=seed)
