"""Lightning in real processes: what its own checkpoints say is exactly what was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import attempt, ids_by_epoch, launch, recorded

SCRIPT = Path(__file__).parent / "train_lightning.py"
ALL = list(range(1003))


def two_runs(dataset, folder, first, second, *, ranks, epochs=2):
    """Saves in one run and goes on in another, with so many ranks each; returns the ids of each epoch."""
    before, after = ranks
    launch(SCRIPT, dataset, folder, "--name", "first", "--world", before, *first, ranks=before)
    saved = folder / "first.ckpt"
    more = ["--resume", saved, "--epochs", epochs]
    launch(SCRIPT, dataset, folder, "--name", "second", "--world", after, *more, *second, ranks=after)
    return ids_by_epoch(recorded(folder, "first", "second"))


def state_in(folder):
    saved = torch.load(folder / "first.ckpt", weights_only=True)
    states = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return json.loads(states[0]["shardload"])


@pytest.mark.slow  # on one rank the recipe of tests/test_readme.py runs it
def test_a_step_that_raised_is_done_again_by_fewer_ranks(numbers, tmp_path):
    """The second epoch has twice the batches that the Trainer first counted, and validation comes between."""
    ids = two_runs(numbers, tmp_path, ["--raise-in", 10], [], ranks=(2, 1))
    assert state_in(tmp_path)["position"] == 9 * 32
    assert ids == {0: ALL, 1: ALL}
    assert {line["epoch"] for line in recorded(tmp_path, "second", kind="validate")} == {0, 1}


@pytest.mark.slow
def test_a_state_of_a_batch_sampler_is_saved_too(numbers, tmp_path):
    """One process: worker processes ask for batches ahead, and the batch size changes."""
    options = ["--sampler", "--batch-size", 100]
    first = [*options, "--raise-in", 4, "--workers", 1]
    assert two_runs(numbers, tmp_path, first, [*options, "--batch-size", 60], ranks=(1, 1)) == {0: ALL, 1: ALL}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "ranks"),
    [
        (["--save-at", 9], [], (2, 1)),
        (["--save-at", 20], [], (1, 2)),
        (["--save-at", 7], [], (4, 2)),
        (["--save-at", 7], ["--batch-size", 9], (2, 4)),
        (["--save-at", 40, "--batch-size", 9], [], (4, 1)),
        # At the very end of an epoch, with the steps counted or not.
        (["--save-at", 32], [], (2, 1)),
        (["--save-at", 63], ["--steps", 1000], (1, 2)),
        (["--save-at", 20, "--sampler", "--workers", 2], ["--sampler"], (1, 2)),
        (["--save-at", 70, "--sampler"], ["--sampler", "--workers", 2], (2, 1)),
    ],
)
def test_any_ranks_go_on_after_any_others(numbers, tmp_path, first, second, ranks):
    first = [*first, "--epochs", 3]
    assert two_runs(numbers, tmp_path, first, second, ranks=ranks, epochs=3) == {0: ALL, 1: ALL, 2: ALL}


@pytest.mark.slow
def test_a_batch_fetched_ahead_counts_as_not_trained_on(numbers, tmp_path):
    """Beside a loader without a length, Lightning fetches one batch ahead to know the last one."""
    ids = two_runs(numbers, tmp_path, ["--save-at", 20, "--unsized"], ["--unsized"], ranks=(1, 1))
    assert state_in(tmp_path)["batches"] == 20
    assert ids == {0: ALL, 1: ALL}


@pytest.mark.slow
def test_an_epoch_with_too_little_left_for_the_new_ranks_is_over(numbers, tmp_path):
    """27 samples are left, a global batch is 40: the next epoch begins, whole, and is the Trainer's next one too."""
    first, second = ["--save-at", 61, "--tail", "drop"], ["--tail", "drop", "--batch-size", 20]
    ids = two_runs(numbers, tmp_path, first, second, ranks=(1, 2), epochs=3)
    assert [len(set(found)) for found in ids.values()] == [976, 1000, 1000]
    assert [len(found) for found in ids.values()] == [976, 1000, 1000]


@pytest.mark.slow
def test_limited_epochs_differ(numbers, tmp_path):
    """limit_train_batches cuts each epoch; the next one is still another one, and a resume stops at the same batch."""
    ids = two_runs(numbers, tmp_path, ["--save-at", 20, "--limit", 30], ["--limit", 30], ranks=(1, 1), epochs=3)
    assert [len(set(found)) for found in ids.values()] == [480, 480, 480]
    assert ids[0] != ids[1] != ids[2]


@pytest.mark.slow
def test_without_the_callback_lightning_cuts_the_next_epoch(numbers, tmp_path):
    """What the callback is for; when this fails, Lightning has learned to count."""
    off = ["--no-callback"]
    ids = two_runs(numbers, tmp_path, ["--save-at", 9, *off], off, ranks=(2, 1))
    assert len(ids[1]) < len(ALL)


@pytest.mark.slow
def test_lightning_must_not_replace_the_sampler(numbers, tmp_path):
    """Left to itself it puts a sampler of its own into the batch sampler, which cannot be: an error before the first step."""
    done = attempt(SCRIPT, numbers, tmp_path, "--world", 2, "--sampler", "--replace", ranks=2)
    assert done.returncode != 0
    assert "ShardBatchSampler" in done.stderr
    assert not recorded(tmp_path, "run")
