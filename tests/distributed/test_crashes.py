"""torchrun with ranks killed at every phase of a step, and runs that go on as other numbers of ranks: the record is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "crash_program.py"
NUM_SAMPLES = 1003

RUNS: list[tuple[int, int, list[list[Any]]]] = [
    (3, 16, [[2, "batch taken", 0], [5, "trained", 2], [6, "state written", 0]]),
    (4, 9, [[9, "state saved", 0], [11, "recorded", 3]]),
    (1, 50, [[16, "batch taken", 0]]),
    (2, 31, []),
]
"""Ranks, batch size, and at which step, phase and rank each attempt is killed. All but the last run are killed for good."""


def torchrun(
    numbers: Path, directory: Path, run: str, world: int, batch_size: int, tail: str, crashes: list[Any]
) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += ["--max-restarts", str(max(0, len(crashes) - 1)), "--monitor-interval", "0.1", str(PROGRAM)]
    command += [str(numbers), str(directory), run, str(batch_size), tail, json.dumps(crashes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200).returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tail", ["short", "carry"])
def test_killed_anywhere_in_a_step_and_gone_on_with_by_others(numbers: Path, tmp_path: Path, tail: str) -> None:
    for number, (world, batch_size, crashes) in enumerate(RUNS):
        status = torchrun(numbers, tmp_path, str(number), world, batch_size, tail, crashes)
        assert (status != 0) == bool(crashes)
        assert bool(list(tmp_path.glob(f"done-{number}-*"))) == (not crashes)
    attempts: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for path in tmp_path.glob("record-*"):
        run, restart = map(int, path.name.split("-")[1:3])
        attempts.setdefault((run, restart), []).extend(map(json.loads, path.read_text().splitlines()))
    ordered = [rows for _, rows in sorted(attempts.items()) if rows]
    starts = [rows[0]["start"] for rows in ordered]
    assert starts == [0, 0, 3, 3, 9, 9, 15], "a state counts when it has its name, and not before"
    assert all(row["start"] == rows[0]["start"] for rows in ordered for row in rows)
    # What counts of an attempt is what came before the state that the next one began with.
    kept = [
        (epoch, i)
        for rows, stop in zip(ordered, [*starts[1:], 1 << 30], strict=True)
        for row in rows
        if row["step"] <= stop
        for epoch, i in zip(row["epochs"], row["ids"], strict=True)
    ]
    assert len(kept) == len(set(kept))
    if tail == "short":
        assert sorted(kept) == [(epoch, i) for epoch in range(2) for i in range(NUM_SAMPLES)]
    else:
        # Of the last epoch at most a global batch is left, for a third one that never comes.
        assert {epoch for epoch, _ in kept} == {0, 1} and 2 * NUM_SAMPLES - len(kept) < 62
    # A step that was done again, by as many ranks from the same place, was the same on each of them.
    redone: dict[tuple[int, int, int], set[tuple[int, ...]]] = {}
    for (run, _), rows in attempts.items():
        for row in rows:
            redone.setdefault((run, row["step"], row["rank"]), set()).add(tuple(row["ids"]))
    assert all(len(ids) == 1 for ids in redone.values())
    assert {row["step"] for row in ordered[0]} & {row["step"] for row in ordered[1]}
