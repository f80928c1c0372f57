"""Measures shardload against what the machine can do and what a user would write.

Run: python -m bench [--cases P1,P3] [--cache warm,cold] [--repeats N] [--scale X] [--folder DIR] [--json]
                     [--peers PYTHON]

The arms of a line run one after the other in each repeat; its ratio is the median over the repeats of the ratio of the two
arms next to each other, with the middle half beside it. Where an arm's middle half is wider than 15 % of its median, the
line is no claim. P4 compares with other loaders, each in a process of its own; those that need more than shardload does are
looked for by --peers, a Python that has what bench/peers.txt lists.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench import case_p4
from bench.cases import CASES, Arm

CLAIM_SPREAD = 0.15


def measure(arms: dict[str, Arm], less_is_better: bool, repeats: int) -> dict[str, Any]:
    """Returns the figures of one line."""
    first, last = arms
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            times[name].append(arm())
    pairs = np.array(times[first]) / np.array(times[last])
    ratios = pairs if less_is_better else 1 / pairs
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    spreads = {
        name: float(np.subtract(*np.quantile(runs, [0.75, 0.25]))) / statistics.median(runs)
        for name, runs in times.items()
    }
    return {
        "ratio": round(middle, 3),
        "middle_half": [round(low, 3), round(high, 3)],
        "microseconds": {name: round(statistics.median(runs) * 1e6, 3) for name, runs in times.items()},
        "spread": {name: round(spread, 3) for name, spread in spreads.items()},
        "claim": max(spreads.values()) <= CLAIM_SPREAD,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    known = {**{case.name: case.what for case in CASES.values()}, "P4": case_p4.WHAT}
    parser.add_argument("--cases", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--cache", default="warm,cold", help="warm, cold or both")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of samples")
    parser.add_argument(
        "--folder", type=Path, help="where datasets are made; the folder for temporary files unless given"
    )
    parser.add_argument(
        "--peers",
        action="append",
        default=[],
        metavar="PYTHON",
        help="has the peers of P4 (bench/peers.txt); may be repeated",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names, caches = options.cases.split(","), options.cache.split(",")
    if unknown := (set(names) - set(known)) | (set(caches) - {"warm", "cold"}):
        parser.error(f"there is no {', '.join(sorted(unknown))}; cases: {', '.join(known)}; caches: warm, cold")
    if options.repeats < 1 or options.scale <= 0:
        parser.error("--repeats and --scale must be above 0")
    packages = {name: version(name) for name in ("shardload", "torch", "numpy")}
    facts = {"python": platform.python_version(), **packages, "cores": os.cpu_count(), "repeats": options.repeats}
    lines = []
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name in names:
        if name == "P4":
            if "warm" in caches:
                with tempfile.TemporaryDirectory(prefix="shardload-bench-", dir=options.folder) as folder:
                    for found in case_p4.p4(Path(folder), options.scale, options.repeats, options.peers):
                        lines.append(found)
                        if not options.json:
                            print(case_p4.text(found, text), flush=True)
            continue
        case = CASES[name]
        if ("cold" if case.cold else "warm") not in caches:
            continue
        with tempfile.TemporaryDirectory(prefix="shardload-bench-", dir=options.folder) as folder:
            for line, arms, less in case.make(Path(folder), options.scale):
                found = {"case": name, "line": line, "at_least": case.at_least, "aim": case.aim}
                found |= measure(arms, less, options.repeats)
                lines.append(found)
                if not options.json:
                    print(text(found))
    if options.json:
        print(json.dumps({"facts": facts, "cases": {n: known[n] for n in names}, "lines": lines}, indent=1))


def text(line: dict[str, Any]) -> str:
    arms = ", ".join(
        f"{name} {line['microseconds'][name]:.2f} us (+-{line['spread'][name]:.0%})" for name in line["microseconds"]
    )
    low, high = line["middle_half"]
    ratio = f"{line['ratio']:.2f} ({low:.2f}-{high:.2f}; at least {line['at_least']}, aim {line['aim']})"
    return f"{line['case']:4s} {line['line']:20s} {ratio}  {arms}{'' if line['claim'] else '  no claim'}"


if __name__ == "__main__":
    main()
