"""The Trainer of transformers in real processes: counts of epochs and steps, and each sample once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from launch import attempt, ids_by_epoch, launch, recorded

SCRIPT = Path(__file__).parent / "train_transformers.py"
ALL = list(range(1003))


def two_runs(dataset, folder, save_at, *more, ranks):
    """Saves at a step in one run and goes on in another; returns the last line of the second."""
    before, after = ranks
    launch(SCRIPT, dataset, folder, "--name", "first", "--save-at", save_at, ranks=before)
    launch(SCRIPT, dataset, folder, "--name", "second", "--resume", folder / "first", *more, ranks=after)
    return recorded(folder, "second", kind="end")[0]


@pytest.mark.slow  # on one rank the recipe of tests/test_readme.py runs it
def test_fewer_ranks_go_on(numbers, tmp_path):
    end = two_runs(numbers, tmp_path, 9, ranks=(2, 1))
    saved = json.loads((tmp_path / "first" / "checkpoint-9" / "trainer_state.json").read_text())
    assert json.loads(saved["stateful_callbacks"]["ShardLoader"]["shardload"])["position"] == 9 * 4 * 16
    assert ids_by_epoch(recorded(tmp_path, "first", "second")) == {0: ALL, 1: ALL}
    # Steps of four batches; the last one of each epoch takes what there is.
    left = math.ceil((1003 - 9 * 4 * 16) / 8 / 4)
    assert end["step"] == end["max_steps"] == 9 + left + math.ceil(1003 / 8 / 4)
    assert end["at"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(1, 2), (2, 4), (4, 1), (4, 2), (2, 2)])
def test_any_ranks_go_on_after_any_others(numbers, tmp_path, ranks):
    end = two_runs(numbers, tmp_path, 5, ranks=ranks)
    assert ids_by_epoch(recorded(tmp_path, "first", "second")) == {0: ALL, 1: ALL}
    assert end["at"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("save_at", [16, 20])
def test_later_epochs_and_their_starts(numbers, tmp_path, save_at):
    """On two ranks an epoch has 16 steps: the checkpoint lies at its end, or in the next one."""
    two_runs(numbers, tmp_path, save_at, ranks=(2, 1))
    assert ids_by_epoch(recorded(tmp_path, "first", "second")) == {0: ALL, 1: ALL}


@pytest.mark.slow
def test_max_steps_and_parts_of_epochs(numbers, tmp_path):
    """max_steps counts steps whatever their size; half an epoch is half of its steps."""
    end = two_runs(numbers, tmp_path, 9, "--max-steps", 60, ranks=(2, 1))
    assert (end["step"], end["max_steps"]) == (60, 60)
    ids = ids_by_epoch(recorded(tmp_path, "first", "second"))
    assert (ids[0], ids[1]) == (ALL, ALL)
    assert len(ids[2]) == (60 - 9 - 14 - 32) * 4 * 8
    launch(SCRIPT, numbers, tmp_path, "--name", "half", "--resume", tmp_path / "first", "--epochs", 1.5)
    assert recorded(tmp_path, "half", kind="end")[0]["step"] == 9 + 14 + 16


@pytest.mark.slow
def test_what_cannot_be_resumed_is_refused(numbers, tmp_path):
    """A checkpoint without a state, and a batch size that the Trainer counts wrongly."""
    folder = tmp_path / "bare" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "stateful_callbacks": {}}))
    done = attempt(SCRIPT, numbers, tmp_path, "--resume", tmp_path / "bare")
    assert "holds no state of a ShardLoader" in done.stderr
    done = attempt(SCRIPT, numbers, tmp_path, "--loader-batch-size", 5)
    assert "make them equal" in done.stderr


@pytest.mark.slow
def test_epochs_of_different_lengths_are_refused(tmp_path):
    """A Trainer takes the first epoch's number of batches for that of all."""
    import numpy as np

    import shardload
    from shardload.integrations.transformers import ShardTrainer

    with shardload.ShardWriter(tmp_path / "d", {"tokens": "int32[*]"}) as writer:
        writer.write({"tokens": np.zeros(3, np.int32)})
    packed = shardload.PackedSequences(shardload.open(tmp_path / "d"), "tokens", 8)
    loader = shardload.ShardLoader(packed, 1, shuffle=True, num_replicas=1, rank=0)
    with pytest.raises(ValueError, match="a Trainer counts the batches of an epoch once"):
        ShardTrainer(train_loader=loader)
