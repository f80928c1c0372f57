"""Cases from the disk: each sample is touched once after everything was dropped from memory, which is checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import shardload
from bench.case import NONE, Arm, Case, Line, facts_of, loader_of, timed, timed_tokens
from bench.limits import drop, gather_hinted, read_all, resident_fraction
from bench.warm import Rows, hand_written
from bench.workloads import Workload, images, tokens

HINTED_BYTES = 16 << 20
"""What the loop in C announces at a time."""
READ_BYTES = 4 << 20
"""What is read at a time from end to end."""


def cold(work: Workload, run: Callable[[], float]) -> float:
    """Returns the figure of a run after all files were dropped; it must have brought some of them to memory."""
    drop(work.files)
    found = run()
    assert resident_fraction(work.files) > 0.001
    return found


def plain_map(work: Workload) -> dict[str, Arm]:
    """Returns np.memmap under a DataLoader; so slow that it gets a part of the samples, at random over the whole file."""
    rng, part = np.random.default_rng(4), max(work.batch_size, len(work) // 20)

    def run() -> float:
        order = rng.permutation(len(work))[:part]
        return cold(work, lambda: timed_tokens(hand_written(Rows(work), work.batch_size, order), part))

    return {"map-style": run}


def raw_reads(work: Workload, also: dict[str, list[float]]) -> Arm:
    """Returns the best of three loops in C that read all samples in random order: threads of preads, and a hinted map."""
    rng, window = np.random.default_rng(7), max(16, HINTED_BYTES // int(work.lengths.mean()))
    mask = 0xFFFFFFFF if work.field == "tokens" else -1
    loops: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "16 threads us": lambda offsets, lengths: read_all(work.raw, offsets, lengths, 16),
        "64 threads us": lambda offsets, lengths: read_all(work.raw, offsets, lengths, 64),
        "hinted map us": lambda offsets, lengths: gather_hinted(work.raw, offsets, lengths, window),
    }

    def one(name: str) -> float:
        order = rng.permutation(len(work))
        offsets, lengths = work.offsets[order], work.lengths[order]
        start = time.perf_counter()
        firsts = loops[name](offsets, lengths)
        seconds = time.perf_counter() - start
        assert ((firsts & mask) == order).all()
        also.setdefault(name, []).append(seconds / len(work) * 1e6)
        return seconds / len(work)

    return lambda: min(cold(work, lambda name=name: one(name)) for name in loops)


def p6(folder: Path, scale: float) -> Iterator[Line]:
    for name, make, count in (("tokens", tokens, 100_000), ("jpeg", images, 6_000)):
        work = make(folder, int(count * scale))
        also: dict[str, list[float]] = {}
        limit = {"raw reads": raw_reads(work, also)}
        loader: Arm = lambda work=work: cold(work, lambda: timed(work, loader_of(work)))  # noqa: E731
        facts = facts_of(work, epoch="first", limit="best of pread in 16 and 64 threads and a hinted map, in C")
        yield Line(name, {"loader": loader} | limit, False, also=also, facts=facts)
        if name == "tokens":
            # What the device allows of P7: no loader can gain more over the plain way than the bare loop does.
            yield Line("tokens, raw to map-style", limit | plain_map(work), False, NONE, facts=facts)


def p7(folder: Path, scale: float) -> Iterator[Line]:
    work = tokens(folder, int(100_000 * scale))

    def path_1() -> Iterable[torch.Tensor]:
        dataset = shardload.open(work.dataset)
        sampler = shardload.ShardSampler(dataset).batch_sampler(work.batch_size, read_ahead=16)
        return (b["tokens"] for b in DataLoader(dataset, batch_sampler=sampler, collate_fn=shardload.collate))

    plain = plain_map(work)
    path_2: Arm = lambda: cold(work, lambda: timed(work, loader_of(work)))  # noqa: E731
    first: Arm = lambda: cold(work, lambda: timed_tokens(path_1(), len(work)))  # noqa: E731
    facts: dict[str, Any] = facts_of(work, epoch="first")
    yield Line("path 2", {"loader": path_2} | plain, False, facts=facts)
    yield Line("path 1", {"sampler": first} | plain, False, facts=facts | {"threads": "num_workers=0"})


def device_bytes() -> int:
    """Returns the bytes that this process has had read from devices."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["read_bytes"])


def p29(folder: Path, scale: float) -> Iterator[Line]:
    for name, make, count in (("tokens", tokens, 100_000), ("jpeg", images, 6_000)):
        work = make(folder, int(count * scale))
        files = [path for path in work.files if work.dataset in path.parents]
        # As many blocks for each window and windows for each epoch as a large dataset has, at a size that fits here.
        blocks = shardload.BlockShuffle(max(1, len(work) // 256), 32)
        seconds: dict[str, list[float]] = {"block us": [], "sequential us": []}

        def epoch(work: Workload = work, blocks: Any = blocks) -> float:
            # Bytes that a helper process reads are not counted here.
            options = {"shuffle": blocks, "tail": "short", "helper_process": False}
            return timed(work, shardload.ShardLoader(shardload.open(work.dataset), work.batch_size, **options))

        def sequential(work: Workload = work, files: Any = files) -> float:
            start = time.perf_counter()
            for path in files:
                with path.open("rb", buffering=0) as file:
                    while file.read(READ_BYTES):
                        pass
            return (time.perf_counter() - start) / len(work)

        def bytes_of(run: Callable[[], float], noted: list[float], work: Workload = work) -> Arm:
            def arm() -> float:
                before = device_bytes()
                noted.append(cold(work, run) * 1e6)
                return (device_bytes() - before) / len(work)

            return arm

        arms = {
            "block": bytes_of(epoch, seconds["block us"]),
            "sequential": bytes_of(sequential, seconds["sequential us"]),
        }
        order = f"blocks of {blocks.block_samples}, windows of {blocks.window_blocks}"
        yield Line(
            f"{name}, bytes read", arms, True, unit="B", also=seconds, facts=facts_of(work, epoch="first", order=order)
        )


CASES = (
    Case(
        "P29",
        "block shuffle from the disk, each touched once / reading the files from end to end",
        True,
        1.1,
        1.02,
        p29,
    ),
    Case("P6", "each touched once from the disk: loader / best loop of reads in C, samples/s", True, 0.6, 0.9, p6),
    Case(
        "P7",
        "tokens from the disk, each touched once: loader / np.memmap + DataLoader, samples/s",
        True,
        8.0,
        30.0,
        p7,
    ),
)
