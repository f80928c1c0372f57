"""Cost of the checksum libraries on the blocks of the format; the figures stand in shardload/format/FORMAT.md.

Run: python bench/checksum_speed.py [--json]

Every library is timed on the same bytes, all of them interleaved in each of the repeats; a figure is the median over
the repeats of the microseconds a block, with the spread (max - min) / median. "gathered" is one 1 MiB buffer of 256
rows of 4 KiB checked row by row from Python, against the single call over the whole buffer that a linear sum allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version

import crc32c
import google_crc32c
import numpy as np
import xxhash

from shardload.format import checksum

BLOCKS = {"1 KiB record": 1024, "4 KiB row": 4096, "16 KiB page": 16384, "100 KB record": 100_000}


def sums() -> dict[str, Callable[[np.ndarray], object]]:
    """Returns the candidate libraries' one-call functions by name."""
    return {
        f"crc32c {version('crc32c')}": crc32c.crc32c,
        f"google-crc32c {version('google-crc32c')}": google_crc32c.value,
        f"xxhash {version('xxhash')} xxh3_64": xxhash.xxh3_64_intdigest,
        "zlib crc32": zlib.crc32,
        "hashlib sha256": lambda block: hashlib.sha256(block).digest(),
    }


def microseconds(call: Callable[[], object], seconds: float = 0.05) -> float:
    """Returns the mean time of one call over a window of about `seconds`."""
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(16):
            call()
        calls += 16
    return elapsed / calls * 1e6


def main() -> None:
    """Times every library on every block and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    cases: dict[tuple[str, str], Callable[[], object]] = {}
    for block_name, size in BLOCKS.items():
        for name, function in sums().items():
            cases[block_name, name] = lambda f=function, block=data[:size]: f(block)
    rows = data.reshape(256, 4096)
    stored = np.array([google_crc32c.value(row) for row in rows], dtype=np.uint32)
    cases["256 gathered rows", "google-crc32c, a call a row"] = lambda: [google_crc32c.value(row) for row in rows]
    cases["256 gathered rows", "xxh3_64, a call a row"] = lambda: [xxhash.xxh3_64_intdigest(row) for row in rows]
    cases["256 gathered rows", "google-crc32c, one call (linear)"] = lambda: checksum.rows_match(rows, stored)
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(options.repeats):
        for case, call in cases.items():
            times[case].append(microseconds(call))
    table = [
        {
            "block": block,
            "sum": name,
            "microseconds": round(statistics.median(runs), 3),
            "spread": round((max(runs) - min(runs)) / statistics.median(runs), 3),
        }
        for (block, name), runs in times.items()
    ]
    if options.json:
        print(json.dumps(table, indent=1))
        return
    for row in table:
        print(f"{row['block']:20s} {row['sum']:32s} {row['microseconds']:10.2f} us  spread {row['spread']:.0%}")


if __name__ == "__main__":
    main()
