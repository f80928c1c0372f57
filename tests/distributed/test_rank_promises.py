"""What every rank is promised, whatever the numbers: equal counts, exact lengths, and each sample as the tail says."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info

import shardload
from shardload.order.cursor import Tail

TAILS = get_args(Tail)

PathOf = Callable[[int, int], Path]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> PathOf:
    """Returns the paths of datasets of so many samples in so many shards, each written once. Read only."""

    @functools.cache
    def of(num_samples: int, num_shards: int) -> Path:
        path = tmp_path_factory.mktemp("promises") / "dataset"
        per_shard = max(1, -(-num_samples // num_shards))
        for start in range(0, max(1, num_samples), per_shard):
            with shardload.ShardWriter(path, {"number": "int64"}, append=start > 0) as writer:
                for i in range(start, min(start + per_shard, num_samples)):
                    writer.write({"number": i})
        return path

    return of


def promised(num_samples: int, world: int, batch_size: int, tail: str) -> collections.Counter[int]:
    """How many samples come how often in an epoch; those that do not come are not counted."""
    if tail == "drop":
        return collections.Counter({1: num_samples // (world * batch_size) * world * batch_size})
    repeated = -num_samples % world if tail == "pad" else 0
    return collections.Counter(1 + repeated // num_samples + (i < repeated % num_samples) for i in range(num_samples))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    # Few different ones, since each is written: what matters is the remainder over the ranks. Each has its number of shards.
    num_samples=st.sampled_from([0, 1, 2, 3, 7, 16, 17, 48, 97, 144, 153, 500]),
    world=st.integers(1, 17),
    batch_size=st.integers(1, 9),
    tail=st.sampled_from(TAILS),
    shuffle=st.booleans(),
)
def test_counts_lengths_and_samples(
    path_of: PathOf, num_samples: int, world: int, batch_size: int, tail: str, shuffle: bool
) -> None:
    dataset = shardload.open(path_of(num_samples, 1 + num_samples % 5))
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 1, "num_replicas": world, "tail": tail}
    if num_samples < (world * batch_size if tail in ("drop", "carry") else 1):
        event("refused")
        refused(dataset, batch_size, options)
        return
    # One rank reads, the others are asked for ids only.
    reader = shardload.ShardLoader(dataset, batch_size, rank=num_samples % world, prefetch_batches=0, **options)
    samplers = [shardload.ShardSampler(dataset, world, rank, shuffle, 1) for rank in range(world)]
    ranks = [sampler.batch_sampler(batch_size, 0, tail=tail) for sampler in samplers]  # type: ignore[arg-type]
    for epoch in range(2):
        counts, shares = set(), []
        for batches in ranks:
            # After the last batch they speak of the epoch that is over, until the next one begins.
            length, seen = len(batches), []
            assert batches.remaining == (0 if epoch else length)
            for number, ids in enumerate(batches, 1):
                length = len(batches) if number == 1 else length
                assert batches.remaining == length - number and len(batches) == length
                num_valid = len(ids) if ids.num_valid is None else ids.num_valid
                assert len(ids) == batch_size or (tail in ("short", "pad") and number == length)
                seen.append(list(zip(ids.epochs, ids, strict=True))[:num_valid])
            counts.add((length, len(seen)))
            shares.append(seen)
        assert len(counts) == 1 and len(set(counts.pop())) == 1
        pairs = [pair for seen in shares for batch in seen for pair in batch]
        check_epoch(pairs, num_samples, world, batch_size, tail, epoch)
        numbers = [[number for _, number in batch] for batch in shares[reader.rank or 0]]
        if num_samples > 153 and batch_size < 4:
            # Reading hundreds of tiny batches takes most of the time and shows nothing new.
            continue
        assert [batch["number"][batch.get("_valid", slice(None))].tolist() for batch in reader] == numbers
        assert len(reader) == len(numbers) and reader.remaining == 0


def check_epoch(
    pairs: list[tuple[int, int]], num_samples: int, world: int, batch_size: int, tail: str, epoch: int
) -> None:
    """Compares the (epoch, sample) of all ranks in one iteration with the tail's promise."""
    times = collections.Counter(pairs)
    if tail == "carry":
        size = world * batch_size
        rest = num_samples % size * epoch
        assert len(pairs) == (num_samples + rest) // size * size and set(times.values()) == {1}
        # What is left of the epoch before comes first of all, in any rank's first batch.
        assert sum(1 for one, _ in pairs if one == epoch - 1) == rest
        return
    assert {one for one, _ in pairs} == {epoch}
    assert collections.Counter(times.values()) == promised(num_samples, world, batch_size, tail)


def refused(dataset: shardload.ShardDataset, batch_size: int, options: dict[str, Any]) -> None:
    """No batch at all is told when the loader or batch sampler is made, on every rank."""
    message = "do not fill one global batch" if len(dataset) else "no samples"
    for rank in {0, options["num_replicas"] - 1}:
        with pytest.raises(ValueError, match=message):
            shardload.ShardLoader(dataset, batch_size, rank=rank, **options)
        sampler = shardload.ShardSampler(dataset, options["num_replicas"], rank)
        with pytest.raises(ValueError, match=message):
            sampler.batch_sampler(batch_size, tail=options["tail"])


@pytest.mark.parametrize("shuffle", [True, False])
def test_drop_leaves_nobody_out_for_ever(path_of: PathOf, shuffle: bool) -> None:
    """What is dropped is chosen after the shuffle, so it is something else each time; without one it is the end."""
    dataset = shardload.open(path_of(97, 3))
    samplers = [shardload.ShardSampler(dataset, 3, rank, shuffle) for rank in range(3)]
    ranks = [sampler.batch_sampler(4, 0, tail="drop") for sampler in samplers]
    left_out = []
    for _ in range(12):
        left_out.append(set(range(97)) - {i for batches in ranks for ids in batches for i in ids})
    if shuffle:
        assert all(len(ids) == 1 for ids in left_out) and len(set.union(*left_out)) > 6
    else:
        assert left_out == [{96}] * 12


def with_worker(sample: dict[str, Any]) -> dict[str, Any]:
    info = get_worker_info()
    return {**sample, "worker": -1 if info is None else info.id}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    "ranks", [[0, 7], pytest.param(list(range(8)), marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_one_shard_keeps_eight_workers_of_eight_ranks_busy(path_of: PathOf, ranks: list[int]) -> None:
    """Samples are split, not files: how many of those there are decides nothing."""
    dataset = shardload.open(path_of(499, 1), transform=with_worker)
    seen: list[int] = []
    for rank in ranks:
        batches = shardload.ShardSampler(dataset, 8, rank).batch_sampler(4, tail="short")
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=8, timeout=60)
        workers = set()
        for batch in loader:
            workers |= set(batch["worker"].tolist())
            seen += batch["number"].tolist()
        assert workers == set(range(8))
    assert len(seen) == len(set(seen)) == sum(len(range(rank, 499, 8)) for rank in ranks)


@pytest.mark.parametrize("shuffle", [True, False])
def test_accuracy_is_that_of_one_process_for_any_ranks(numbers: Path, shuffle: bool) -> None:
    """Hits and totals are integers, so it is equal to the last bit; also after a resume with other ranks."""
    truth = np.array([n % 5 == 2 for n in range(1003)])
    for world in (1, 2, 3, 7):
        hits, valid = [], []
        for rank in range(world):
            options: dict[str, Any] = {"shuffle": shuffle, "num_replicas": world, "rank": rank, "tail": "mask"}
            for batch in shardload.ShardLoader(shardload.open(numbers), 9, **options):
                hits.append(torch.from_numpy(truth[batch["number"].numpy()]))
                valid.append(batch["_valid"])
        assert shardload.masked_mean(hits, valid).item() == truth.mean()


@pytest.mark.parametrize("options", [{"transform": with_worker}, {"transform": with_worker, "prefetch_batches": 0}])
def test_an_empty_batch_of_a_transform_names_the_cure(numbers: Path, options: dict[str, Any]) -> None:
    """The last batch has 3 samples for 8 ranks: of fields an empty one can be made, of whatever a transform makes not."""
    settings: dict[str, Any] = {"shuffle": True, "num_replicas": 8, "tail": "short"}
    dataset = shardload.open(numbers)
    assert list(shardload.ShardLoader(dataset, 125, rank=3, **settings))[-1]["number"].shape == (0,)
    loader = shardload.ShardLoader(dataset, 125, rank=3, **settings, **options)
    with pytest.raises(ValueError, match=r"no sample in the last batch of the epoch .* use tail='mask' or 'pad'"):
        list(loader)
    numbers_only = shardload.ShardLoader(
        dataset, 125, rank=3, **settings, **options, collate_fn=lambda samples: [one["number"] for one in samples]
    )
    assert list(numbers_only)[-1] == []
