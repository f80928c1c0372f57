"""Measures shardload against what the machine can do and what a user would write.

Run: python -m bench [--cases P1,P3] [--cache warm,cold] [--repeats N] [--scale X] [--folder DIR] [--json]
     [--peers PYTHON ...] [--read FILE.json ...] [--plot FILE.svg]

The arms of a line run one after the other in each repeat; its ratio is the median over the repeats of the ratio of the two
arms next to each other, with the middle half beside it. Where the middle half of either is wider than 15 % of its median,
or there were fewer than 5 repeats, the line is no claim. A line of one arm is a figure with a limit of its own; it is no
claim where its middle half is wider than 15 % of the figure, or of the limit where that is more. A line without a limit
is there for comparison. --plot draws the lines that have a limit, and needs the extra `bench`.

P4, P33 and P34 compare with the best of the packaged loaders that are there, each in a process of its own. They are looked
for in the Pythons that --peers names, which have what bench/peers.txt lists, then in this one; which are missing is said.

All that is made is removed at the end. P8 takes 11 GB of disk meanwhile and wants them in memory, the others up to 3 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import NONE, UNITS, ArmError, Case, Line
from bench.cases import CASES
from bench.plot import draw, load_pyplot

CLAIM_SPREAD = 0.15
LEAST_REPEATS = 5
CACHES = {
    "warm": "warm: in memory since it was written, and read before the first repeat",
    "cold": "cold: dropped before each run, at most 1 % left by mincore",
}


def run_arms(line: Line, repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Returns the figures of each arm in the line's unit, and why arms are missing."""
    runs: dict[str, list[float]] = {name: [] for name in line.arms}
    missing = dict(line.facts.get("missing", {}))
    for figures in line.also.values():
        figures.clear()
    for _ in range(repeats):
        for name in list(runs):
            try:
                runs[name].append(line.arms[name]() * UNITS[line.unit])
            except ArmError as error:
                if name == next(iter(line.arms)):
                    raise
                del runs[name]
                missing[name] = str(error)
    return runs, missing


def measure(line: Line, limits: tuple[float, float], repeats: int) -> dict[str, Any]:
    """Returns the figures of one line."""
    runs, missing = run_arms(line, repeats)
    medians = {name: statistics.median(figures) for name, figures in runs.items()}
    first, *others = runs
    facts = line.facts | ({"missing": missing} if missing else {})
    if line.best_of is not None:
        best = min((name for name in line.best_of if name in runs), key=lambda name: medians[name], default=None)
        facts |= {"best": best}
        limits = NONE if best is None else limits
        others = others if best is None else [best]
    scales, ours = dict(medians), np.array(runs[first])
    if others:
        theirs = np.array(runs[others[0]])
        found = ours / theirs if line.less_is_better else theirs / ours
    else:
        found, limits = ours, (limits[0] * UNITS[line.unit], limits[1] * UNITS[line.unit])
        # What is far below its limit need not be steady on its own scale.
        scales = {name: max(median, 0.0 if math.isnan(limits[0]) else limits[0]) for name, median in medians.items()}
    widths = {name: float(np.subtract(*np.quantile(figures, [0.75, 0.25]))) for name, figures in runs.items()}
    spreads = {name: width / scales[name] if width else 0.0 for name, width in widths.items()}
    low, middle, high = (float(q) for q in np.quantile(found, [0.25, 0.5, 0.75]))
    wanted = [None if math.isnan(limit) else limit for limit in limits]
    return {
        "figure": "ratio" if others else line.unit,
        "value": round(middle, 4),
        "middle_half": [round(low, 4), round(high, 4)],
        "limit": "at most" if line.less_is_better else "at least",
        "at_least" if not line.less_is_better else "at_most": wanted[0],
        "aim": wanted[1],
        "unit": line.unit,
        "arms": {name: round(median, 3) for name, median in medians.items()},
        "spread": {name: round(spread, 3) for name, spread in spreads.items()},
        # Of arms that are only shown the ratio does not depend.
        "claim": max(spreads[name] for name in [first, *others[:1]]) <= CLAIM_SPREAD and repeats >= LEAST_REPEATS,
        "also": {name: round(statistics.median(figures), 3) for name, figures in line.also.items() if figures},
        "facts": facts,
    }


def named(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:g}" for name, figure in figures.items())


def told(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())


def figures_of(arm: str, figures: dict[str, float]) -> dict[str, float]:
    """Returns those of `also` that are of one arm, by what they tell of it."""
    return {name[len(arm) + 2 :]: figure for name, figure in figures.items() if name.startswith(f"{arm}: ")}


def text(line: dict[str, Any]) -> str:
    """Returns a line for people."""
    unit = "" if line["figure"] == "ratio" else f" {line['figure']}"
    low, high = line["middle_half"]
    limit = line.get("at_least", line.get("at_most"))
    wanted = "" if limit is None else f"; {line['limit']} {limit:g}, aim {line['aim']:g}"
    words = [f"{line['case']:4s} {line['line']:24s} {line['value']:.2f}{unit} ({low:.2f}-{high:.2f}{wanted})"]
    arms = (f"{name} {line['arms'][name]:.2f} {line['unit']} (+-{line['spread'][name]:.0%})" for name in line["arms"])
    also = named(line["also"])
    claim = "" if line["claim"] else "no claim"
    below = [f"MISSING {name}: {why}" for name, why in line["facts"].get("missing", {}).items()]
    if "best" in line["facts"]:
        by_arm = line["facts"].get("by_arm", {})
        own = {name: figures_of(name, line["also"]) for name in line["arms"]}
        also = named({name: figure for name, figure in line["also"].items() if name.partition(": ")[0] not in own})
        parts = ([arm, named(own[name]), told(by_arm.get(name, {}))] for name, arm in zip(own, arms, strict=True))
        below = [", ".join(part for part in row if part) for row in parts] + below
        words += [f"{next(iter(line['arms']))} beside {line['facts']['best'] or 'no packaged peer'}", claim]
        below += [also]
    else:
        words += [", ".join(arms), also, claim]
    return "\n     ".join(part for part in ["  ".join(word for word in words if word), *below] if part)


def lines_of(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures a case in a folder of its own."""
    cache = "cold" if case.cold else "warm"
    with tempfile.TemporaryDirectory(prefix="shardload-bench-", dir=options.folder) as folder:
        for made in case.make(Path(folder), options.scale, *([options.peers] if case.peers else [])):
            line = Line(*made)
            found = measure(line, line.limits or (case.at_least, case.aim), options.repeats)
            yield {"case": case.name, "line": line.name} | found | {"cache": CACHES[cache]}


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
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
        help="has the other loaders of P4, P33 and P34 (bench/peers.txt); may be repeated",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--read", type=Path, nargs="+", help="show what earlier runs printed with --json; measure nothing"
    )
    parser.add_argument("--plot", type=Path, help="draw the lines that have a limit; needs shardload[bench]")
    options = parser.parse_args()
    options.cases, options.cache = options.cases.split(","), options.cache.split(",")
    if unknown := (set(options.cases) - set(CASES)) | (set(options.cache) - set(CACHES)):
        parser.error(f"there is no {', '.join(sorted(unknown))}; cases: {', '.join(CASES)}; caches: warm, cold")
    if options.repeats < 1 or options.scale <= 0:
        parser.error("--repeats and --scale must be above 0")
    return options


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the cases asked for; prints each line when it is there unless all are to be JSON."""
    packages = {name: version(name) for name in ("shardload", "torch", "numpy")}
    facts = {"python": platform.python_version(), **packages, "cores": os.cpu_count(), "repeats": options.repeats}
    lines: list[dict[str, Any]] = []
    if not options.json:
        print(told(facts))
    for name in options.cases:
        if ("cold" if CASES[name].cold else "warm") not in options.cache:
            continue
        for line in lines_of(CASES[name], options):
            lines.append(line)
            if not options.json:
                print(text(line), flush=True)
    return {"facts": facts, "cases": {name: CASES[name].what for name in options.cases}, "lines": lines}


def read(paths: list[Path], as_json: bool) -> dict[str, Any]:
    """Returns what runs have printed, as one; of their facts those of the first."""
    runs = [json.loads(path.read_text()) for path in paths]
    found = {"facts": runs[0]["facts"], "cases": {}, "lines": []}
    for run in runs:
        found["cases"] |= run["cases"]
        found["lines"] += run["lines"]
        if not as_json:
            print("\n".join([told(run["facts"]), *map(text, run["lines"])]))
    return found


def main() -> None:
    options = options_given()
    # Else a run that is ended leaves gigabytes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.plot:
        # Before hours are spent on what cannot be drawn.
        load_pyplot()
    found = read(options.read, options.json) if options.read else measured(options)
    if options.json:
        print(json.dumps(found, indent=1))
    if options.plot:
        draw(found["lines"], found["facts"], options.plot)


if __name__ == "__main__":
    main()
