"""Samples that are left out of a run: on both paths, at any number of ranks, and from a state of before."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import shardload
from shardload.cli import main
from shardload.order.epoch import Permuted, Reseed

BAD = [3, 500, *range(700, 720)]
BLOCKS = shardload.BlockShuffle(10, 5)


def order(epoch, without=(), seed=3, reseeds=()):
    ids = Permuted(1003).order(epoch, seed, reseeds)(np.arange(1003)).tolist()
    return [i for i in ids if i not in set(without)]


def loaders(numbers, batch_size, num_replicas=1, state=None, seed=3, **how):
    """One loader a rank, which go on from a state."""
    how = {"shuffle": True, "tail": "short"} | how
    found = []
    for rank in range(num_replicas):
        dataset = shardload.open(numbers)
        loader = shardload.ShardLoader(
            dataset, batch_size, seed=seed, rank=rank, num_replicas=num_replicas, with_ids=True, **how
        )
        if state is not None:
            loader.load_state_dict(state)
        found.append(loader)
    return found


def train(found, num_steps=None):
    """Returns the ids of each step of one epoch, in the global order, and the state after them."""
    steps = []
    for batches in zip(*found, strict=True):
        rows = sorted(
            (e, p, i)
            for b in batches
            for e, p, i in zip(*(b[n].tolist() for n in ("_epoch", "_position", "_sample_id")))
        )
        steps.append([i for _, _, i in rows])
        if len(steps) == num_steps:
            break
    state = found[-1].state_dict()
    for loader in found:
        loader.close()
    return steps, state


def flat(steps):
    return [i for step in steps for i in step]


@pytest.mark.parametrize("how", [{}, {"num_threads": 0}, {"shuffle": BLOCKS}, {"shuffle": False}], ids=str)
def test_they_come_in_no_epoch(numbers, how):
    found = loaders(numbers, 8, 3, exclude=BAD, **how)
    assert len(found[0]) == -(-981 // 24)
    plain = loaders(numbers, 1003, **how)[0]
    for _ in range(2):
        expected = next(iter(plain))["_sample_id"].tolist()
        steps = [[b["_sample_id"].tolist() for b in batches] for batches in zip(*found, strict=True)]
        delivered = [ranks[r][s] for ranks in steps for s in range(8) for r in range(3) if s < len(ranks[r])]
        assert delivered == [i for i in expected if i not in BAD]
    for loader in (*found, plain):
        loader.close()


def test_a_dataloader_gives_the_same(numbers):
    dataset = shardload.open(numbers)
    sampler = shardload.ShardSampler(dataset, shuffle=True, seed=3, exclude=shardload.Exclude(BAD))
    assert list(sampler) == order(0, BAD) and len(sampler) == 981
    batches = torch.utils.data.DataLoader(dataset, batch_sampler=sampler.batch_sampler(8), collate_fn=shardload.collate)
    iterator = iter(batches)
    ids = [next(iterator)["number"].tolist() for _ in range(5)]
    state = sampler.state_at(5, 8)
    assert flat(ids) == order(1, BAD)[:40]
    assert flat(train(loaders(numbers, 7, 2, state, exclude=BAD))[0]) == order(1, BAD)[40:]


def test_carried_samples_keep_their_places(numbers):
    found = loaders(numbers, 50, 2, exclude=BAD, tail="carry")
    (first, _), [loader] = train(found), loaders(numbers, 100, exclude=BAD, tail="carry")
    assert flat(first) == order(0, BAD)[:900]
    list(loader)
    loader.audit()
    batch = next(iter(loader))
    loader.audit()
    assert batch["_sample_id"].tolist() == order(0, BAD)[900:] + order(1, BAD)[:19]
    assert batch["_position"].tolist() == [*range(900, 981), *range(19)]
    assert loader.locate(0)["position"].tolist() == batch["_position"].tolist()
    again = loaders(numbers, 100, 1, loader.state_dict(), exclude=BAD, tail="carry")
    assert flat(train(again, 2)[0]) == order(1, BAD)[19:219]
    loader.close()


def test_back_to_a_state_before_the_loss_went_up(numbers):
    """From one state without a stretch, then from a later one without another: nothing else is lost or repeated."""
    steps, state = train(loaders(numbers, 4, 3), 20)
    assert len(state["shardload"]) < 1000
    bad = flat(steps[12:14])
    _, early = train(loaders(numbers, 4, 3), 10)
    first = shardload.Exclude(ids=bad)
    again, later = train(loaders(numbers, 5, 2, early, exclude=first), 30)
    assert flat(again) == [i for i in order(0)[120:] if i not in bad][:300]
    # Told by places: those of the run that has the first stretch left out already.
    second = shardload.Exclude(positions=[(0, 440, 460)])
    gone = order(0, bad)[440:460]
    for start in (later, early):
        rest, _ = train(loaders(numbers, 7, 1, start, exclude=[first, second]))
        done = [*order(0)[:120], *(flat(again) if start is later else [])]
        assert done + flat(rest) == order(0, [*bad, *gone])
    # The place of the state is past these: they miss only what is to come.
    past = shardload.Exclude(ids=order(0)[:50])
    rest, _ = train(loaders(numbers, 7, 1, early, exclude=past))
    assert flat(rest) == order(0)[120:]
    whole = loaders(numbers, 7, 1, early, exclude=past)
    list(whole[0])
    assert flat(train(whole)[0]) == order(1, order(0)[:50])


def test_with_another_seed_meanwhile(numbers):
    _, state = train(loaders(numbers, 10), 20)
    [loader] = loaders(numbers, 10, exclude=BAD)
    loader.load_state_dict(state, reseed=8)
    mixed = order(0, reseeds=[Reseed(0, 200, 8)])
    first, later = train([loader], 10)
    assert flat(first) == [i for i in mixed[200:] if i not in BAD][:100]
    # The seed came while nothing else was left out: what came since and what comes is the same order.
    left = [i for i in mixed[200:] if i not in BAD][100:]
    more = left[50:60]
    rest, end = train(loaders(numbers, 9, 1, later, exclude=[shardload.Exclude(BAD), shardload.Exclude(more)]), 40)
    assert flat(rest) == [i for i in left if i not in more][:360]
    assert json.loads(end["shardload"])["reseeds"] == [[0, 200, 8]]


def test_states_of_other_runs_are_refused(numbers):
    _, state = train(loaders(numbers, 10, exclude=BAD), 3)
    for exclude in ((), BAD[:-1], [shardload.Exclude([4]), shardload.Exclude(BAD)]):
        with pytest.raises(shardload.StateMismatchError, match="give exclude= as that run had it"):
            loaders(numbers, 10, 1, state, exclude=exclude)
    with pytest.raises(shardload.StateMismatchError, match="shuffle"):
        loaders(numbers, 10, 1, train(loaders(numbers, 10, shuffle=False), 3)[1], exclude=BAD)
    with pytest.raises(ValueError, match="there is no sample 1003"):
        loaders(numbers, 10, exclude=[1003])
    with pytest.raises(shardload.StateMismatchError, match="seed"):
        loaders(numbers, 10, 1, state, seed=4, exclude=BAD)


def test_locate_knows_them(numbers, tmp_path, capsys):
    def told(*words):
        assert main(["locate", str(numbers), *map(str, words), "--json"]) == 0, capsys.readouterr().err
        return [one["sample_id"] for one in json.loads(capsys.readouterr().out)["samples"]]

    log, file, left = tmp_path / "run.jsonl", tmp_path / "state.json", tmp_path / "left.json"
    steps, state = [], None
    excludes = [(), [shardload.Exclude(BAD)], [shardload.Exclude(BAD), shardload.Exclude(positions=[(0, 700, 720)])]]
    for number, exclude in enumerate(excludes):
        found = loaders(numbers, 10, 2, state, exclude=exclude)
        found[0].log_to(log)
        some, state = train(found, 8 + number)
        steps += some
    assert [len(json.loads(line)["exclude"]) for line in log.read_text().splitlines()] == [0, 1, 2]
    by_rank = [ids[0::2] + ids[1::2] for ids in steps]
    assert told("--run-log", log, "--step", f"0:{len(steps)}") == flat(by_rank)
    # The rest of the epoch is told ahead.
    ahead = train(loaders(numbers, 10, 2, state, exclude=excludes[2]), 3)[0]
    assert told("--run-log", log, "--step", f"{len(steps)}") == ahead[0][0::2] + ahead[0][1::2]
    file.write_text(json.dumps(state))
    left.write_text(json.dumps([one.facts() for one in excludes[2]]))
    split = ["--batch-size", 10, "--num-replicas", 2, "--tail", "short"]
    assert told("--state", file, "--exclude", left, *split, "--step", "2") == ahead[2][0::2] + ahead[2][1::2]
    assert (
        told("--seed", 3, "--exclude", left, "--sample", 500)
        == told("--seed", 3, "--exclude", left, "--sample", BAD[-1])
        == []
    )
    assert main(["locate", str(numbers), "--state", str(file)]) == 1
    assert "left samples out" in (message := capsys.readouterr().err) and "say with --exclude which" in message
    left.write_text('{"id": 3}')
    assert main(["locate", str(numbers), "--exclude", str(left)]) == 1
    assert "it is to be" in capsys.readouterr().err


def other_loaders(numbers, tmp_path, **how):
    """What makes loaders of orders that are none of single samples of one dataset, by name."""
    with shardload.ShardWriter(tmp_path / "tokens", {"tokens": "uint16[*]"}) as writer:
        for i in range(40):
            writer.write({"tokens": np.full(1 + i, i, dtype=np.uint16)})
    plain, tokens = shardload.open(numbers), shardload.open(tmp_path / "tokens")
    how = {"shuffle": True, "with_ids": True} | how
    blend = shardload.Mixture({"a": (plain[:300], 1), "b": (plain[300:], 2)})
    return {
        "mixture": lambda: shardload.ShardLoader(blend, 8, **how),
        "weights": lambda: shardload.ShardLoader(plain, 8, weights=np.arange(1003), **how),
        "windows": lambda: shardload.ShardLoader(shardload.TokenWindows(tokens, "tokens", 10), 4, **how),
        "packed": lambda: shardload.ShardLoader(shardload.PackedSequences(tokens, "tokens", length=64), 2, **how),
        "budget": lambda: shardload.ShardLoader(tokens, batch_tokens=("tokens", 100), **how),
    }


@pytest.mark.parametrize("kind", ["mixture", "weights", "windows", "packed", "budget"])
def test_orders_of_other_kinds(numbers, tmp_path, capsys, kind):
    """They are told by name what does not go; what stands where is known of all batches of single samples."""
    if kind != "windows":
        with pytest.raises(ValueError, match=r"exclude= (goes with the samples of a dataset|does not go with packed)"):
            other_loaders(numbers, tmp_path, exclude=[3])[kind]()
    loader = other_loaders(numbers, tmp_path / "again", exclude=[])[kind]()
    loader.log_to(tmp_path / "run.jsonl")
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(3)]
    if kind in ("packed", "budget"):
        with pytest.raises(ValueError, match="only known of batches of single samples"):
            loader.locate(1)
    else:
        assert loader.locate(1)["sample_id"].tolist() == batches[1]["_sample_id"].tolist()
        assert loader.locate(1)["position"].tolist() == batches[1]["_position"].tolist()
    file, path = tmp_path / "state.json", numbers if kind in ("mixture", "weights") else tmp_path / "again" / "tokens"
    state = loader.state_dict()
    loader.close()
    file.write_text(json.dumps(state))
    for words in (["--state", file], ["--run-log", tmp_path / "run.jsonl"]):
        assert main(["locate", str(path), *map(str, words)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("an order of the kind" in error or "or a view?" in error), error
