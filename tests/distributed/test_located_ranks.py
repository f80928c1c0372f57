"""`locate` against three real ranks, two that went on from their state, and one that went back to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import launch

from shardload.cli import main

PROGRAM = Path(__file__).parent / "locate_program.py"
# Name, ranks, batch size, steps, from which state, and the step that this is.
RUNS = [("three", 3, 12, 35, "none", 0), ("two", 2, 25, 15, "three", 35), ("one", 1, 64, 20, "three", 35)]


@pytest.mark.slow
def test_what_is_told_is_what_came(numbers, tmp_path, capsys):
    given: list[list[tuple[int, ...]]] = []
    for name, num_ranks, batch_size, num_steps, state, first_step in RUNS:
        launch(PROGRAM, numbers, tmp_path, name, batch_size, num_steps, state, ranks=num_ranks, torchrun=True)
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(num_ranks)]
        given = given[:first_step]
        for steps in zip(*ranks, strict=True):
            rows = enumerate(steps)
            given.append(
                [(*row, rank, slot) for rank, batch in rows for slot, row in enumerate(zip(*batch, strict=True))]
            )
        assert (
            main(
                [
                    "locate",
                    str(numbers),
                    "--run-log",
                    str(tmp_path / "run.jsonl"),
                    "--step",
                    f"0:{len(given)}",
                    "--json",
                ]
            )
            == 0
        )
        found: list[list[tuple[int, ...]]] = [[] for _ in given]
        for one in json.loads(capsys.readouterr().out)["samples"]:
            found[one["step"]].append(tuple(one[key] for key in ("epoch", "position", "sample_id", "rank", "slot")))
        assert found == given
