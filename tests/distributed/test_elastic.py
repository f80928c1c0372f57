"""torchrun with ranks that are killed, restarted, and started again as another number of ranks: one order all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "elastic_program.py"
NUM_SAMPLES = 1003


def torchrun(numbers: Path, directory: Path, world: int, batch_size: int, die_at: list[int], restarts: int) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(PROGRAM)]
    command += [str(numbers), str(directory), str(batch_size), json.dumps(die_at)]
    environment = os.environ | {"RUN_NAME": f"{world}x{batch_size}", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    return process.returncode


@pytest.mark.slow
def test_killed_restarted_and_another_number_of_ranks(numbers: Path, tmp_path: Path) -> None:
    """Three ranks, of which one is killed twice; the second time for good. Then two, with another batch size."""
    assert torchrun(numbers, tmp_path, 3, 20, [6, 13], 1) != 0
    assert not list(tmp_path.glob("done-*"))
    assert torchrun(numbers, tmp_path, 2, 32, [], 0) == 0
    assert {path.read_text() for path in tmp_path.glob("done-*")} == {"33"}
    # What counts of an attempt are the steps up to the place where the next one began.
    attempts: dict[str, list[tuple[int, int, list[int], list[int]]]] = {}
    for path in tmp_path.glob("record-*"):
        attempts.setdefault(path.name.rpartition("-")[0], []).extend(map(json.loads, path.read_text().splitlines()))
    ordered = sorted(attempts.values(), key=lambda rows: rows[0][1])
    starts = [rows[0][1] for rows in ordered]
    assert starts == [0, 4, 12]
    kept: list[tuple[int, int]] = []
    steps: dict[int, list[set[tuple[int, int]]]] = {}
    for rows, stop in zip(ordered, [*starts[1:], 1 << 30], strict=True):
        by_step: dict[int, set[tuple[int, int]]] = {}
        for step, _, epochs, ids in rows:
            pairs = list(zip(epochs, ids, strict=True))
            by_step.setdefault(step, set()).update(pairs)
            if step <= stop:
                kept += pairs
        for step, pairs_of_step in by_step.items():
            steps.setdefault(step, []).append(pairs_of_step)
    assert sorted(kept) == [(epoch, i) for epoch in range(2) for i in range(NUM_SAMPLES)]
    # Steps that were done again under as many ranks had the same samples, as far as all ranks came to write them down.
    again = {step: sorted(sets, key=len) for step, sets in steps.items() if len(sets) > 1 and step < 12}
    assert set(again) >= {5, 6} and all(sets[0] <= sets[-1] and len(sets[-1]) == 60 for sets in again.values())
