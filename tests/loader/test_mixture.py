"""Mixtures through loaders and samplers: in their shares, each source in its own order, wherever a run stops and goes on."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import rewritten
from torch.utils.data import DataLoader

import shardload
from shardload.errors import StateMismatchError
from shardload.loader.audit import _shared
from shardload.order.epoch import Permuted
from shardload.order.mixture import seed_of
from shardload.order.rng import stand_in_ids

SIZES = {"web": 83, "code": 59, "books": 17}
SEED = 4
Weights = tuple[float, float, float]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three datasets whose samples know where they are from. Read only."""
    root, found = tmp_path_factory.mktemp("sources"), {}
    for number, (name, size) in enumerate(SIZES.items()):
        found[name] = root / name
        schema = {"number": "int64", "text": "str", "tokens": "uint16[*]"}
        with shardload.ShardWriter(found[name], schema, shard_size="8KiB") as writer:
            for i in range(size):
                tokens = np.full(i % 5, i, np.uint16)
                writer.write({"number": 1000 * number + i, "text": f"{name} {i}", "tokens": tokens})
    return found


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of ten samples, of which number 4 is damaged. Read only."""
    path = tmp_path_factory.mktemp("damaged") / "dataset"
    with shardload.ShardWriter(path, {"number": "int64", "text": "str", "tokens": "uint16[*]"}) as writer:
        for i in range(10):
            writer.write({"number": 1000 + i, "text": f"damaged {i} " * 9, "tokens": np.zeros(3, np.uint16)})
    shard = next((path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[data.index(b"damaged 4")] ^= 4
    shard.write_bytes(data)
    return path


def mixed(paths: dict[str, Path], weights: Weights = (0.5, 0.3, 0.2), **options: Any) -> shardload.Mixture:
    sources = {name: (shardload.open(paths[name]), weight) for name, weight in zip(paths, weights, strict=True)}
    return shardload.Mixture(sources, **options)


def make(mixture: shardload.SampleSource, **options: Any) -> shardload.ShardLoader:
    defaults: dict[str, Any] = {"batch_size": 8, "shuffle": True, "seed": SEED, "num_replicas": 1, "rank": 0}
    defaults |= {"with_ids": True, "tail": "carry", "prefetch_batches": 0}
    return shardload.ShardLoader(mixture, **defaults | options)


def numbers(batches: list[dict[str, Any]]) -> list[int]:
    return [number for batch in batches for number in batch["number"].tolist()]


def stream(name: str, length: int) -> list[int]:
    """The numbers of a source from the beginning of a run on."""
    number, size = list(SIZES).index(name), SIZES[name]
    orders, passes = Permuted(size), range(-(-length // size))
    ids = [orders.order(i, seed_of(SEED, name))(np.arange(size)) for i in passes]
    return [1000 * number + i for one in ids for i in one.tolist()][:length]


def check_streams(delivered: list[int]) -> None:
    """Each source gave its own order from the start on, without a gap or a repeat."""
    for number, name in enumerate(SIZES):
        mine = [i for i in delivered if i // 1000 == number]
        assert mine == stream(name, len(mine))


legs = st.tuples(
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 7),
    st.sampled_from([(0.5, 0.3, 0.2), (3, 1, 1), (1, 0, 2), (0.1, 2.718281828, 1.41421356)]),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(legs, min_size=2, max_size=5), st.sampled_from(["first_exhausted", "all_exhausted", "repeat"]))
def test_a_run_goes_on_at_any_size_with_any_weights(paths: dict[str, Path], run: list[Any], stop: Any) -> None:
    state, before, delivered = None, None, []
    for world, batch_size, num_batches, weights in run:
        parts: list[tuple[int, int, int]] = []
        states = set()
        for rank in range(world):
            loader = make(mixed(paths, weights, stop=stop), batch_size=batch_size, num_replicas=world, rank=rank)
            if state is not None:
                loader.load_state_dict(state, reweigh=weights != before)
            left = num_batches
            while left:
                for batch in loader:
                    names = batch["_source"].tolist()
                    assert names == [number // 1000 for number in batch["number"].tolist()]
                    columns = (batch[name].tolist() for name in ("_epoch", "_position", "number"))
                    parts += zip(*columns, strict=True)
                    left -= 1
                    if not left:
                        break
            states.add(json.dumps(loader.state_dict()))
        assert len(states) == 1
        state, before = json.loads(states.pop()), weights
        assert len(parts) == len({place[:2] for place in parts}) == world * batch_size * num_batches
        delivered += [number for _, _, number in sorted(parts)]
    check_streams(delivered)


def test_every_way_to_the_batches_gives_the_same(paths: dict[str, Path], damaged: Path) -> None:
    """The loader's threads, child processes and helper process, with stand-ins, and a DataLoader."""
    mixture = shardload.Mixture({"web": (shardload.open(paths["web"]), 1), "damaged": (shardload.open(damaged), 1)})
    options: dict[str, Any] = {"tail": "short", "on_error": "mask"}
    expected = list(make(mixture, **options))
    ways: list[dict[str, Any]] = [{"prefetch_batches": 4}, {"prefetch_batches": 4, "helper_process": True}]
    for way in [*ways, {"num_processes": 1, "prefetch_batches": 2}]:
        with make(mixture, **options | way) as loader:
            for got, want in zip(loader, expected, strict=True):
                assert got.keys() == want.keys()
                for name, value in want.items():
                    if isinstance(value, torch.Tensor):
                        assert torch.equal(got[name], value), (way, name)
                    else:
                        assert list(map(str, got[name])) == list(map(str, value))
            counts = np.bincount(np.concatenate([batch["_source"] for batch in expected])).tolist()
            assert loader.stats().num_source_samples == dict(zip(mixture.names, counts, strict=True))
    mixture = mixed(paths)
    sampler = shardload.ShardSampler(mixture, num_replicas=2, rank=1, seed=SEED)
    loaded = list(
        DataLoader(mixture, batch_sampler=sampler.batch_sampler(8, tail="drop"), collate_fn=shardload.collate)
    )
    loader = make(mixture, num_replicas=2, rank=1, tail="drop")
    assert numbers(loaded) == numbers(list(loader))
    assert sampler.state_dict() == loader.state_dict()


def test_first_exhausted_by_default(paths: dict[str, Path]) -> None:
    loader = make(mixed(paths), tail="short")
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == len(loader) == -(-86 // 8)
    assert len(set(numbers(first))) == len(numbers(first)) == 86
    assert loader.stats().num_source_samples == {"web": 86, "code": 52, "books": 34}
    loader.audit()
    check_streams(numbers(first) + numbers(second))
    # What is left of an epoch has its own positions there, whatever the length of the sources.
    carrying = make(mixed(paths))
    assert len(list(carrying)) == 10
    opening = next(iter(carrying))
    assert opening["_position"].tolist() == [80, 81, 82, 83, 84, 85, 0, 1]
    assert opening["_epoch"].tolist() == [0] * 6 + [1] * 2 and opening["_source"].dtype == torch.int64
    # Without shuffling each source comes in its own order.
    plain = numbers(list(make(mixed(paths), shuffle=False, tail="short")))
    assert [i for i in plain if i < 1000] == list(range(43))
    assert set(plain) & set(range(2000, 2017)) == set(range(2000, 2017))


def test_weights_change_only_when_that_is_said(paths: dict[str, Path]) -> None:
    loader = make(mixed(paths), tail="short")
    taken = numbers([batch for _, batch in zip(range(6), loader, strict=False)])
    state = loader.state_dict()
    other = make(mixed(paths, (1, 1, 2)), tail="short")
    before = other.state_dict()
    with pytest.raises(StateMismatchError, match=r"weights \[5, 3, 2\] and 86 samples an epoch, this .*reweigh=True"):
        other.load_state_dict(state)
    assert other.state_dict() == before
    other.load_state_dict(state, reweigh=True)
    rest, changed = numbers(list(other)), other.state_at(6 + 1)
    assert len(set(taken + rest)) == len(taken + rest)
    check_streams(taken + rest)
    # It is recorded: from then on nobody has to say it again, and the old weights are the other ones.
    again = make(mixed(paths, (1, 1, 2)), tail="short")
    again.load_state_dict(changed)
    assert numbers(list(again)) == rest[8:]
    with pytest.raises(StateMismatchError, match="reweigh=True"):
        make(mixed(paths), tail="short").load_state_dict(changed)
    # Where nothing differs it is of no effect, and where nothing has weights an error.
    same = make(mixed(paths), tail="short")
    same.load_state_dict(state, reweigh=True)
    assert same.state_dict() == state
    plain = make(shardload.open(paths["web"]))
    with pytest.raises(ValueError, match="reweigh=True is for mixtures"):
        plain.load_state_dict(plain.state_dict(), reweigh=True)


def test_a_run_log_has_the_weights(paths: dict[str, Path], tmp_path: Path) -> None:
    """And a state of other sources is refused for that, whatever weights these have."""
    loader = make(mixed(paths))
    loader.log_to(tmp_path / "run.jsonl")
    next(iter(loader))
    again = make(mixed(paths, (1, 1, 2), stop="first_exhausted"))
    again.log_to(tmp_path / "run.jsonl")
    again.load_state_dict(loader.state_dict(), reweigh=True)
    next(iter(again))
    told = [json.loads(line)["mixture"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [one["parts"] for one in told] == [[5, 3, 2], [1, 1, 2]] and [sum(one["drawn"]) for one in told] == [0, 8]
    with pytest.raises(StateMismatchError, match="fingerprint"):
        make(mixed(dict(reversed(paths.items())), (1, 2, 3))).load_state_dict(loader.state_dict())


def test_ranks_with_other_weights_disagree(paths: dict[str, Path]) -> None:
    facts = [
        _shared(sampler.progress, sampler.batch_sampler(8).partition)
        for weights in ((0.5, 0.3, 0.2), (0.5, 0.2, 0.3))
        for sampler in [shardload.ShardSampler(mixed(paths, weights, stop="repeat"), 1, 0)]
    ]
    different = [name for name, value in facts[0].items() if facts[1][name] != value]
    assert different == ["weights of the mixture"]


def test_samples_of_an_epoch_may_change_with_the_weights(paths: dict[str, Path]) -> None:
    loader = make(mixed(paths, stop="repeat", num_samples=100))
    taken = numbers([batch for _, batch in zip(range(5), loader, strict=False)])
    longer = make(mixed(paths, stop="repeat", num_samples=130), tail="short")
    with pytest.raises(StateMismatchError, match="100 samples an epoch"):
        longer.load_state_dict(loader.state_dict())
    longer.load_state_dict(loader.state_dict(), reweigh=True)
    rest = numbers(list(longer))
    assert len(taken + rest) == 130
    check_streams(taken + rest)
    with pytest.raises(StateMismatchError, match="saved with shuffle"):
        make(mixed(paths)).load_state_dict(loader.state_dict(), reweigh=True)


def test_a_new_seed_from_a_place_on(paths: dict[str, Path]) -> None:
    whole = numbers(list(make(mixed(paths, stop="all_exhausted"), tail="short")))
    loader = make(mixed(paths, stop="all_exhausted"), tail="short")
    loader.load_state_dict(loader.state_at(5), reseed=77)
    rest, reseeded = numbers(list(loader)), loader.state_dict()
    assert len(rest) == len(whole) - 40 and rest != whole[40:]
    for number, size in enumerate(SIZES.values()):
        mine = [i % 1000 for i in whole[:40] + rest if i // 1000 == number]
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == list(range(size))
    other = make(mixed(paths, (1, 1, 1), stop="all_exhausted"), tail="short")
    with pytest.raises(ValueError, match="the seed was changed in this run"):
        other.load_state_dict(reseeded, reweigh=True)
    # The other way round it goes.
    other.load_state_dict(make(mixed(paths, stop="all_exhausted")).state_at(5), reweigh=True)
    changed = other.state_at(5 + 2)
    other.load_state_dict(changed, reseed=5)
    again = make(mixed(paths, (1, 1, 1), stop="all_exhausted"), tail="short")
    again.load_state_dict(other.state_dict())
    assert numbers(list(again)) == numbers(list(other))


def test_a_state_stays_small(paths: dict[str, Path]) -> None:
    """Eight sources, weights that no short period has, changed eight times, and then the seed as often as that goes."""
    parts = [shardload.open(paths[name])[i::3] for name in paths for i in range(3)][:8]
    rng, state, loader = np.random.default_rng(1), None, None
    for _ in range(9):
        weights = rng.random(8).tolist()
        sources = {f"source {i}": (part, weight) for i, (part, weight) in enumerate(zip(parts, weights, strict=True))}
        mixture = shardload.Mixture(sources, stop="repeat", num_samples=10**9)
        loader = make(mixture, tail="drop")
        if state is not None:
            loader.load_state_dict(state, skip_samples=123_456_789, reweigh=True)
        state = loader.state_dict()
    assert loader is not None and state is not None
    for i in range(8):
        loader.load_state_dict(state, skip_samples=10**8, reseed=2**64 - 1 - i)
        state = loader.state_dict()
    assert len(json.dumps(state)) < 1024
    again = make(mixture, tail="drop", seed=2**64 - 8)
    again.load_state_dict(state)
    assert numbers([next(iter(again))]) == numbers([next(iter(loader))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": [5, 3]}, "weights"),
        ({"parts": [5, 3, "2"]}, "weights"),
        ({"parts": 5}, "does not exist"),
        ({"drawn": [0, 0]}, "does not exist"),
        ({"drawn": [0, 0, -1]}, "does not exist"),
        ({"used": None}, "does not exist"),
        ({"used": [0, 0, True]}, "does not exist"),
        ({"epoch": 1}, "does not exist"),
        ({"position": 1 << 40}, "does not exist"),
        ({"more": 1}, "does not exist"),
    ],
)
def test_states_of_no_mixture(paths: dict[str, Path], changes: dict[str, Any], message: str) -> None:
    loader = make(mixed(paths))
    state = loader.state_at(3)
    told = json.loads(state["shardload"])["mixture"]
    with pytest.raises(StateMismatchError, match=message):
        loader.load_state_dict(rewritten(state, mixture=told | changes))
    for version in (2, 3):
        with pytest.raises(StateMismatchError):
            loader.load_state_dict(rewritten(state, mixture=None, version=version))
    plain = make(shardload.open(paths["web"]))
    with pytest.raises(StateMismatchError):
        plain.load_state_dict(rewritten(plain.state_at(3), mixture=told, version=3))


def test_ids_names_and_samples(paths: dict[str, Path]) -> None:
    mixture = mixed(paths)
    assert mixture.names == ("web", "code", "books") and len(mixture) == 159
    assert mixture[0]["text"] == "web 0" and mixture[83]["text"] == "code 0" and mixture[-1]["text"] == "books 16"
    assert [sample["number"] % 1000 for sample in mixture] == [i for size in SIZES.values() for i in range(size)]
    assert mixture.locate(83 + 7) == ("code", 7) and mixture.locate(-1) == ("books", 16)
    with pytest.raises(IndexError, match="159"):
        mixture.locate(159)
    assert mixture.fingerprint == mixed(paths, (1, 2, 3), stop="repeat").fingerprint
    kinds = (np.float32(0.5), np.int64(3), Fraction(1, 3))
    assert mixed(paths, kinds).blend.parts == (3, 18, 2)
    renamed = shardload.Mixture({f"{name}!": (shardload.open(path), 1) for name, path in paths.items()})
    assert renamed.fingerprint != mixture.fingerprint


def test_a_stand_in_is_of_the_same_source(paths: dict[str, Path], damaged: Path) -> None:
    mixture = shardload.Mixture({"web": (shardload.open(paths["web"]), 1), "damaged": (shardload.open(damaged), 1)})
    expected = 83 + stand_in_ids(SEED, 0, 4, 10, 8)[0]
    assert mixture.stand_ins(SEED, 0, 83 + 4, 8)[0] == expected
    batches = list(make(mixture, tail="short", on_error="mask"))
    masked = [(batch["_sample_id"][~batch["_valid"]], batch["_source"][~batch["_valid"]]) for batch in batches]
    assert [(int(i), int(s)) for ids, sources in masked for i, s in zip(ids, sources, strict=True)] == [(expected, 1)]


def test_refused(paths: dict[str, Path], numbers: Path) -> None:
    web, code = shardload.open(paths["web"]), shardload.open(paths["code"])
    twice = shardload.open(paths["code"], transform=dict)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({}, {}, "1 to 64 names"),
        ([web, code], {}, "1 to 64 names"),
        ({"web": web}, {}, r"'web' of the mixture must be \(source, weight\)"),
        ({"web": ("path", 1)}, {}, r"must be \(source, weight\)"),
        ({"": (web, 1)}, {}, "names of text"),
        ({"web": (web, -1)}, {}, "weight of 'web' must be a number from 0, not -1"),
        ({"web": (web, float("nan"))}, {}, "number from 0, not nan"),
        ({"web": (web, float("inf"))}, {}, "number from 0, not inf"),
        ({"web": (web, True)}, {}, "number from 0, not True"),
        ({"web": (web, "1")}, {}, "number from 0, not '1'"),
        ({"web": (web, 0), "code": (code, 0)}, {}, "all weights"),
        ({"web": (web, 1), "code": (code, 1e-7)}, {}, "'code' has less than a millionth"),
        ({"web": (web, 1)}, {"stop": "never"}, "stop must be"),
        ({"web": (web, 1)}, {"num_samples": 5}, "num_samples goes with stop='repeat'"),
        ({"web": (web, 1)}, {"stop": "repeat", "num_samples": 0}, "num_samples must be"),
        ({"all": (mixed(paths), 1)}, {}, "'all' is a mixture itself"),
        ({"web": (web, 1), "code": (twice, 1)}, {}, "another transform"),
    ]
    for sources, options, message in cases:
        with pytest.raises(ValueError, match=message):
            shardload.Mixture(sources, **options)
    with pytest.raises(ValueError, match="'none' of the mixture has no samples"):
        make(shardload.Mixture({"web": (web, 1), "none": (web[:0], 1)}))
    assert len(make(shardload.Mixture({"web": (web, 1), "none": (web[:0], 0)}))) == 83 // 8
    with pytest.raises(ValueError, match="fields= that they share"):
        make(shardload.Mixture({"web": (web, 1), "numbers": (shardload.open(numbers), 1)}))
    for view in (lambda: mixed(paths)[3:], lambda: mixed(paths).split(0.5), lambda: mixed(paths).select([1])):
        with pytest.raises(ValueError, match="take views of its sources"):
            view()
    with pytest.raises(ValueError, match="blend it by a Mixture"):
        shardload.concat([web, mixed(paths)])
    with pytest.raises(ValueError, match="a mixture has weights of its own"):
        make(mixed(paths), weights=np.ones(159))
