"""`PackedSequences` through a loader: what is in a batch, and that a run goes on anywhere."""

from __future__ import annotations

import collections
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import LENGTHS, NUM_DOCUMENTS, document
from numpy.typing import NDArray

import shardload
from shardload.errors import FormatError, ShardloadError, StateMismatchError

LENGTH, LOOKAHEAD = 96, 50
FULL = sorted(np.flatnonzero(LENGTHS).tolist())
FIELDS = ["tokens", "mask", "weight", "frames"]
PAD = {"tokens": -100, "mask": True, "weight": 2.5, "frames": -1}


def sequences(path: Path, **options: Any) -> shardload.PackedSequences:
    settings: dict[str, Any] = {"fields": "tokens", "length": LENGTH, "lookahead": LOOKAHEAD}
    return shardload.PackedSequences(shardload.open(path), **settings | options)


def make(packed: Any, batch_size: int = 4, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"shuffle": True, "tail": "short", "num_replicas": 1, "rank": 0, "with_ids": True}
    return shardload.ShardLoader(packed, batch_size, **settings | {"prefetch_batches": 0} | options)


def ids_of(batch: dict[str, Any]) -> list[list[int]]:
    return [row.tolist() for row in batch["_sample_id"]]


def check(batch: dict[str, Any], length: int = LENGTH) -> None:
    """Compares each place of a batch with what the documents say, one by one."""
    ends = [0]
    for row, ids in enumerate(ids_of(batch)):
        place = 0
        for number, i in enumerate(ids):
            want, stop = document(i), place + int(LENGTHS[i])
            part = slice(place, stop)
            assert batch["tokens"][row, part].tolist() == want["tokens"].tolist()
            assert batch["mask"][row, part].tolist() == want["mask"].tolist()
            assert batch["weight"][row, part].tolist() == want["weight"].tolist()
            assert batch["frames"][row, part].tolist() == want["frames"].tolist()
            assert batch["position_ids"][row, part].tolist() == list(range(stop - place))
            assert set(batch["segment_ids"][row, part].tolist()) == {number + 1}
            ends.append(row * length + stop)
            place = stop
        assert int(batch["lengths"][row]) == place <= length
        rest = slice(place, length)
        assert (batch["tokens"][row, rest] == -100).all() and batch["mask"][row, rest].all()
        assert (batch["weight"][row, rest] == 2.5).all() and (batch["frames"][row, rest] == -1).all()
        assert not batch["position_ids"][row, rest].any() and not batch["segment_ids"][row, rest].any()
        if place < length:
            ends.append((row + 1) * length)
    assert batch["cu_seqlens"].tolist() == ends and batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == max(np.diff(ends), default=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefetch_batches": 4},
        {"helper_process": True, "prefetch_batches": 4},
        pytest.param({"num_processes": 1}, marks=pytest.mark.slow),
        {"reuse": True},
    ],
)
def test_rows_are_the_documents_end_to_end(documents: Path, options: dict[str, Any]) -> None:
    packed, seen = sequences(documents, fields=FIELDS, pad=PAD), []
    with make(packed, **options) as loader:
        for batch in loader:
            check(batch)
            seen += [i for row in ids_of(batch) for i in row]
            assert batch["tokens"].shape[1:] == (LENGTH,) and batch["tokens"].dtype == torch.int64
            assert batch["frames"].shape[1:] == (LENGTH, 2) and batch["weight"].dtype == torch.bfloat16
            assert batch["mask"].dtype == torch.bool and batch["segment_ids"].dtype == torch.int32
        assert sorted(seen) == FULL
        stats, report = loader.stats(), packed.report()
    assert stats.num_tokens == LENGTHS.sum() == report.num_tokens and stats.fill == pytest.approx(report.fill)
    assert stats.num_helper_batches == (stats.num_batches if "helper_process" in options else 0)
    assert report.fill > 0.9 and report.num_sequences * LENGTH == stats.num_token_places
    assert (report.num_samples, report.num_empty, report.num_overlong) == (NUM_DOCUMENTS, NUM_DOCUMENTS - len(FULL), 0)


def test_a_run_goes_on_after_each_batch(documents: Path) -> None:
    """To the bit on the same ranks; on others each document comes once all the same."""
    packed = sequences(documents)
    loader, batches, states = make(packed), [], []
    assert len(loader) == loader.remaining
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
        assert loader.remaining == len(loader) - len(batches)
    assert len(batches) == len(loader) and len(json.dumps(states[0])) < 1024
    for done, state in enumerate(states[:-1], 1):
        assert make(packed).state_at(done) == state
        again = make(sequences(documents))
        again.load_state_dict(state)
        assert len(again) == len(batches) and again.remaining == len(batches) - done
        for want, got in itertools.zip_longest(batches[done:], again):
            assert want["tokens"].equal(got["tokens"]) and ids_of(want) == ids_of(got)
            assert want["_position"].equal(got["_position"])
    for done in range(1, len(batches), 3):
        rest: list[int] = []
        for rank in range(3):
            other = make(sequences(documents), 2, num_replicas=3, rank=rank)
            other.load_state_dict(states[done - 1])
            rest += [i for batch in other for row in ids_of(batch) for i in row]
        before = [i for batch in batches[:done] for row in ids_of(batch) for i in row]
        assert sorted(before + rest) == FULL


def test_a_finished_epoch_is_followed_by_another(documents: Path) -> None:
    packed = sequences(documents)
    loader = make(packed)
    first = [ids_of(batch) for batch in loader]
    state = loader.state_dict()
    assert loader.state_at(len(first)) == state
    with pytest.raises(ValueError, match=rf"its end is {len(first)}\) until the next iteration begins"):
        loader.state_at(0)
    second = [ids_of(batch) for batch in loader]
    again = make(packed)
    again.load_state_dict(state)
    assert [ids_of(batch) for batch in again] == second != first
    again.set_epoch(5)
    with pytest.raises(ValueError, match=r"num_batches must be from 0 to \d+ in epoch 5, not 99"):
        again.state_at(99)


@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask"])
def test_ranks_have_equally_many_batches(documents: Path, tail: str) -> None:
    packed = sequences(documents)
    num_sequences = packed.report().num_sequences
    seen: collections.Counter[int] = collections.Counter()
    counts, num_rows = set(), 0
    for rank in range(3):
        loader = make(packed, 5, num_replicas=3, rank=rank, tail=tail)
        count = 0
        for batch in loader:
            count += 1
            if tail == "mask":
                assert len(batch["tokens"]) == len(batch["_valid"]) == 5
                for row, valid in zip(ids_of(batch), batch["_valid"].tolist(), strict=True):
                    assert valid is (-1 not in row)
            num_rows += len(batch["tokens"])
            seen.update(i for row in ids_of(batch) for i in row if i >= 0)
        counts.add((count, len(loader)))
    rest = num_sequences % 15
    assert rest and counts == {(num_sequences // 15 + (tail != "drop"),) * 2}
    wanted = {"drop": num_sequences - rest, "short": num_sequences, "pad": num_sequences + -num_sequences % 3}
    assert num_rows == wanted.get(tail, num_sequences - rest + 15)
    if tail in ("short", "mask"):
        assert seen == dict.fromkeys(FULL, 1)
    else:
        assert (set(seen) == set(FULL)) is (tail == "pad")


def test_in_order(documents: Path) -> None:
    batches = [ids_of(batch) for batch in make(sequences(documents), shuffle=False)]
    rows = [row for batch in batches for row in batch]
    assert all(row == sorted(row) and row[0] // LOOKAHEAD == row[-1] // LOOKAHEAD for row in rows)
    assert batches == [ids_of(batch) for batch in make(sequences(documents), shuffle=False, seed=5)]


@pytest.mark.parametrize("shuffle", [True, "block", shardload.BlockShuffle(7, 3)])
def test_views_and_other_ways_to_shuffle(documents: Path, shuffle: Any) -> None:
    view = shardload.open(documents).select(range(399, 100, -2))
    wanted = [i for i in range(len(view)) if LENGTHS[399 - 2 * i]]
    packed = shardload.PackedSequences(view, "tokens", LENGTH, 30)
    for options in ({}, {"prefetch_batches": 4}):
        loader, seen, states = make(packed, shuffle=shuffle, **options), [], []
        for batch in loader:
            for row, ids in enumerate(ids_of(batch)):
                stored = [x for i in ids for x in document(399 - 2 * i)["tokens"].tolist()]
                assert batch["tokens"][row, : len(stored)].tolist() == stored
                seen.append(ids)
            states.append((loader.state_dict(), len(seen)))
        assert sorted(i for ids in seen for i in ids) == wanted
        state, num_done = states[len(states) // 2]
        again = pickle.loads(pickle.dumps(make(packed, shuffle=shuffle, **options)))
        again.load_state_dict(state)
        assert [ids for batch in again for ids in ids_of(batch)] == seen[num_done:]
        again.close()
        loader.close()


def test_blends_tell_the_source_of_each_segment(documents: Path) -> None:
    """And draws by weight are an order as any other."""
    dataset = shardload.open(documents)
    mixture = shardload.Mixture({"a": (dataset[:200], 3), "b": (dataset[200:], 1)}, stop="all_exhausted")
    loader = make(shardload.PackedSequences(mixture, "tokens", LENGTH, LOOKAHEAD), tail="mask", batch_size=7)
    told: collections.Counter[int] = collections.Counter()
    states, rows = [], []
    for batch in loader:
        for row, (ids, sources) in enumerate(zip(ids_of(batch), batch["_source"], strict=True)):
            starts = (batch["position_ids"][row] == 0) & (batch["segment_ids"][row] > 0)
            stored = (batch["tokens"][row][starts] // 100).tolist()
            assert sources.tolist() == ([int(i >= 200) for i in stored] if batch["_valid"][row] else [-1] * len(ids))
            told.update(sources.tolist())
        rows.append(batch["tokens"])
        states.append(loader.state_dict())
    assert told.pop(-1) and loader.stats().num_source_samples == {"a": told[0], "b": told[1]}
    again = make(loader.dataset, tail="mask", batch_size=7)
    again.load_state_dict(states[2])
    assert all(got["tokens"].equal(want) for got, want in itertools.zip_longest(again, rows[3:]))
    drawn = make(sequences(documents), weights=np.arange(NUM_DOCUMENTS) < 9)
    assert {i for batch in drawn for row in ids_of(batch) for i in row} == set(range(9)) & set(FULL)


def test_nothing_is_read_twice(documents: Path) -> None:
    """Of the samples; and of lengths only those of the block that a resume begins in."""
    read: list[int] = []
    measured: list[int] = []

    def watched() -> shardload.PackedSequences:
        packed = sequences(documents)
        dataset: Any = packed.dataset
        read_batches, lengths = dataset.read_batches, dataset.lengths

        def reading(batches: list[NDArray[np.int64]], *rest: Any) -> Any:
            read.extend(np.concatenate(batches).tolist())
            return read_batches(batches, *rest)

        def measuring(name: str, ids: NDArray[np.int64]) -> Any:
            measured.extend(ids.tolist())
            return lengths(name, ids)

        dataset.read_batches, dataset.lengths = reading, measuring
        return packed

    loader = make(watched())
    for _ in itertools.islice(loader, 4):
        pass
    state = loader.state_dict()
    assert len(measured) < NUM_DOCUMENTS / 2
    before, known = len(read), len(measured)
    again = make(watched())
    again.load_state_dict(state)
    for _ in again:
        pass
    assert sorted(read) == FULL and 0 < before < len(FULL)
    position = json.loads(state["shardload"])["position"]
    assert sorted(measured[:known]) == sorted(set(measured[:known])) and len(measured[known:]) == len(
        set(measured[known:])
    )
    assert len(measured) - known == NUM_DOCUMENTS - position // LOOKAHEAD * LOOKAHEAD


@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
def test_samples_that_are_too_long(documents: Path, overlong: Any) -> None:
    length, tokens, loader_seen = 20, collections.Counter[int](), collections.Counter[int]()
    packed = sequences(documents, length=length, overlong=overlong)
    states = []
    loader = make(packed)
    for batch in loader:
        states.append(loader.state_dict())
        real = batch["segment_ids"] > 0
        tokens.update(batch["tokens"][real].tolist())
        loader_seen.update(i for row in ids_of(batch) for i in row)
        starts = batch["position_ids"][real] == 0
        assert int(starts.sum()) == sum(map(len, ids_of(batch)))
    want: collections.Counter[int] = collections.Counter()
    for i in FULL:
        kept = {"truncate": min(length, LENGTHS[i]), "split": LENGTHS[i], "drop": LENGTHS[i] * (LENGTHS[i] <= length)}
        want.update(document(i)["tokens"][: kept[overlong]].tolist())
    assert tokens == want
    report = packed.report()
    assert report.num_overlong == (length < LENGTHS).sum() > 0
    assert report.num_lost_tokens == LENGTHS.sum() - sum(want.values()) == LENGTHS.sum() - report.num_tokens
    again = make(packed)
    again.load_state_dict(states[len(states) // 2])
    rest = collections.Counter(i for batch in again for row in ids_of(batch) for i in row)
    again = make(packed)
    done = collections.Counter(
        i for batch in itertools.islice(again, len(states) // 2 + 1) for row in ids_of(batch) for i in row
    )
    assert done + rest == loader_seen


def test_too_long_is_an_error_by_default(documents: Path) -> None:
    packed = sequences(documents, length=20)
    with pytest.raises(ShardloadError, match=r"sample \d+ has \d+ items, and a sequence holds 20") as caught:
        list(make(packed))
    assert LENGTHS[caught.value.sample_id] > 20


@pytest.mark.parametrize("overlong", ["truncate", "split"])
def test_another_seed_and_passing_over(documents: Path, overlong: Any) -> None:
    """Each sequence's samples still once; a resume in the block under way finds the same rest, whichever seed it names."""
    packed = sequences(documents, length=40, overlong=overlong)
    loader, first = make(packed, 3), []
    for batch in itertools.islice(loader, 5):
        first += [(i, len(row)) for row in ids_of(batch) for i in row]
    state = loader.state_dict()

    def rest(seed: int, state: Any, **options: Any) -> tuple[list[list[list[int]]], list[Any]]:
        loader, states = make(packed, 3, seed=seed), []
        loader.load_state_dict(state, **options)
        batches = []
        for batch in loader:
            batches.append(ids_of(batch))
            states.append(loader.state_dict())
        loader.audit()
        return batches, states

    plain, _ = rest(0, state)
    other, states = rest(0, state, reseed=8)
    assert other[0][0] == plain[0][0] and other != plain
    flat = collections.Counter(i for batch in other for row in batch for i in row)
    assert flat == collections.Counter(i for batch in plain for row in batch for i in row)
    loader = make(packed, 3)
    loader.load_state_dict(state, reseed=8)
    assert rest(8, loader.state_dict())[0] == other
    for done in (0, len(states) // 2):
        assert rest(0, states[done])[0] == rest(8, states[done])[0] == other[done + 1 :]
    for skip in (1, 10, 60):
        passed = 0
        rows = [row for batch in plain for row in batch]
        while skip > sum(map(len, rows[:passed])):
            passed += 1
        assert [row for batch in rest(0, state, skip_samples=skip)[0] for row in batch] == rows[passed:]
    loader = make(packed, 3)
    loader.load_state_dict(state, skip_samples=sum(len(row) for batch in plain for row in batch))
    assert json.loads(loader.state_dict()["shardload"])["epoch"] == 1


def test_states_of_other_sequences_are_refused(documents: Path) -> None:
    state = make(sequences(documents)).state_dict()
    for other in ({"length": 100}, {"lookahead": 51}, {"overlong": "drop"}, {"fields": ["weight", "tokens"]}):
        with pytest.raises(StateMismatchError, match="the state was saved with shuffle 'packed/1 of tokens length=96"):
            make(sequences(documents, **other)).load_state_dict(state)
    with pytest.raises(StateMismatchError):
        make(shardload.open(documents)).load_state_dict(state)


def test_fields_of_different_lengths_name_the_sample(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "d", {"a": "int32[*]", "b": "int8[*]"}) as writer:
        for i in range(9):
            writer.write({"a": np.arange(5, dtype=np.int32), "b": np.zeros(4 if i == 7 else 5, np.int8)})
    packed = shardload.PackedSequences(shardload.open(tmp_path / "d"), ["a", "b"], 10)
    with pytest.raises(FormatError, match="sample 7 has 5 items of 'a' and 4 of 'b'"):
        list(make(packed))


def test_what_does_not_go_with_it_is_refused(documents: Path) -> None:
    dataset, packed = shardload.open(documents), sequences(documents)
    for name, value in {"fields": ["tokens"], "transform": dict, "collate_fn": list, "decode": {}}.items():
        with pytest.raises(ValueError, match=f"{name}= does not go with PackedSequences"):
            make(packed, **{name: value})
    for refused, message in [
        (lambda: make(packed, on_error="mask"), "on_error='mask' does not go with packed sequences"),
        (lambda: make(packed, tail="carry"), "tail='carry' does not go with packed sequences"),
        (lambda: make(packed, None, batch_tokens=9), "batch_tokens= does not go with PackedSequences"),
        (lambda: make(packed, lookahead=9), "lookahead= goes with batch_tokens="),
        (lambda: make(dataset, None), "give batch_size, the samples of a batch, or batch_tokens"),
        (lambda: sequences(documents, fields="text"), "'text' is not a ragged field, .* those are tokens, mask"),
        (lambda: sequences(documents, fields=[]), "name at least one ragged field"),
        (lambda: sequences(documents, overlong="cut"), "overlong must be one of error, truncate, split, drop"),
        (lambda: sequences(documents, pad={"text": 1}), "pad: 'text' is not a field that is packed"),
        (lambda: sequences(documents, pad=0.5), "pad: 0.5 cannot stand in field 'tokens'"),
        (
            lambda: shardload.PackedSequences(shardload.open(documents, transform=dict), "tokens", 9),
            "cannot have a transform",
        ),
        (lambda: iter(make(packed, 1000, tail="drop")), "a global batch takes 1000: use fewer replicas"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()
    for use in (lambda: len(packed), lambda: packed[0], lambda: shardload.ShardSampler(packed, 1, 0)):
        with pytest.raises(TypeError, match="packed sequences exist only in the order of an epoch"):
            use()


def test_what_is_added_to_batches(documents: Path) -> None:
    """dtypes and batch_transform as for other batches; the names that packing adds are taken."""
    loader = make(
        sequences(documents),
        dtypes={"tokens": torch.int32},
        batch_transform=lambda batch: batch | {"new": 1},
        with_ids=False,
    )
    batch = next(iter(loader))
    assert batch["tokens"].dtype == torch.int32 and batch["new"] == 1
    assert set(batch) == {"tokens", "position_ids", "segment_ids", "lengths", "cu_seqlens", "max_seqlen", "new"}


def test_names_that_are_taken(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "d", {"lengths": "int32[*]"}) as writer:
        writer.write({"lengths": np.zeros(3, np.int32)})
    with pytest.raises(ValueError, match="field 'lengths' has the name of what packing adds"):
        shardload.PackedSequences(shardload.open(tmp_path / "d"), "lengths", 8)
