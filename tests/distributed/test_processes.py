"""Real processes with a real process group, which take a step together for every batch."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from programs import Program

import shardload

PROGRAM = Path(__file__).parent / "rank_program.py"
NUM_SAMPLES = 97

Facts = list[dict[str, Any]]


def run_ranks(small: Path, directory: Path, world: int, works: str) -> Facts:
    store = directory / f"store-{world}-{works[:20]}"
    processes = []
    for rank in range(world):
        arguments = [str(small), str(store), str(directory), str(rank), str(world), works]
        processes.append(Program(PROGRAM, *arguments))
    facts: Facts = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
            facts += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    finally:
        for process in processes:
            process.kill()
    return facts


@pytest.fixture(scope="module")
def four(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Facts, Path]:
    """What four processes told, and where they have put their checkpoints."""
    directory = tmp_path_factory.mktemp("four")
    return run_ranks(small, directory, 4, "every_tail,mesh,planted,metrics,save"), directory


def of(facts: Facts, what: str, **more: Any) -> Facts:
    return [fact for fact in facts if fact["what"] == what and all(fact[name] == value for name, value in more.items())]


@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask", "carry"])
def test_no_rank_waits_and_each_sample_comes_as_the_tail_promises(four: tuple[Facts, Path], tail: str) -> None:
    facts = of(four[0], "tail", tail=tail)
    assert len(facts) == 4
    assert len({json.dumps([fact["lengths"], fact["state"]]) for fact in facts}) == 1
    assert all(count == length for count, length in facts[0]["lengths"])
    counts = collections.Counter((epoch, number) for fact in facts for epoch, number in fact["seen"])
    for epoch in range(3):
        of_epoch = {number: counts[epoch, number] for number in range(NUM_SAMPLES)}
        if tail == "drop":
            assert sum(of_epoch.values()) == 80 and set(of_epoch.values()) == {0, 1}
        elif tail == "pad":
            assert sum(of_epoch.values()) == 100 and set(of_epoch.values()) == {1, 2}
        elif tail == "carry" and epoch == 2:
            assert sum(counts.values()) == 280 and set(of_epoch.values()) == {0, 1}
        else:
            assert set(of_epoch.values()) == {1}
    if tail == "drop":
        dropped = [{n for n in range(NUM_SAMPLES) if not counts[epoch, n]} for epoch in range(3)]
        assert len({frozenset(ids) for ids in dropped}) == 3


def test_a_mesh_gives_the_same_within_and_other_samples_across(four: tuple[Facts, Path]) -> None:
    facts = of(four[0], "mesh")
    by_replica: dict[int, list[Any]] = {}
    for fact in facts:
        by_replica.setdefault(fact["coordinate"][0], []).append(fact["seen"])
    assert {len(copies) for copies in by_replica.values()} == {2}
    assert all(copies[0] == copies[1] for copies in by_replica.values())
    everything = [number for copies in by_replica.values() for _, number in copies[0]]
    assert sorted(everything) == list(range(NUM_SAMPLES))
    assert sorted(fact["ranks"] for fact in of(four[0], "hybrid")) == [[rank, 4] for rank in range(4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", ""),
        ("seeds", "disagree on seed"),
        ("local rank", "were the ranks of one node (LOCAL_RANK) taken for those of all?"),
        ("rank twice", "rank 0 of 4 is there 2 times"),
        ("split twice", "split each part over the ranks a second time"),
        ("not split", "every rank had all of them"),
        ("one short", "some are missing"),
    ],
)
def test_planted_faults_are_told_to_all(four: tuple[Facts, Path], name: str, message: str) -> None:
    errors = [fact["error"] for fact in of(four[0], "planted", name=name)]
    assert len(errors) == 4 and len(set(errors)) == 1
    assert message in errors[0] and bool(message) == bool(errors[0])


def test_a_metric_is_that_of_one_process(four: tuple[Facts, Path]) -> None:
    means = {fact["mean"] for fact in of(four[0], "metrics")}
    assert means == {sum(n % 7 == 3 for n in range(NUM_SAMPLES)) / NUM_SAMPLES}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_is_loaded_by_any_number_of_processes(small: Path, four: tuple[Facts, Path]) -> None:
    facts, directory = four
    done = [number for fact in of(facts, "save") for _, number in fact["seen"]]
    assert len(done) == 60
    three = run_ranks(small, directory, 3, "load")
    rest = [number for fact in of(three, "load", name="middle") for _, number in fact["seen"]]
    assert sorted(done + rest) == list(range(NUM_SAMPLES))
    fresh = [number for fact in of(three, "load", name="fresh") for _, number in fact["seen"]]
    assert sorted(fresh) == list(range(NUM_SAMPLES))
    # Alone, without a process group; another batch size too.
    alone = shardload.ShardLoader(shardload.open(small), 8, shuffle=True, seed=9, tail="short")
    state = {"loader": alone.state_dict()}
    dcp.load(state, checkpoint_id=directory / "middle", no_dist=True)
    alone.load_state_dict(state["loader"])
    assert sorted(rest) == sorted(number for batch in alone for number in batch["number"].tolist())
