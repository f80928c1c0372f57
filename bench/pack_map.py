"""Parallel efficiency of `pack` with a CPU-bound map: the same source with one worker and with two."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shardload

STEPS = 4000
"""Rounds of the map: about 0.4 ms of pure Python a sample, beside which reading and encoding take a tenth."""
NUM_SAMPLES = 32_000


def spin(sample: dict[str, Any]) -> dict[str, Any]:
    """Keeps a core busy."""
    state = sample["number"]
    for _ in range(STEPS):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
    return {**sample, "spun": state >> 1}


def measure(folder: Path, repeats: int, scale: float) -> list[dict[str, Any]]:
    """Returns one row a source: of many units, and of a single one, which cannot be cut."""
    lines = "".join(
        json.dumps({"number": number, "text": f"sample {number} " * 10}) + "\n"
        for number in range(max(64, int(NUM_SAMPLES * scale)))
    ).encode()
    (folder / "many.jsonl").write_bytes(lines)
    (folder / "one.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    return [_compare(folder, name, len(lines) // 16, repeats) for name in ("many.jsonl", "one.jsonl.gz")]


def _compare(folder: Path, name: str, unit_size: int, repeats: int) -> dict[str, Any]:
    arms = {"core": 1, "1": 1, "2": 2}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    cores: dict[str, list[float]] = {arm: [] for arm in arms}
    fingerprints = set()
    for repeat in range(repeats + 1):
        for arm, workers in arms.items():
            with _one_core() if arm == "core" else contextlib.nullcontext():
                seconds, cpu_seconds, fingerprint = _pack(folder, name, unit_size, workers)
            fingerprints.add(fingerprint)
            if repeat:
                # The first of each warms up.
                times[arm].append(seconds)
                cores[arm].append(cpu_seconds / seconds)
    assert len(fingerprints) == 1
    medians = {arm: statistics.median(found) for arm, found in times.items()}
    spread = max((max(found) - min(found)) / medians[arm] for arm, found in times.items())
    return {
        "case": "map", "source": name, "ratio": medians["1"] / medians["2"], "spread": spread,
        "best_ratio": min(times["1"]) / min(times["2"]), "core_ratio": medians["core"] / medians["2"],
        "seconds_2": medians["2"], "cores_used_1": statistics.median(cores["1"]),
        "cores_used_2": statistics.median(cores["2"]), "load": os.getloadavg()[0],
    }  # fmt: skip


def _pack(folder: Path, name: str, unit_size: int, workers: int) -> tuple[float, float, str]:
    """Packs once; returns wall-clock and CPU seconds of this process and all that it has started, and the fingerprint."""
    target = folder / "packed"
    started, before = time.perf_counter(), os.times()
    done = shardload.pack(
        folder / name, target, map="bench.pack_map:spin", workers=workers, unit_size=unit_size,
        schema={"number": "int64", "text": "str", "spun": "int64"},
    )  # fmt: skip
    seconds, after = time.perf_counter() - started, os.times()
    shutil.rmtree(target)
    # All others have ended, and are counted then.
    return seconds, sum(after[:4]) - sum(before[:4]), done.fingerprint


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps this process, and those that it starts meanwhile, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
