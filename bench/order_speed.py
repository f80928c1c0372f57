"""Time of the order of samples, against numpy's stored permutation.

Run: python bench/order_speed.py [--max-samples 100000000] [--repeats 5] [--json]

Up to --max-samples a whole epoch is made in both ways, one after the other in every repeat: `Generator.permutation(n)`,
which stores 8 bytes a sample, and `Permutation.sample_ids` in blocks of 65,536 positions, which stores nothing (their
arange is part of the time). At 10^9 and 10^10 only Permutation runs, on blocks spread over the epoch. The last rows are
single small requests. Figures are medians over the repeats, with the spread (max - min) / median; above 15 % they are
no claim. One process, one thread, warm; a new key in every repeat; no C of our own, so numpy's version decides.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from shardload.order import RECIPE, Permutation

BLOCK = 65_536
NUMPY, OURS = "Generator.permutation", "Permutation"


def seconds(call: Callable[[], object]) -> float:
    """Returns the wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def stored_epoch(num_samples: int, seed: int) -> float:
    """Returns the nanoseconds an id of numpy's permutation."""
    return seconds(lambda: np.random.default_rng(seed).permutation(num_samples)) / num_samples * 1e9


def computed_blocks(num_samples: int, seed: int, starts: range) -> float:
    """Returns the nanoseconds an id of Permutation for the blocks at `starts`."""

    def run() -> int:
        order, done = Permutation(num_samples, seed=seed, epoch=0), 0
        for start in starts:
            positions = np.arange(start, min(start + BLOCK, num_samples))
            done += len(order.sample_ids(positions))
        return done

    count = sum(min(BLOCK, num_samples - start) for start in starts)
    return seconds(run) / count * 1e9


def small_requests(num_samples: int, seed: int, size: int) -> float:
    """Returns the nanoseconds an id in requests of `size` ids."""
    order = Permutation(num_samples, seed=seed, epoch=0)
    positions = np.arange(size) + num_samples // 3
    return seconds(lambda: [order.sample_ids(positions) for _ in range(500)]) / 500 / size * 1e9


def cases(max_samples: int) -> dict[tuple[str, str], Callable[[int], float]]:
    """Returns what to time, by (what, arm); neighbours in the dict run one after the other."""
    found: dict[tuple[str, str], Callable[[int], float]] = {}
    for n in (10**6, 10**7, 10**8):
        if n <= max_samples:
            found[f"{n:,} whole epoch", NUMPY] = lambda seed, n=n: stored_epoch(n, seed)
            found[f"{n:,} whole epoch", OURS] = lambda seed, n=n: computed_blocks(n, seed, range(0, n, BLOCK))
    for n in (10**9, 10**10):
        starts = range(0, n - BLOCK, n // 160)
        found[f"{n:,} sampled blocks", OURS] = lambda seed, n=n, starts=starts: computed_blocks(n, seed, starts)
    for size in (256, 4096):
        found[f"{10**9:,} in requests of {size}", OURS] = lambda seed, size=size: small_requests(10**9, seed, size)
    return found


def main() -> None:
    """Times both arms, interleaved, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-samples", type=int, default=10**8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases(options.max_samples)}
    small_requests(10**9, 0, BLOCK)  # warm: the scratch exists
    for repeat in range(options.repeats):
        for case, measure in cases(options.max_samples).items():
            times[case].append(measure(repeat))
    table = []
    for (what, arm), runs in times.items():
        median = statistics.median(runs)
        row = {
            "what": what,
            "arm": arm,
            "ns_per_id": round(median, 2),
            "spread": round((max(runs) - min(runs)) / median, 3),
        }
        if (what, NUMPY) in times and arm == OURS:
            row["ratio_to_numpy"] = round(median / statistics.median(times[what, NUMPY]), 3)
        table.append(row)
    about = {"python": platform.python_version(), "numpy": np.__version__, "recipe": RECIPE, "block": BLOCK}
    about |= {"machine": platform.machine(), "repeats": options.repeats}
    if options.json:
        print(json.dumps({"about": about, "rows": table}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in table:
        ratio = f"  {row['ratio_to_numpy']:.2f}x numpy" if "ratio_to_numpy" in row else ""
        print(f"{row['what']:30s} {row['arm']:22s} {row['ns_per_id']:8.2f} ns/id  spread {row['spread']:4.0%}{ratio}")


if __name__ == "__main__":
    main()
