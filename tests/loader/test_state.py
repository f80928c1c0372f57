"""States: what they hold, what they refuse, and seeds that change in mid-run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import rewritten

import shardload
from shardload.errors import StateMismatchError
from shardload.loader.state import MAX_RESEEDS

NUM_SAMPLES = 1003


def make(numbers: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 16, "shuffle": True, "num_replicas": 1, "rank": 0, "tail": "short"}
    return shardload.ShardLoader(shardload.open(numbers), **settings | options)


def numbers_of(loader: shardload.ShardLoader, num_batches: int | None = None) -> list[int]:
    batches = iter(loader)
    taken = batches if num_batches is None else (next(batches) for _ in range(num_batches))
    return [number for batch in taken for number in batch["number"].tolist()]


def test_a_new_seed_from_a_place_on(numbers: Path) -> None:
    """What was delivered stays; what is left comes in another order, and each sample still once."""
    loader = make(numbers)
    done, state = numbers_of(loader, 20), loader.state_dict()
    rest = {}
    for reseed in (None, 7, 8):
        again = make(numbers)
        again.load_state_dict(state, reseed=reseed)
        rest[reseed] = numbers_of(again)
        assert sorted(done + rest[reseed]) == list(range(NUM_SAMPLES))
        # The next epoch has the new seed from its start.
        fresh = make(numbers, seed=0 if reseed is None else reseed)
        fresh.set_epoch(1)
        assert numbers_of(again) == numbers_of(fresh)
    assert len({tuple(ids) for ids in rest.values()}) == 3


def test_it_is_recorded_and_not_said_again(numbers: Path) -> None:
    loader = make(numbers)
    state = loader.state_at(20)
    loader.load_state_dict(state, reseed=7)
    batches = iter(loader)
    first = [next(batches)["number"].tolist() for _ in range(5)]
    saved = loader.state_dict()
    rest = [batch["number"].tolist() for batch in batches]
    # By the program as it was, and as it would be with the new seed written into it.
    for seed in (0, 7):
        again = make(numbers, seed=seed)
        again.load_state_dict(saved)
        assert [batch["number"].tolist() for batch in again] == rest
        assert again.state_dict() == loader.state_dict()
    with pytest.raises(StateMismatchError, match=r"saved with seed 0 \(and 7 since\), this loader has 8"):
        make(numbers, seed=8).load_state_dict(saved)
    sampler = shardload.ShardSampler(shardload.open(numbers), 1, 0).batch_sampler(16, tail="short")
    sampler.load_state_dict(state, reseed=7)
    assert [list(ids) for ids in sampler] == first + rest


def test_a_new_seed_must_be_said(numbers: Path) -> None:
    state = make(numbers, seed=3).state_at(10)
    with pytest.raises(StateMismatchError, match=r"seed 3, this loader has 4; .* reseed="):
        make(numbers, seed=4).load_state_dict(state)
    loader = make(numbers, seed=4)
    loader.load_state_dict(state, reseed=4)
    assert loader.state_dict() == loader.state_dict() != state
    with pytest.raises(StateMismatchError, match="seed 3, this loader has 4"):
        make(numbers, seed=4).load_state_dict(state, reseed=5)
    for reseed in (-1, 1 << 64, 2.5, True):
        with pytest.raises(ValueError, match="reseed must be"):
            make(numbers, seed=3).load_state_dict(state, reseed=reseed)  # type: ignore[arg-type]


def test_seeds_that_were_given_again_and_again(numbers: Path) -> None:
    """Each sample once all the same, under a kilobyte, and with a limit that says so."""
    loader, seen = make(numbers, seed=2**64 - 1), []
    for number in range(MAX_RESEEDS):
        seen += numbers_of(loader, 3)
        state = loader.state_dict()
        assert len(state["shardload"]) < 1000
        loader = make(numbers, seed=2**64 - 1)
        loader.load_state_dict(state, reseed=2**64 - 2 - number)
    seen += numbers_of(loader)
    assert sorted(seen) == list(range(NUM_SAMPLES))
    loader.set_epoch(2**31)
    numbers_of(loader, 1)
    assert len(loader.state_dict()["shardload"]) < 1024
    with pytest.raises(ValueError, match="changed 8 times already"):
        loader.load_state_dict(loader.state_dict(), reseed=1)
    # A place before some of them forgets those.
    again = make(numbers, seed=2**64 - 1)
    again.load_state_dict(state, reseed=5)
    again.load_state_dict(again.state_dict(), reseed=6)


def draw(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"number": sample["number"], "draw": rng.random()}


def test_rng_goes_with_the_seed_in_force(numbers: Path) -> None:
    state = make(numbers).state_at(62)
    loader = make(numbers, transform=draw)
    loader.load_state_dict(state, reseed=7)
    (last,) = list(loader)
    fresh = make(numbers, transform=draw, seed=7)
    expected = {n: d for b in fresh for n, d in zip(b["number"].tolist(), b["draw"].tolist(), strict=True)}
    assert last["draw"].tolist() == [expected[number] for number in last["number"].tolist()]


@given(
    tail=st.sampled_from(["drop", "short", "pad", "mask", "carry"]),
    legs=st.lists(
        st.tuples(st.integers(1, 48), st.integers(1, 8), st.integers(0, 9), st.sampled_from([None, None, 5, 6])),
        min_size=3,
        max_size=6,
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chains_of_resumes(numbers: Path, tail: str, legs: list[tuple[int, int, int, int | None]]) -> None:
    """Any batch sizes, ranks and seeds: one stream of samples, each once an epoch but for what the tail leaves or repeats."""
    state: dict[str, str] | None = None
    seen: dict[int, list[int]] = {}
    for batch_size, world, steps, reseed in legs:
        planning = make(numbers, batch_size=batch_size, num_replicas=world, rank=None, tail=tail)
        if state is not None:
            planning.load_state_dict(state, reseed=reseed)
        steps = min(steps, planning.remaining)
        for rank in range(world):
            dataset = shardload.open(numbers)
            batches = shardload.ShardSampler(dataset, world, rank).batch_sampler(batch_size, read_ahead=0, tail=tail)
            if state is not None:
                batches.load_state_dict(state, reseed=reseed)
            for ids in (ids for _, ids in zip(range(steps), batches, strict=False)):
                num_valid = len(ids) if ids.num_valid is None else ids.num_valid
                for epoch, number in list(zip(ids.epochs, ids, strict=True))[:num_valid]:
                    seen.setdefault(epoch, []).append(number)
        # The planning one stands where the ranks stand: a state is arithmetic.
        done = len(planning) - planning.remaining
        state = planning.state_at(done + steps) if steps else planning.state_dict()
    for epoch, ids in seen.items():
        repeated = len(ids) - len(set(ids))
        assert repeated == 0 or (tail == "pad" and repeated < 8), (epoch, repeated)
        if epoch + 1 in seen and tail in ("short", "pad", "mask", "carry"):
            assert set(ids) == set(range(NUM_SAMPLES))


def test_a_state_of_version_1_is_read(numbers: Path) -> None:
    state = make(numbers, seed=5).state_at(9)
    old = rewritten(state, version=1, reseeds=None)
    loader = make(numbers, seed=5)
    loader.load_state_dict(old)
    assert loader.state_dict() == state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 4}, "version 4; this version of shardload reads 1 to 3"),
        ({"version": 0}, "version 0; this version of shardload reads 1 to 3"),
        ({"version": "2"}, "version '2'; this"),
        ({"version": 1}, "other fields than version 1 has"),
        ({"version": True}, "version True; this"),
        ({"reseeds": None}, "other fields than version 2 has"),
        ({"reseeds": 5}, "does not exist"),
        ({"reseeds": [5]}, "does not exist"),
        ({"reseeds": [[0, 1]]}, "does not exist"),
        ({"reseeds": [[0, 1, -1]]}, "does not exist"),
        ({"reseeds": [[0, "1", 1]]}, "does not exist"),
        ({"reseeds": [[0, 1, True]]}, "does not exist"),
        ({"position": 1004}, "does not exist in 1003 samples"),
        ({"position": -1}, "does not exist"),
        ({"seed": 1.5}, "does not exist"),
        ({"num_samples": 1002}, "saved with num_samples 1002, this loader has 1003"),
        ({"fingerprint": "ff"}, "saved with fingerprint 'ff'"),
        ({"recipe": 2}, "saved with recipe 2, this loader has 1"),
        ({"shuffle": False}, "saved with shuffle False"),
    ],
)
def test_states_of_something_else(numbers: Path, changes: dict[str, Any], message: str) -> None:
    loader = make(numbers)
    before = loader.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        loader.load_state_dict(rewritten(loader.state_at(9), **changes))
    assert loader.state_dict() == before
