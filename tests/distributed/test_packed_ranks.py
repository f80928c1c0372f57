"""Packed sequences and token budgets on two real ranks: in step, each sample once, through a resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from documents import LENGTHS, NUM_DOCUMENTS, write_documents
from launch import launch


@pytest.mark.slow
def test_two_ranks_share_what_samples_are_put_together_to(tmp_path: Path) -> None:
    write_documents(tmp_path / "dataset")
    done = launch(Path(__file__).with_name("packed_program.py"), tmp_path / "dataset", ranks=2)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    full = np.flatnonzero(LENGTHS).tolist()
    for name, wanted in (("packed", full), ("budget", list(range(NUM_DOCUMENTS)))):
        mine = [line for line in lines if line["name"] == name]
        assert sorted(line["rank"] for line in mine) == [0, 1]
        assert len({line["length"] for line in mine}) == 1
        assert sorted(i for line in mine for i in line["seen"]) == wanted
