"""Parallel efficiency of `pack` with a CPU-bound map: the same source with one worker and with two."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import shardload

STEPS = 4000
"""Rounds of the map: about 0.4 ms of pure Python a sample, of which reading and encoding take a fiftieth."""
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
    times: dict[int, list[float]] = {1: [], 2: []}
    use: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    fingerprints = set()
    for repeat in range(repeats + 1):
        for workers in (1, 2):
            target = folder / "packed"
            started = time.perf_counter()
            done = shardload.pack(
                folder / name, target, map="bench.pack_map:spin", workers=workers, unit_size=unit_size,
                schema={"number": "int64", "text": "str", "spun": "int64"},
            )  # fmt: skip
            seconds = time.perf_counter() - started
            fingerprints.add(done.fingerprint)
            shutil.rmtree(target)
            if repeat:
                # The first of each warms up.
                times[workers].append(seconds)
                use[workers].append(done.cores_used)
                cpu[workers].append(done.cpu_seconds)
    assert len(fingerprints) == 1
    medians = {workers: statistics.median(found) for workers, found in times.items()}
    spread = max((max(found) - min(found)) / medians[workers] for workers, found in times.items())
    return {
        "case": "map", "source": name, "ratio": medians[1] / medians[2], "spread": spread,
        "best_ratio": min(times[1]) / min(times[2]), "cores_used_1": statistics.median(use[1]),
        "cores_used_2": statistics.median(use[2]), "load": os.getloadavg()[0],
        "cpu_seconds_1": statistics.median(cpu[1]), "cpu_seconds_2": statistics.median(cpu[2]),
    }  # fmt: skip
