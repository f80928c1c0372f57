"""torchdata's StatefulDataLoader on three ranks: every stop, resumed twice, states of every few steps, distributed checkpoints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from training import BATCH_SIZE, SEED, WORLD, Loop, Row, TorchLoop, record, write_content

import shardload

stateful = pytest.importorskip("torchdata.stateful_dataloader")

# What torchdata does with newer versions of torch is not ours.
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning", "ignore::FutureWarning")

NUM_BATCHES, EPOCHS = 9, 3
"""Of 97 samples, padded, in batches of 4 on 3 ranks."""


class StatefulLoop(TorchLoop):
    """The state is that of torchdata's loader, which holds our sampler's or batch sampler's."""

    def __init__(self, path: Path, rank: int, kind: str, **options: Any) -> None:
        self.rank = rank
        dataset = shardload.open(path)
        sampler = shardload.ShardSampler(dataset, WORLD, rank, seed=SEED)
        how: dict[str, Any] = {"sampler": sampler, "batch_size": BATCH_SIZE}
        if kind == "batches":
            how = {"batch_sampler": sampler.batch_sampler(BATCH_SIZE, read_ahead=2)}
        self.order = sampler
        self.batches = stateful.StatefulDataLoader(dataset, **how, collate_fn=shardload.collate, **options)


def saved(state: Any) -> Any:
    """The state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_content(tmp_path_factory.mktemp("content") / "dataset", 97)


@pytest.fixture(scope="module")
def whole(content: Path) -> list[list[Row]]:
    """By rank, the record of three epochs of our own loader without a stop."""
    return [record(Loop(content, rank, "pad", prefetch_batches=0), EPOCHS) for rank in range(WORLD)]


def train(loop: StatefulLoop, place: tuple[int, int], stop: tuple[int, int] | None, at_end: bool) -> list[Row]:
    """Trains from a place (epoch, batches done) to a stop, or to the end of all epochs."""
    rows: list[Row] = []
    last, done = stop or (EPOCHS, 0)
    for epoch in range(place[0], last):
        rows += loop.epoch(epoch, place[1] if epoch == place[0] else 0)
    if done:
        for row in loop.epoch(last, place[1] if last == place[0] else 0):
            rows.append(row)
            if row.step + 1 == done and not (at_end and done == NUM_BATCHES):
                break
    return rows


def check(
    content: Path, expected: list[Row], rank: int, kind: str, stops: list[tuple[int, int]], **options: Any
) -> None:
    """Stops at each of the given places, goes on each time with a loader made anew, and compares the joined record."""
    at_end = bool(options.pop("at_end", False))
    # With workers and a state of an earlier step torchdata itself passes over what came since. After the last batch nothing is
    # left then but to ask for one more, as in the loop that was stopped there: a pass without a batch, and none is lost.
    passes_over = "num_workers" in options and NUM_BATCHES % options.get("snapshot_every_n_steps", 1) and not at_end
    loop, rows, place = StatefulLoop(content, rank, kind, **options), [], (0, 0)
    for stop in stops:
        rows += train(loop, place, stop, at_end)
        place = stop if stop[1] < NUM_BATCHES or passes_over else (stop[0] + 1, 0)
        state = saved(loop.batches.state_dict())
        loop = StatefulLoop(content, rank, kind, **options)
        loop.batches.load_state_dict(state)
    assert rows + train(loop, place, None, False) == expected


@pytest.mark.parametrize("kind", ["batches", "samples"])
@pytest.mark.parametrize("every", [1, 4])
def test_every_stop_twice(content: Path, whole: list[list[Row]], kind: str, every: int) -> None:
    """A state of every fourth step only is gone on from by torchdata passing over the rest, and must come out the same."""
    for number in range(NUM_BATCHES + 1):
        rank = number % WORLD
        options: dict[str, Any] = {"snapshot_every_n_steps": every, "at_end": number == NUM_BATCHES}
        again = (0, min(number + 2, NUM_BATCHES)) if number < NUM_BATCHES else (1, 3)
        # Where the rest is passed over, each stop in one of the two epochs.
        if every == 1 or number % 2 or number == NUM_BATCHES:
            check(content, whole[rank], rank, kind, [(0, number), again], **options)
        if every == 1 or not number % 2 or number == NUM_BATCHES:
            check(content, whole[rank], rank, kind, [(1, number), (2, 1)], **options)


@pytest.mark.parametrize(
    ("kind", "stops", "more"),
    [
        ("batches", [(0, 3), (0, 8)], {}),
        ("batches", [(0, 9), (1, 4)], {"at_end": True}),
        ("samples", [(0, 9), (1, 4)], {"at_end": True, "persistent_workers": True}),
        ("samples", [(0, 9)], {"at_end": True, "snapshot_every_n_steps": 2}),
    ],
)
def test_with_workers(content: Path, whole, kind: str, stops: list[tuple[int, int]], more: dict[str, Any]) -> None:
    """They are asked for batches ahead of the loop. From a state of the end of an epoch torchdata first makes an iterator
    that it throws away, after it has asked it for batches: those are not an epoch.
    """
    check(content, whole[1], 1, kind, stops, num_workers=2, **more)


@pytest.mark.parametrize("prefetch_factor", [1, 8])
def test_the_end_of_an_epoch_however_far_workers_are_ahead(content: Path, whole, prefetch_factor: int) -> None:
    """Eight batches a worker are the whole epoch. And the state of a loader is asked for before it is iterated."""
    options: dict[str, Any] = {"num_workers": 2, "prefetch_factor": prefetch_factor}
    loop = StatefulLoop(content, 0, "batches", **options)
    rows = train(loop, (0, 0), (0, NUM_BATCHES), True)
    again = StatefulLoop(content, 0, "batches", **options)
    again.batches.load_state_dict(saved(loop.batches.state_dict()))
    third = StatefulLoop(content, 0, "batches", **options)
    third.batches.load_state_dict(saved(again.batches.state_dict()))
    assert rows + train(third, (1, 0), None, False) == whole[0]
    rows += train(again, (1, 0), None, False)
    assert rows == whole[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["batches", "samples"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("every", [1, 4])
def test_every_stop_with_workers(content: Path, whole, kind: str, persistent: bool, every: int) -> None:
    options: dict[str, Any] = {"num_workers": 2, "persistent_workers": persistent, "snapshot_every_n_steps": every}
    for number in range(NUM_BATCHES + 1):
        rank, more = number % WORLD, {"at_end": number == NUM_BATCHES}
        again = (0, min(number + 2, NUM_BATCHES)) if number < NUM_BATCHES else (1, 3)
        check(content, whole[rank], rank, kind, [(0, number), again], **options, **more)
        check(content, whole[rank], rank, kind, [(1, number)], **options, **more)


@pytest.mark.parametrize("kind", ["batches", "samples"])
def test_set_epoch_before_each_epoch(content: Path, whole: list[list[Row]], kind: str) -> None:
    """As training scripts for torch's DistributedSampler do, also in the epoch that a state goes on with."""
    first = StatefulLoop(content, 2, kind)
    rows = []
    for epoch in range(2):
        first.order.set_epoch(epoch)
        for row in first.epoch(epoch, 0):
            rows.append(row)
            if epoch == 1 and row.step == 4:
                break
    second = StatefulLoop(content, 2, kind)
    second.batches.load_state_dict(saved(first.batches.state_dict()))
    for epoch in range(1, EPOCHS):
        second.order.set_epoch(epoch)
        rows += second.epoch(epoch, 5 if epoch == 1 else 0)
    assert rows == whole[2]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_in_a_distributed_checkpoint_and_as_json(content: Path, whole: list[list[Row]], tmp_path: Path) -> None:
    """The checkpoint of torch wants the state of a fresh loader to have the same entries as the one that was saved."""
    for number, stop in enumerate([(0, 0), (0, 4), (1, 2)]):
        for kind in ("batches", "samples"):
            loop = StatefulLoop(content, 0, kind)
            rows = train(loop, (0, 0), stop, False)
            state = loop.batches.state_dict()
            dcp.save({"loader": state}, checkpoint_id=tmp_path / f"{number}-{kind}", no_dist=True)
            fresh = StatefulLoop(content, 0, kind)
            loaded = {"loader": fresh.batches.state_dict()}
            dcp.load(loaded, checkpoint_id=tmp_path / f"{number}-{kind}", no_dist=True)
            for back in (loaded["loader"], json.loads(json.dumps(state))):
                again = StatefulLoop(content, 0, kind)
                again.batches.load_state_dict(back)
                assert rows + train(again, stop, None, False) == whole[0]
