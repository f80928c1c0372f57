"""The loader: every id as promised, exact state, batches that stay what they were, and a clean end."""

from __future__ import annotations

import gc
import json
import os
import pickle
import weakref
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from samples import mixed_sample, write_mixed
from threads import loader_threads

import shardload
from shardload.order import Permutation


def make(path, batch_size=16, **options):
    options = {"shuffle": True, "with_ids": True} | options
    return shardload.ShardLoader(shardload.open(path), batch_size, **options)


def ids_of(loader) -> list[int]:
    return [i for batch in loader for i in batch["_sample_id"].tolist()]


def test_a_batch_holds_what_the_schema_says(mixed):
    loader = make(mixed, 32, shuffle=False)
    batch = next(iter(loader))
    loader.close()
    want = [mixed_sample(i) for i in range(32)]
    assert batch["number"].dtype == torch.int64
    assert batch["number"].tolist() == list(range(32))
    assert batch["flag"].dtype == torch.bool
    assert batch["flag"].tolist() == [s["flag"] for s in want]
    assert batch["small"].dtype == torch.float32
    assert batch["small"].shape == (32, 3)
    assert batch["half"].dtype == torch.bfloat16
    assert batch["half"].tolist() == [s["half"] for s in want]
    assert batch["wide"].dtype == torch.int32
    assert torch.equal(batch["wide"], torch.stack([torch.from_numpy(s["wide"]) for s in want]))
    assert batch["big"].dtype == torch.int64
    assert batch["big"].tolist() == [s["big"] for s in want]
    assert batch["text"] == [s["text"] for s in want]
    assert batch["data"] == [s["data"] for s in want]
    assert batch["facts"] == [s["facts"] for s in want]
    assert batch["_valid_facts"].tolist() == [s["facts"] is not None for s in want]
    assert batch["_valid_score"].tolist() == [s["score"] is not None for s in want]
    assert batch["score"].tolist() == [s["score"] or 0.0 for s in want]
    assert type(batch) is dict


def test_dtypes_override(mixed):
    with make(mixed, 4, shuffle=False, dtypes={"big": torch.uint32, "number": torch.float16}) as loader:
        batch = next(iter(loader))
    assert batch["big"].dtype == torch.uint32
    assert batch["number"].dtype == torch.float16


def test_uint64_beyond_int64_is_refused_not_wrapped(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"n": "uint64"}) as writer:
        writer.write({"n": (1 << 64) - 1})
    with pytest.raises(ValueError, match="does not fit int64"):
        next(iter(make(tmp_path / "d", 1)))
    with make(tmp_path / "d", 1, dtypes={"n": torch.uint64}) as loader:
        assert next(iter(loader))["n"].tolist() == [(1 << 64) - 1]


@pytest.mark.parametrize(("prefetch_batches", "replicas"), [(0, 1), (4, 1), (1, 3), (4, 8)])
@pytest.mark.parametrize("tail", ["drop", "short", "pad"])
def test_every_id_once_an_epoch_over_all_ranks(numbers, replicas, tail, prefetch_batches):
    loaders = [
        make(numbers, 7, num_replicas=replicas, rank=r, tail=tail, prefetch_batches=prefetch_batches)
        for r in range(replicas)
    ]
    for epoch in range(2):
        batches = [list(loader) for loader in loaders]
        assert len({len(b) for b in batches}) == 1
        assert {len(b) for b in batches} == {len(loaders[0])}
        ids = [i for rank in batches for batch in rank for i in batch["_sample_id"].tolist()]
        order = Permutation(1003, seed=0, epoch=epoch).sample_ids(np.arange(1003)).tolist()
        if tail == "drop":
            assert sorted(ids) == sorted(order[: 1003 // (7 * replicas) * 7 * replicas])
        elif tail == "short":
            assert sorted(ids) == list(range(1003))
        else:
            assert sorted(ids) == sorted([*order, *order[: -1003 % replicas]])
        for rank in batches:
            for batch in rank:
                assert torch.equal(batch["number"], batch["_sample_id"])
                assert (batch["_epoch"] == epoch).all()
                assert [order[p] for p in batch["_position"].tolist()] == batch["_sample_id"].tolist()


def test_epochs_differ_and_are_a_function_of_seed_and_epoch(numbers):
    loader = make(numbers)
    first, second = ids_of(loader), ids_of(loader)
    assert first != second
    again = make(numbers)
    again.set_epoch(1)
    assert ids_of(again) == second
    assert ids_of(make(numbers, seed=1)) != first


def test_unshuffled_order_is_that_of_the_dataset(numbers):
    assert ids_of(make(numbers, shuffle=False)) == list(range(1003))


@pytest.mark.parametrize("stop", [0, 1, 5, 61, 62])
def test_resume_goes_on_exactly(numbers, stop):
    """At the start, in the middle, before the last batch, and at the end of an epoch."""
    loader = make(numbers)
    assert len(loader) == 62
    want = [ids_of(loader), ids_of(loader), ids_of(loader)]
    loader = make(numbers)
    batches = iter(loader)
    done = [i for _ in range(stop) for i in next(batches)["_sample_id"].tolist()]
    state = json.loads(json.dumps(loader.state_dict()))
    assert loader.state_at(stop) == state
    loader.close()
    resumed = make(numbers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    if stop < 62:
        assert (len(resumed), resumed.remaining) == (62, 62 - stop)
        assert done + ids_of(resumed) == want[0]
    assert ids_of(resumed) == want[1]
    assert ids_of(resumed) == want[2]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_chains_of_resumes_over_world_and_batch_sizes(numbers, data):
    """Three to six legs: together they deliver a prefix of the one order, each id once."""
    state, ids = None, []
    for _ in range(data.draw(st.integers(3, 6))):
        replicas, batch_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 48))
        ranks = [
            make(numbers, batch_size, num_replicas=replicas, rank=r, tail="short", prefetch_batches=0)
            for r in range(replicas)
        ]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        steps = data.draw(st.integers(1, max(1, min(4, ranks[0].remaining - 1))))
        epochs_before = json.loads(ranks[0].state_dict()["shardload"])["epoch"]
        batches = [iter(loader) for loader in ranks]
        for _ in range(steps):
            share = [next(b)["_position"].tolist() for b in batches]
            ids += [(epochs_before, p) for positions in share for p in positions]
        states = {json.dumps(loader.state_dict()) for loader in ranks}
        assert len(states) == 1
        state = json.loads(states.pop())
        for loader in ranks:
            loader.close()
    assert sorted(ids) == [(p // 1003, p % 1003) for p in range(len(ids))]


def test_state_is_small_one_key_and_equal_before_the_first_batch(numbers):
    states = [make(numbers, num_replicas=3, rank=rank).state_dict() for rank in range(3)]
    assert states[0] == states[1] == states[2]
    assert list(states[0]) == ["shardload"]
    assert len(json.dumps(states[0])) < 1024


def test_state_counts_what_was_delivered_not_what_was_read_ahead(numbers):
    loader = make(numbers, prefetch_batches=8)
    batches = iter(loader)
    for done in range(1, 4):
        next(batches)
        assert json.loads(loader.state_dict()["shardload"])["position"] == done * 16
    loader.close()


def test_skip_samples(numbers):
    loader = make(numbers)
    loader.load_state_dict(loader.state_dict(), skip_samples=100)
    assert ids_of(loader) == Permutation(1003, seed=0, epoch=0).sample_ids(np.arange(100, 100 + 56 * 16)).tolist()
    loader.load_state_dict(make(numbers).state_dict(), skip_samples=2 * 1003 + 5)
    assert next(iter(loader))["_position"][0] == 5
    assert json.loads(loader.state_dict()["shardload"])["epoch"] == 2
    loader.close()
    with pytest.raises(ValueError, match="skip_samples"):
        loader.load_state_dict(loader.state_dict(), skip_samples=-1)


def test_foreign_states_are_refused_and_change_nothing(numbers, mixed):
    loader = make(numbers)
    state = loader.state_dict()
    for other, word in (
        (make(mixed), "fingerprint"),
        (make(numbers, seed=5), "seed"),
        (make(numbers, shuffle=False), "shuffle"),
    ):
        before = other.state_dict()
        with pytest.raises(shardload.StateMismatchError, match=word):
            other.load_state_dict(state)
        assert other.state_dict() == before
    edited = json.loads(state["shardload"]) | {"position": 32}
    for bad in ({}, {"shardload": 3}, {"shardload": "x"}, {"shardload": "[]"}, {"shardload": json.dumps(edited)}, None):
        with pytest.raises(shardload.StateMismatchError):
            loader.load_state_dict(bad)


def test_state_at_outside_the_epoch(numbers):
    loader = make(numbers)
    for bad in (-1, 63, 1.0):
        with pytest.raises(ValueError, match=r"num_batches must be (from 0 to 62|an integer)"):
            loader.state_at(bad)


def test_state_at_the_start_of_an_epoch_that_is_over_would_repeat_it(numbers):
    loader = make(numbers)
    assert len(ids_of(loader)) == 992
    assert loader.state_at(62) == loader.state_dict()
    with pytest.raises(ValueError, match="would repeat it"):
        loader.state_at(0)


def place_of(loader) -> tuple[int, int]:
    state = json.loads(loader.state_dict()["shardload"])
    return state["epoch"], state["position"]


def test_the_state_names_the_epoch_that_comes(numbers):
    loader = make(numbers)
    loader.set_epoch(3)
    assert place_of(loader) == (3, 0)
    assert len(ids_of(loader)) == 992
    assert place_of(loader) == (4, 0)
    loader.set_epoch(7)
    assert place_of(loader) == (7, 0)
    batches = iter(loader)
    assert next(batches)["_epoch"][0] == 7
    # In the middle of an epoch set_epoch is about the next iteration; what was delivered stays delivered.
    loader.set_epoch(7)
    assert place_of(loader) == (7, 16)
    loader.close()


def test_an_iterator_that_is_only_made_costs_nothing(numbers):
    loader = make(numbers)
    iter(loader)
    assert next(iter(loader))["_epoch"][0] == 0
    state = loader.state_dict()
    loader.close()
    loader = make(numbers)
    loader.load_state_dict(state)
    iter(loader)
    assert next(iter(loader))["_position"].tolist() == list(range(16, 32))
    loader.close()


def test_leaving_a_loaded_remainder_after_a_peek_warns(numbers):
    loader = make(numbers)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    loader.load_state_dict(state)
    next(iter(loader))
    with pytest.warns(UserWarning, match="rest of epoch 0, which a loaded state"):
        next(iter(loader))
    # Leaving any other epoch is the user's own choice.
    next(iter(loader))
    loader.close()


def test_len_and_remaining_hold_until_the_next_epoch_begins(numbers):
    loader = make(numbers, 10)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    resumed = make(numbers, 5)
    resumed.load_state_dict(loader.state_dict())
    loader.close()
    want = 4 + (1003 - 40) // 5
    for done, _batch in enumerate(resumed, 1):
        assert (len(resumed), resumed.remaining) == (want, want - 4 - done)
    assert (len(resumed), resumed.remaining) == (want, 0)
    next(iter(resumed))
    assert (len(resumed), resumed.remaining) == (200, 199)
    resumed.close()


def test_an_error_after_the_read_ends_the_iteration(numbers, monkeypatch):
    """A batch that could not be delivered must not be passed over by whoever catches the error."""
    import shardload.loader.course as module

    calls = []

    def fails_once(batch, device):
        calls.append(device)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return batch

    monkeypatch.setattr(module, "to_device", fails_once)
    loader = make(numbers, device="cpu")
    batches = iter(loader)
    next(batches)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(batches)
    with pytest.raises(shardload.LoaderClosedError):
        next(batches)
    assert place_of(loader) == (0, 16)


def test_kept_batches_stay_what_they_were(numbers):
    """As Hugging Face's gradient accumulation does: take four batches, then use them."""
    loader, all_ids = make(numbers), []
    batches = iter(loader)
    for _ in range(10):
        kept = [next(batches) for _ in range(4)]
        for batch in kept:
            assert torch.equal(batch["number"], batch["_sample_id"])
        all_ids += [i for batch in kept for i in batch["number"].tolist()]
    loader.close()
    assert len(set(all_ids)) == len(all_ids) == 640


def test_dropped_batches_are_reused(mixed):
    loader = make(mixed, 8, prefetch_batches=2)
    for batch in loader:
        del batch
    stats = loader.stats()
    assert stats.num_buffers_reused > stats.num_buffers_new
    assert stats.leased_bytes == 0
    assert stats.num_samples == 496


def test_keeping_very_many_batches_warns_once(mixed):
    loader = make(mixed, 4, fields=["wide"], prefetch_bytes=4096)
    with pytest.warns(UserWarning, match="batches are being kept") as caught:
        kept = list(loader)
    assert len(caught) == 1
    assert len(kept) == 125


def test_prefetch_is_bounded_in_bytes(mixed):
    """With a byte bound below two batches the thread is at most a batch in the queue and one in hand ahead."""
    made = []
    loader = make(
        mixed,
        10,
        fields=["wide"],
        prefetch_batches=50,
        prefetch_bytes=15_000,
        batch_transform=lambda b: made.append(1) or b,
    )
    batches = iter(loader)
    for taken in range(1, 20):
        next(batches)
        assert len(made) <= taken + 2
    loader.close()


def test_transform_gets_the_same_rng_on_any_rank_and_after_a_resume(mixed):
    def transform(sample, rng):
        return {"number": sample["number"], "draw": float(rng.random())}

    def draws(*loaders):
        found = {}
        for loader in loaders:
            for batch in loader:
                for n, draw, epoch in zip(
                    batch["number"].tolist(), batch["draw"].tolist(), batch["_epoch"].tolist(), strict=True
                ):
                    found[epoch, n] = draw
        return found

    single = make(mixed, 10, transform=transform)
    first, second = draws(single), draws(single)
    assert len(set(first.values())) == 500
    assert set(first.values()).isdisjoint(second.values())
    assert (
        draws(*[make(mixed, 5, transform=transform, num_replicas=2, rank=r, prefetch_batches=0) for r in (0, 1)])
        == first
    )


def test_transform_that_returns_none_names_the_cure(mixed):
    with pytest.raises(ValueError, match=r"pack --filter.*on_error"):
        next(iter(make(mixed, transform=lambda sample: None)))


@pytest.mark.parametrize("text", ["uint32", "int64", "uint16[*]", "int32[1]"])
def test_integers_that_a_dtype_cannot_hold_are_an_error(tmp_path, text):
    """torch would take 200 for -56."""
    with shardload.ShardWriter(tmp_path / "out", {"x": text}) as writer:
        for value in (1, 200, 127):
            writer.write({"x": [value] if "[" in text else value})
    with pytest.raises(ValueError, match=r"field 'x': 200 does not fit torch\.int8, which dtypes= asks for"):
        list(make(tmp_path / "out", 1, shuffle=False, dtypes={"x": torch.int8}))
    for dtype in (torch.uint8, torch.int16, torch.uint64, torch.float16):
        batch = next(iter(make(tmp_path / "out", 3, shuffle=False, dtypes={"x": dtype})))
        assert [int(value) for value in batch["x"]] == [1, 200, 127]
        assert all(value.dtype == dtype for value in batch["x"])
    with pytest.raises(ValueError, match=r"field 'x': -1 does not fit torch\.uint64"):
        with shardload.ShardWriter(tmp_path / "negative", {"x": "int8"}) as writer:
            writer.write({"x": -1})
        next(iter(make(tmp_path / "negative", 1, shuffle=False, dtypes={"x": torch.uint64})))


def test_fields_named_by_an_iterator(mixed):
    batch = next(iter(make(mixed, 4, with_ids=False, fields=iter(["number", "text"]))))
    assert set(batch) == {"number", "text"}


@pytest.mark.parametrize("dtype", ["int32", np.int32, int])
def test_dtypes_that_are_none_of_torch(numbers, dtype):
    with pytest.raises(TypeError, match="dtypes: 'number' must have a dtype of torch"):
        make(numbers, dtypes={"number": dtype})


@pytest.mark.parametrize("num_processes", [0, 1])
def test_a_transform_that_returns_none_for_a_sample_names_it(numbers, num_processes):
    loader = make(numbers, shuffle=False, transform=none_at_five, num_processes=num_processes)
    with pytest.raises(ValueError, match="returned None") as raised:
        next(iter(loader))
    loader.close()
    assert f"in the transform of sample 5 of {numbers}" in raised.value.__notes__


def none_at_five(sample):
    return None if sample["number"] == 5 else sample


@pytest.mark.parametrize("field", ["text", "other"])
def test_missing_values_in_results_of_a_transform_are_named(numbers, field):
    def transform(sample):
        return {"number": sample["number"], field: None if sample["number"] == 0 else 7}

    with pytest.raises(TypeError, match=f"'{field}' is None in some of them: have the transform put a value there"):
        next(iter(make(numbers, shuffle=False, transform=transform)))


@pytest.mark.parametrize("number", [0, 3])
def test_results_of_a_transform_with_other_keys_are_an_error_that_says_so(numbers, number):
    """Of others than the first of a batch, torch would leave them out without a word."""

    def transform(sample):
        return {"n": 1, "extra": 1} if sample["number"] == number else {"n": 1}

    with pytest.raises(ValueError, match="some have no 'extra'; return equal keys"):
        next(iter(make(numbers, shuffle=False, transform=transform)))


def test_ragged_results_of_a_transform_name_the_cure(mixed):
    with pytest.raises(RuntimeError, match="equal shape, or give collate_fn"):
        next(iter(make(mixed, transform=lambda sample: {"x": np.zeros(sample["number"])})))


def test_collate_fn_and_batch_transform(mixed):
    loader = make(
        mixed,
        4,
        shuffle=False,
        with_ids=False,
        collate_fn=lambda s: [x["number"] for x in s],
        batch_transform=lambda b: tuple(b),
    )
    assert next(iter(loader)) == (0, 1, 2, 3)
    loader.close()
    with pytest.raises(TypeError, match="with_ids"):
        next(iter(make(mixed, collate_fn=list)))


def test_device(mixed):
    with make(mixed, device="cpu") as loader:
        assert next(iter(loader))["number"].device.type == "cpu"


class Pair(NamedTuple):
    left: torch.Tensor
    right: list


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda t: t, lambda b: b),
        (lambda t: {"a": [t, "text"]}, lambda b: b["a"][0]),
        (lambda t: Pair(t, [1]), lambda b: b.left),
        (lambda t: UserDict(a=t), lambda b: b["a"]),
        (lambda t: (t,), lambda b: b[0]),
    ],
)
def test_batches_of_any_shape_are_moved(mixed, wrap, unwrap):
    with make(mixed, with_ids=False, device="meta", batch_transform=lambda b: wrap(b["number"])) as loader:
        batch = next(iter(loader))
    assert unwrap(batch).device.type == "meta"
    assert type(batch) is type(wrap(torch.zeros(1)))


def test_an_error_of_the_thread_is_raised_in_its_turn(tmp_path):
    path = write_mixed(tmp_path / "d", 100, compression="none", shard_size="1MiB")
    shard = next((path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    at = data.index(mixed_sample(30)["data"])
    data[at] ^= 1
    shard.write_bytes(data)
    loader = make(path, 10, shuffle=False)
    batches = iter(loader)
    for first in (0, 10, 20):
        assert next(batches)["number"][0] == first
    with pytest.raises(shardload.ChecksumError, match="sample 30"):
        next(batches)
    with pytest.raises(shardload.LoaderClosedError):
        next(batches)
    assert not loader_threads()


def test_an_exception_of_a_transform_arrives_as_it_is(mixed):
    class OwnError(Exception):
        pass

    def transform(sample):
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        next(iter(make(mixed, transform=transform)))


def test_a_peek_costs_an_epoch_number_not_data(numbers):
    loader = make(numbers)
    next(iter(loader))
    ids = ids_of(loader)
    assert ids == Permutation(1003, seed=0, epoch=1).sample_ids(np.arange(992)).tolist()


def test_a_second_iterator_closes_the_first(numbers):
    loader = make(numbers)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(shardload.LoaderClosedError, match="newer iterator"):
        next(first)
    assert next(second)["_epoch"][0] == 1
    loader.close()
    with pytest.raises(shardload.LoaderClosedError):
        next(second)
    with pytest.raises(shardload.LoaderClosedError, match="loader is closed"):
        iter(loader)


def test_a_loaded_position_wins_over_set_epoch_once(numbers):
    loader = make(numbers)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    resumed = make(numbers)
    resumed.load_state_dict(state)
    with pytest.warns(UserWarning, match="goes on in epoch 0"):
        resumed.set_epoch(4)
    batches = iter(resumed)
    assert [next(batches)["_epoch"][0] for _ in range(2)] == [0, 0]
    resumed.set_epoch(4)
    assert next(iter(resumed))["_epoch"][0] == 4
    loader.close()
    resumed.close()


def test_break_and_garbage_leave_no_thread(numbers):
    for _ in range(20):
        loader = make(numbers)
        for _batch in loader:
            break
        del _batch
    gc.collect()
    for thread in loader_threads():
        thread.join(10)
    assert not loader_threads()


def test_an_abandoned_loader_is_collected(numbers):
    loader = make(numbers)
    batches = iter(loader)
    next(batches)
    alive = weakref.ref(loader)
    del loader, batches
    gc.collect()
    assert alive() is None


EXIT_CODE = """
import sys, shardload
loader = shardload.ShardLoader(shardload.open(sys.argv[1]), 4, shuffle=True)
batches = iter(loader)
next(batches)
print("running", flush=True)
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise KeyError(1)", 1),
        ("import signal, os; os.kill(os.getpid(), signal.SIGINT)", -2),
    ],
)
def test_the_interpreter_ends_with_a_running_loader(numbers, ending, status):
    program = Program(EXIT_CODE.format(ending=ending), numbers)
    output, errors = program.communicate(timeout=60)
    assert output == "running\n"
    assert program.returncode == status, errors
    assert "Fatal" not in errors
    if status == 0:
        assert errors == ""


@pytest.mark.parametrize("prefetch_batches", [0, 4])
def test_an_iterator_does_not_work_in_a_forked_child(numbers, prefetch_batches):
    """It says so, rather than waiting for a thread that is not there; a new one works."""
    loader = make(numbers, prefetch_batches=prefetch_batches)
    batches = iter(loader)
    next(batches)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                next(batches)
            except shardload.LoaderClosedError:
                os.write(writer, b"refused")
            os.write(writer, b" %d" % len(ids_of(make(numbers))))
        finally:
            os._exit(0)
    os.close(writer)
    answer = b""
    while part := os.read(reader, 100):
        answer += part
    os.close(reader)
    os.waitpid(child, 0)
    assert answer == b"refused 992"
    loader.close()


def test_pickle(numbers):
    loader = make(numbers)
    batches = iter(loader)
    next(batches)
    data = pickle.dumps(loader)
    assert len(data) < 4000
    copy = pickle.loads(data)
    assert copy.state_dict() == loader.state_dict()
    loader.close()


def test_ranks_from_the_environment(numbers, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = make(numbers)
    assert ids_of(loader) == ids_of(make(numbers, num_replicas=3, rank=2))
    assert capsys.readouterr().err == "shardload: rank 2 of 3, from RANK and WORLD_SIZE\n"
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ValueError, match="not integers"):
        make(numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1"),
        ({"batch_size": 2000}, "do not fill one global batch"),
        ({"rank": 2}, "both num_replicas and rank"),
        ({"num_replicas": 2, "rank": 2}, "rank 2 of 2"),
        ({"num_replicas": 2, "rank": 0, "shuffle": False}, "tail must be named"),
        ({"num_replicas": 2, "world_size": 3, "rank": 0}, "another name"),
        ({"tail": "drop", "drop_last": True}, "twice"),
        ({"tail": "wrap"}, "tail must be one of"),
        ({"seed": -1}, "seed"),
        ({"fields": ["none"]}, "no field 'none'"),
        ({"dtypes": {"none": torch.int32}}, "'none' is not a field of numbers"),
        ({"dtypes": {"number": torch.int32}, "collate_fn": list}, "dtypes= is for fields as stored"),
        ({"prefetch_bytes": 0}, "prefetch_bytes"),
        ({"batch_size": True}, "batch_size"),
        ({"prefetch_batches": -1}, "prefetch_batches"),
        ({"prefetch_bytes": "much"}, "prefetch_bytes"),
    ],
)
def test_settings_that_cannot_be(numbers, options, message):
    with pytest.raises(ValueError, match=message):
        make(numbers, **options)


def test_integers_of_numpy_are_taken(numbers):
    loader = make(numbers, np.int64(16), seed=np.int64(3), num_replicas=np.int32(2), rank=np.int8(1))
    loader.set_epoch(np.int64(2))
    assert ids_of(loader) == Permutation(1003, seed=3, epoch=2).sample_ids(np.arange(1, 992, 2)).tolist()


def test_world_size_and_drop_last_are_other_names(numbers):
    left = make(numbers, world_size=3, rank=1, drop_last=True)
    assert ids_of(left) == ids_of(make(numbers, num_replicas=3, rank=1, tail="drop"))
    assert ids_of(make(numbers, drop_last=False)) == ids_of(make(numbers, tail="short"))
    padded = ids_of(make(numbers, num_replicas=3, rank=1, drop_last=False))
    assert padded == ids_of(make(numbers, num_replicas=3, rank=1, tail="pad"))


def test_order_of_ten_billion_samples_is_cheap():
    """1,000 ids of any rank at n = 10^10 within 8 MB."""
    import tracemalloc

    from shardload.order.cursor import Partition, rank_batches

    order = Permutation(10**10, seed=3, epoch=2)
    partition = Partition(10**10, 100, 64, "drop")
    tracemalloc.start()
    batches = rank_batches(partition, 63, 9_999_000_000 // 6400 * 6400, order.sample_ids)
    ids = np.concatenate([next(batches).sample_ids for _ in range(10)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(ids.tolist())) == 1000
    assert peak < 8 << 20


def test_stall_is_counted(numbers):
    """A slow transform shows as waiting; the counters add up."""
    loader = make(numbers, 100, transform=lambda sample: {"number": sample["number"], "work": sum(range(5000))})
    batches = ids_of(loader)
    stats = loader.stats()
    assert stats.num_samples == len(batches) == 1000
    assert stats.num_batches == 10
    assert 0 < stats.stall_seconds <= stats.loop_seconds
