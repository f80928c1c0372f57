"""Accelerate in real processes: its checkpoints carry the loader, its accumulation ends with the epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import attempt, ids_by_epoch, launch, recorded

SCRIPT = Path(__file__).parent / "train_accelerate.py"
ALL = list(range(1003))


@pytest.mark.parametrize(
    ("save_at", "ranks"),
    [
        (12, (2, 1)),
        *((8, ranks) for ranks in [(1, 2), (2, 4), (4, 1), (4, 2)]),
        (15, (4, 2)),
    ],
)
@pytest.mark.slow  # on one rank the recipe of tests/test_readme.py runs it
def test_other_ranks_go_on(numbers, tmp_path, save_at, ranks):
    before, after = ranks
    launch(SCRIPT, numbers, tmp_path, "--name", "first", "--save-at", save_at, ranks=before)
    assert "shardload" in torch.load(tmp_path / "first.ckpt" / "custom_checkpoint_0.pkl", weights_only=True)
    launch(SCRIPT, numbers, tmp_path, "--name", "second", "--resume", tmp_path / "first.ckpt", ranks=after)
    assert ids_by_epoch(recorded(tmp_path, "first", "second")) == {0: ALL, 1: ALL}
    refusals = recorded(tmp_path, "second", kind="refusal")
    assert len(refusals) == after
    assert "leave the call out" in refusals[0]["text"]
    for rank in range(after):
        check_accumulation(recorded(tmp_path, "second", rank=rank), save_at)
        for tail, whole in {"short": 1003, "pad": 1003, "mask": 1003, "drop": 1003 // (9 * after) * 9 * after}.items():
            [scores] = recorded(tmp_path, "second", kind=tail, rank=rank)
            assert scores["ids"] == list(range(whole))


def check_accumulation(lines, save_at):
    """Every fourth batch of an epoch makes a step, counted over the resume, and so does its last one."""
    for epoch, before in ((0, save_at), (1, 0)):
        stepped = [line["stepped"] for line in lines if line["epoch"] == epoch]
        last = before + len(stepped)
        assert stepped == [i % 4 == 0 or i == last for i in range(before + 1, last + 1)]


@pytest.mark.slow
def test_a_second_split_is_noticed(numbers, tmp_path):
    """accelerator.prepare over a batch sampler that knows its rank would leave out half of the samples."""
    done = attempt(SCRIPT, numbers, tmp_path, "--wrap", ranks=2)
    assert done.returncode != 0
    assert "ShardloadError" in done.stderr
    assert len(recorded(tmp_path, "run", kind="step")) <= 2 * 10
