"""Checkpoints of several ranks, under DDP and FSDP2: any number of ranks takes them up, and failures are everybody's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import ROOT, python_path

import shardload

PROGRAM = Path(__file__).parent / "ranks_program.py"

Facts = list[dict[str, Any]]

RUNS = [
    (2, ["saved ddp", "saved fsdp", "restored ddp", "restored fsdp", "failures", "damaged", "other"]),
    (3, ["restored ddp", "restored fsdp"]),
    (1, ["restored plain", "restored fsdp", "left"]),
    (2, ["left"]),
]


def of(facts: Facts, what: str, **more: Any) -> Facts:
    return [fact for fact in facts if fact["what"] == what and all(fact[name] == value for name, value in more.items())]


@pytest.fixture(scope="module")
def facts(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What all ranks told."""
    base = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": python_path(ROOT, ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(numbers), str(base), json.dumps(RUNS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-6000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    statuses = [fact["statuses"] for fact in of(found, "statuses")]
    assert statuses == [[0, 0], [0, 0, 0], [0], [0, -signal.SIGKILL]], done.stderr[-6000:]
    for world in (1, 2):
        found.append({"what": "left", "world": world, "names": os.listdir(base / f"left-{world}")})
    found.append({"what": "files", "sizes": {p.name: p.stat().st_size for p in (base / "ddp/step-5").glob("__*")}})
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_weights_and_moments_come_back_at_any_number_of_ranks(facts: Facts, kind: str) -> None:
    expected = of(facts, "saved", kind=kind)[0]["weights"]
    assert all(fact["weights"] == expected for fact in of(facts, "saved", kind=kind))
    found = [fact for kinds in {kind, "plain" if kind == "ddp" else kind} for fact in of(facts, "restored", kind=kinds)]
    assert sorted(fact["world"] for fact in found) == [1, 2, 2, 3, 3, 3]
    # A sum over shards may be added up in another order.
    assert all(map(float.fromhex, fact["weights"]) for fact in found)
    for fact in found:
        assert [float.fromhex(value) for value in fact["weights"]] == pytest.approx(
            [float.fromhex(value) for value in expected], rel=1e-12
        )
        assert fact["step"] == 5


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_ids_go_on_exactly(facts: Facts, numbers: Path, kind: str) -> None:
    with shardload.ShardLoader(shardload.open(numbers), 64, shuffle=True, seed=3, num_replicas=1, rank=0) as loader:
        order = [number for batch in loader for number in batch["number"].tolist()]
    for world in (1, 2, 3):
        ranks = of(facts, "restored", kind="plain" if kind == "ddp" and world == 1 else kind, world=world)
        ranks.sort(key=lambda fact: fact["rank"])
        steps = zip(*(fact["ids"] for fact in ranks), strict=True)
        found = [number for step in steps for row in zip(*step, strict=True) for number in row]
        assert found == order[40 : 40 + 12 * world], "five steps of two ranks and four samples were trained on"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_each_rank_goes_on_with_its_own_random_numbers(facts: Facts, kind: str) -> None:
    saved = {fact["rank"]: fact["draws"] for fact in of(facts, "saved", kind=kind)}
    assert saved[0][0] == saved[1][0] and saved[0][1:] != saved[1][1:]
    for world in (1, 2, 3):
        for fact in of(facts, "restored", kind=kind, world=world):
            if fact["rank"] < 2:
                assert fact["draws"] == saved[fact["rank"]]
            else:
                # Python's generator was the same on all ranks, and is on the new one.
                assert fact["draws"][0] == saved[0][0]
                assert all(fact["draws"][i] not in (saved[0][i], saved[1][i]) for i in (1, 2))


def test_replicas_share_the_writing(facts: Facts) -> None:
    sizes = of(facts, "files")[0]["sizes"]
    assert sorted(sizes) == ["__0_0.distcp", "__1_0.distcp"]
    assert max(sizes.values()) < 1.5 * min(sizes.values())
    told = {fact["num_bytes"] for fact in of(facts, "stats", kind="ddp")}
    assert told == set(sizes.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("step", "rank 0 saves step 7, rank 1 step 8"),
        ("place", "the loader of rank 1 is at another place than that of rank 0"),
        ("disk", "step 7 was not saved: rank 1: "),
        ("none", ""),
    ],
)
def test_a_failure_of_one_rank_is_told_to_all_and_leaves_nothing(facts: Facts, name: str, message: str) -> None:
    found = of(facts, "failure", name=name)
    assert len(found) == 2 and found[0]["error"] == found[1]["error"]
    assert message in found[0]["error"] and bool(message) == bool(found[0]["error"])
    assert all(fact["left"] == ([] if message else ["step-7"]) for fact in found)


def test_damage_that_one_rank_finds_makes_all_take_the_one_before(facts: Facts) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp"):
        found = of(facts, "damaged", name=name)
        assert [fact["step"] for fact in found] == [1, 1]
        told = [message for fact in found for message in fact["told"]]
        assert len(told) == 1 and f"{name} has changed since it was written" in told[0]


def test_another_model_on_one_rank_is_told_to_all(facts: Facts) -> None:
    errors = {fact["rank"]: fact["error"] for fact in of(facts, "other")}
    assert "the checkpoint is of another model: " in errors[1] and errors[0] == f"rank 1: {errors[1]}"
    assert not any(fact["moved"] for fact in of(facts, "other"))


def test_a_program_that_ends_with_a_save_under_way_ends(facts: Facts) -> None:
    assert of(facts, "left", world=1)[0]["names"] == ["step-1"]
    # Of two ranks one was killed as it wrote: the other gave up, and tidied up.
    assert of(facts, "left", world=2)[0]["names"] == []
