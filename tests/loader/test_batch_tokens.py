"""`batch_tokens=`: batches of similar lengths within a budget, on any ranks."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import LENGTHS, NUM_DOCUMENTS, document

import shardload
from shardload.errors import ShardloadError, StateMismatchError

BUDGET, LOOKAHEAD = 300, 60
ALL = list(range(NUM_DOCUMENTS))


def make(path: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"shuffle": True, "tail": "short", "num_replicas": 1, "rank": 0, "with_ids": True}
    settings |= {"batch_tokens": ("tokens", BUDGET), "lookahead": LOOKAHEAD, "fields": ["tokens", "number"]}
    return shardload.ShardLoader(shardload.open(path), **settings | {"prefetch_batches": 0} | options)


def ids_of(batch: dict[str, Any]) -> list[int]:
    ids: list[int] = batch["_sample_id"].tolist()
    return ids


@pytest.mark.parametrize("options", [{}, {"prefetch_batches": 4}, {"helper_process": True, "prefetch_batches": 4}])
def test_batches_keep_the_budget_and_have_each_sample_once(documents: Path, options: dict[str, Any]) -> None:
    seen: list[int] = []
    places = 0
    with make(documents, **options) as loader:
        for batch in loader:
            padded, lengths = shardload.padded(batch["tokens"])
            assert 0 < padded.numel() <= BUDGET or not lengths.any()
            places += max(1, padded.shape[1]) * len(lengths)
            for i, values, position in zip(ids_of(batch), batch["tokens"], batch["_position"].tolist(), strict=True):
                assert values.tolist() == document(i)["tokens"].tolist()
                assert position // LOOKAHEAD == int(batch["_position"][0]) // LOOKAHEAD
            assert batch["number"].tolist() == ids_of(batch)
            seen += ids_of(batch)
        assert sorted(seen) == ALL and len(loader) == loader.stats().num_batches
        stats = loader.stats()
    assert (stats.num_tokens, stats.num_token_places) == (LENGTHS.sum(), places)
    assert stats.fill == LENGTHS.sum() / places > 0.7


def test_samples_of_a_batch_are_of_similar_length(documents: Path) -> None:
    """Within a block, the longest of one batch is not longer than the shortest of another that is longer."""
    spans: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for batch in make(documents):
        lengths = LENGTHS[ids_of(batch)]
        spans[int(batch["_position"][0]) // LOOKAHEAD].append((int(lengths.min()), int(lengths.max())))
    for block in spans.values():
        for (_, most), (least, _) in itertools.pairwise(sorted(block)):
            assert most <= least


def test_a_run_goes_on_after_each_batch(documents: Path) -> None:
    loader, batches, states = make(documents), [], []
    for batch in loader:
        batches.append(ids_of(batch))
        states.append(loader.state_dict())
    for done, state in enumerate(states[:-1], 1):
        assert make(documents).state_at(done) == state
        again = make(documents)
        again.load_state_dict(state)
        assert again.remaining == len(batches) - done
        assert [ids_of(batch) for batch in again] == batches[done:]
        if done % 4 == 0:
            others = [make(documents, num_replicas=3, rank=rank) for rank in range(3)]
            for other in others:
                other.load_state_dict(state)
            rest = [[ids_of(batch) for batch in other] for other in others]
            assert len({*map(len, rest)}) == 1
            # The same batches, dealt out to the ranks in turn.
            assert [batch for step in zip(*rest, strict=True) for batch in step if batch] == batches[done:]


@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask"])
def test_ranks_have_equally_many_batches(documents: Path, tail: str) -> None:
    total = len(make(documents))
    seen: collections.Counter[int] = collections.Counter()
    counts = set()
    for rank in range(4):
        loader, count = make(documents, num_replicas=4, rank=rank, tail=tail), 0
        for batch in loader:
            count += 1
            valid = batch.get("_valid", torch.ones(len(batch["number"]), dtype=torch.bool))
            assert valid.all() or not valid.any()
            assert len(batch["number"]) or tail == "short"
            seen.update(batch["number"][valid].tolist())
        counts.add((count, len(loader)))
    assert total % 4 and counts == {(total // 4 + (tail != "drop"),) * 2}
    if tail in ("short", "mask"):
        assert seen == dict.fromkeys(ALL, 1)
    else:
        assert (set(seen) == set(ALL)) is (tail == "pad")


def test_most_samples_of_a_batch_and_other_fields(documents: Path) -> None:
    batches = [ids_of(batch) for batch in make(documents, batch_size=7)]
    assert max(map(len, batches)) == 7 and sorted(i for ids in batches for i in ids) == ALL
    # The bytes of a text.
    texts = make(documents, batch_tokens=("text", BUDGET), fields=["text"])
    assert [ids_of(batch) for batch in texts] == [ids_of(batch) for batch in make(documents)]
    other = make(documents, batch_tokens=("frames", 97), lookahead=None)
    longest = [LENGTHS[ids_of(batch)].max(initial=1) * len(batch["number"]) for batch in other]
    assert max(longest) <= 97 and other.stats().num_samples == NUM_DOCUMENTS


def test_the_field_need_not_be_named_if_there_is_one(tmp_path: Path, documents: Path) -> None:
    with shardload.ShardWriter(tmp_path / "d", {"tokens": "int32[*]", "name": "str", "label": "int8"}) as writer:
        for i in range(20):
            writer.write({"tokens": np.arange(i, dtype=np.int32), "name": "a", "label": 1})
    dataset = shardload.open(tmp_path / "d")
    batches = shardload.ShardLoader(dataset, batch_tokens=40, shuffle=False)
    assert all(len(batch["label"]) * max(1, *map(len, batch["tokens"]), 1) <= 40 for batch in batches)
    with pytest.raises(ValueError, match="say whose items are meant, as batch_tokens="):
        make(documents, batch_tokens=40)


def add_noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"number": sample["number"], "noise": rng.random()}


def test_what_a_transform_draws_does_not_depend_on_the_batches(documents: Path) -> None:
    def noise(**options: Any) -> dict[int, float]:
        loader = make(documents, transform=add_noise, **options)
        return {
            i: x for batch in loader for i, x in zip(batch["number"].tolist(), batch["noise"].tolist(), strict=True)
        }

    assert noise() == noise(batch_tokens=None, lookahead=None, batch_size=9)


def test_states_and_settings_that_do_not_fit(documents: Path) -> None:
    state = make(documents).state_dict()
    assert len(json.dumps(state)) < 1024
    make(documents, batch_tokens=["tokens", BUDGET]).load_state_dict(state)
    for other in (
        {"batch_tokens": ("tokens", 301)},
        {"batch_tokens": ("weight", BUDGET)},
        {"batch_size": 9},
        {"lookahead": 61},
    ):
        with pytest.raises(StateMismatchError, match="the state was saved with shuffle \"batch_tokens/1 of 'tokens' "):
            make(documents, **other).load_state_dict(state)
    for options, message in [
        ({"batch_tokens": ("number", 9)}, "'number' is not a ragged field, nor one of bytes.* those are tokens, mask"),
        ({"batch_tokens": ("tokens", 0)}, "batch_tokens must be an integer from 1, not 0"),
        ({"batch_tokens": ["tokens"]}, r"a number, or \(field, number\), not \['tokens'\]"),
        ({"tail": "carry"}, "tail='carry' does not go with .* batch_tokens="),
        ({"on_error": "substitute"}, "on_error='substitute' does not go with .* batch_tokens="),
        ({"tail": None, "num_replicas": 2, "shuffle": False}, "the tail must be named"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(documents, **options)
    with pytest.raises(
        ShardloadError, match=r"sample \d+ has \d+ items, and a batch may have 50 .* give a larger budget"
    ):
        list(make(documents, batch_tokens=("tokens", 50)))
