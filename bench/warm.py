"""Cases from memory: what a loader costs beside a loop in C, a hand-written gather, and itself with more shards."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import shardload
from bench.case import Arm, Case, Line, c_gather, facts_of, loader_of, mapped, one_core, timed, timed_tokens
from bench.workloads import TOKENS, Workload, images, text, tokens

NUM_TOKENS, NUM_IMAGES = 200_000, 12_000
"""An epoch of 0.8 and 1.3 GB takes 0.1 to 0.2 s. Of shorter ones a loader's beginning is a part that no training has."""


class Rows:
    """np.memmap, one copy a sample."""

    def __init__(self, work: Workload) -> None:
        self.rows = np.memmap(work.raw, dtype=np.int32, mode="r").reshape(-1, TOKENS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index].copy()


class GatheredRows(Rows):
    """np.memmap, one gather a batch, as written by hand."""

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        return np.take(self.rows, indices, axis=0)


def hand_written(rows: Rows, batch_size: int, order: np.ndarray | None = None) -> Iterable[torch.Tensor]:
    options: dict[str, Any] = {"shuffle": True} if order is None else {"sampler": order.tolist()}
    if isinstance(rows, GatheredRows):
        options["collate_fn"] = torch.from_numpy
    return DataLoader(rows, batch_size, **options)


def p1(folder: Path, scale: float) -> Iterator[Line]:
    work = tokens(folder, int(NUM_TOKENS * scale))
    order = np.random.default_rng(2).permutation(len(work))
    with one_core():
        later, off = loader_of(work, verify="once"), loader_of(work, verify="off")

    def run(loader: shardload.ShardLoader | None = None) -> float:
        with one_core():
            batches = loader_of(work, verify="once") if loader is None else loader
            return timed_tokens((batch["tokens"] for batch in batches), len(work))

    source = mapped(work)

    def limit(source: np.ndarray | None = source) -> float:
        with one_core():
            return c_gather(work, order, source)

    for _ in range(2):
        run(later), run(off), limit()
    cores = {"cores": 1}
    once, unchecked = facts_of(work, verify="once", **cores), facts_of(work, verify="off", **cores)
    yield Line("later epochs", {"loader": lambda: run(later), "C gather": limit}, True, facts=once)
    yield Line("verify off", {"loader": lambda: run(off), "C gather": limit}, True, facts=unchecked)
    yield Line("first epoch", {"loader": run, "C gather": lambda: limit(None)}, True, facts=once)


def beside_c(work: Workload, limit_name: str, less_is_better: bool) -> Iterator[Line]:
    """Yields later epochs, unchecked ones and the first beside the gather in C."""
    order, source = np.random.default_rng(3).permutation(len(work)), mapped(work)
    later, off = loader_of(work, verify="once"), loader_of(work, verify="off")
    for _ in range(2):
        timed(work, later), timed(work, off), c_gather(work, order, source)
    limit: dict[str, Arm] = {limit_name: lambda: c_gather(work, order, source)}
    once, unchecked = facts_of(work, verify="once"), facts_of(work, verify="off")
    yield Line("later epochs", {"loader": lambda: timed(work, later)} | limit, less_is_better, facts=once)
    yield Line("verify off", {"loader": lambda: timed(work, off)} | limit, less_is_better, facts=unchecked)
    first: Arm = lambda: timed(work, loader_of(work, verify="once"))  # noqa: E731
    anew: dict[str, Arm] = {limit_name: lambda: c_gather(work, order)}
    yield Line("first epoch", {"loader": first} | anew, less_is_better, facts=once)


def p2(folder: Path, scale: float) -> Iterator[Line]:
    return beside_c(text(folder, int(100_000 * scale)), "C gather", True)


def p3(folder: Path, scale: float) -> Iterator[Line]:
    return beside_c(images(folder, int(NUM_IMAGES * scale)), "C memcpy", False)


def p5(folder: Path, scale: float) -> Iterator[Line]:
    work = tokens(folder, int(NUM_TOKENS * scale))
    loader = loader_of(work)
    dataset = shardload.open(work.dataset)
    sampler = shardload.ShardSampler(dataset).batch_sampler(work.batch_size)
    ours = DataLoader(dataset, batch_sampler=sampler, collate_fn=shardload.collate)
    # Mapped once, as the loader's files are.
    rows, taken = Rows(work), GatheredRows(work)
    gathered: dict[str, Arm] = {"gather": lambda: timed_tokens(hand_written(taken, work.batch_size), len(work))}
    first: Arm = lambda: timed_tokens((batch["tokens"] for batch in loader), len(work))  # noqa: E731
    second: Arm = lambda: timed_tokens((batch["tokens"] for batch in ours), len(work))  # noqa: E731
    for arm in (first, second, gathered["gather"]):
        arm()
    yield Line("path 2", {"loader": first} | gathered, False, facts=facts_of(work))
    yield Line("path 1", {"sampler": second} | gathered, False, facts=facts_of(work, threads="num_workers=0"))
    styled: Arm = lambda: timed_tokens(hand_written(rows, work.batch_size), len(work))  # noqa: E731
    yield Line("path 2 to map-style", {"loader": first, "map-style": styled}, False, facts=facts_of(work))


def p18(folder: Path, scale: float) -> Iterator[Line]:
    del scale  # fewer samples would not fill so many shards
    works = {}
    for num_shards in (4_096, 16):
        place = folder / str(num_shards)
        place.mkdir()
        works[num_shards] = tokens(place, 65_536, num_shards)

    def arm(num_shards: int, verify: str) -> Arm:
        work = works[num_shards]
        loader = loader_of(work, verify=verify)
        return lambda: timed(work, loader)

    for name, verify in (("later epochs", "once"), ("verify off", "off")):
        arms = {f"{num_shards:,} shards": arm(num_shards, verify) for num_shards in works}
        for run in [*arms.values()] * 2:
            run()
        yield Line(name, arms, True, facts=facts_of(works[16], verify=verify))


def cpu_seconds() -> float:
    """Returns what this process, all its threads and its ended children have used."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cpu_cost(work: Workload, run: Callable[[], float], also: list[float]) -> float:
    """Returns CPU seconds a GB of an arm that reads all samples once; its microseconds a sample are noted."""
    start = cpu_seconds()
    seconds = run()
    used = cpu_seconds() - start
    also.append(seconds * 1e6)
    return used / int(work.lengths.sum()) * 1e9


def p19(folder: Path, scale: float) -> Iterator[Line]:
    for name, make, count, limits in (
        ("tokens", tokens, NUM_TOKENS, (3.0, 1.5)),
        ("jpeg", images, NUM_IMAGES, (1.6, 1.2)),
    ):
        work = make(folder, int(count * scale))
        order, source = np.random.default_rng(5).permutation(len(work)), mapped(work)
        for verify in ("once", "off"):
            loader = loader_of(work, verify=verify)
            also: dict[str, list[float]] = {"loader us": [], "memcpy us": []}

            def run(work: Workload = work, loader: shardload.ShardLoader = loader, also: Any = also) -> float:
                return cpu_cost(work, lambda: timed(work, loader), also["loader us"])

            def limit(work: Workload = work, order: Any = order, source: Any = source, also: Any = also) -> float:
                return cpu_cost(work, lambda: c_gather(work, order, source), also["memcpy us"])

            for _ in range(2):
                run(), limit()
            for figures in also.values():
                figures.clear()
            facts = facts_of(work, verify=verify, epoch="later")
            line = f"{name}, {'verify off' if verify == 'off' else 'later epochs'}"
            yield Line(line, {"loader": run, "C memcpy": limit}, True, limits, "s/GB", also, facts)
            loader.close()


CASES = (
    Case("P1", "tokens from memory, one core: loader / bare gather in C, time", False, 2.0, 1.3, p1),
    Case("P2", "texts of 1 KB from memory: loader / bare gather in C, time", False, 4.0, 2.5, p2),
    Case("P3", "large byte strings from memory: loader / memcpy in C, bandwidth", False, 0.7, 0.9, p3),
    Case("P5", "tokens from memory: loader / hand-written gather under a DataLoader, samples/s", False, 1.0, 2.0, p5),
    Case("P18", "tokens from memory: 4,096 shards / 16 shards, time", False, 1.3, 1.05, p18),
    Case("P19", "CPU time a GB from memory: loader / memcpy in C", False, 3.0, 1.5, p19),
)
