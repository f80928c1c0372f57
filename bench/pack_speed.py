"""Packing speed against a plain sequential write and other writers; memory; dictionaries (P23, P24, P26 of the design).

Run: python -m bench.pack_speed [--cases raw,peers,memory,dictionary,map] [--peers-python PATH] [--long] [--repeats N]
     [--scale 1.0] [--directory DIR] [--json]

  raw         ShardWriter without compression / os.write of the same bytes in pieces of 1 MiB with a SHA-256, or a CRC32C,
              over all. Our files carry a SHA-256, so that one is the ceiling; the CRC32C says what another choice would give.
  peers       ShardWriter / each other writer, without compression, and on text also zstd:3 where the peer has it. Peers are
              imported by --peers-python (make an environment for bench/peers.txt); one that is missing is named, not dropped.
  memory      peak memory of packing 10^4 to 10^6 small samples, 10^7 with --long, each in a fresh process.
  dictionary  text of 1 KB, held out: zstd with a trained dictionary / without, bytes and microseconds (dictionary_speed.py).
  map         `pack` of JSON Lines with a map that keeps a core busy: the time with one worker / with two, taking turns; of a source
              of 16 units, and of one that cannot be cut (pack_map.py). One worker packs beside the process of its map, on a core
              of its own; `core_ratio` is that of one worker with all its processes on one core. Two cores that nothing else
              uses are needed.

Workloads: tokens int32[1024]; text, the sources of Python's standard library cut at line ends after 1,000 characters, four
times over; jpeg, random bytes behind a JPEG's first three, log-normal, mean 110 KB. Each arm is one process on one core, all
on the same core, with the same samples in memory beforehand; arms take turns within each repeat, after one write of each
that does not count and is read back whole: number of samples and of bytes must be right. The time includes close() and an
fsync of all files and directories left, for all arms alike; the page cache takes the writes until then. A figure is the
median over the repeats, with the spread (max - min) / median; where either arm's is above 15 % a ratio is no claim. `ratio`
is of wall-clock speeds. `cpu_ratio` is of bytes a CPU second of the arm's process with all its threads: it leaves out waits
for the device, and what other programs on the machine take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import shardload
from bench import dictionary_speed, pack_map
from bench.pack_arms import CEILINGS, PEERS, TOKENS, num_bytes
from bench.workloads import source_text

MAX_SPREAD = 0.15
OURS = "shardload"
ZSTD_LEVEL = 3
JPEG_MEAN_BYTES = 110_000
TEXT_PASSES = 4
_ARMS = Path(__file__).with_name("pack_arms.py")


def make_samples(workload: str, scale: float) -> list[Any]:
    """Returns the samples of a workload: about 256 MiB, text 125 MB, times `scale`."""
    rng = np.random.default_rng(0)
    if workload == "tokens":
        return list(rng.integers(0, 50_000, (int(65_536 * scale), TOKENS), dtype=np.int32))
    if workload == "text":
        pieces = source_text() * TEXT_PASSES
        return pieces[: max(1, int(len(pieces) * scale))]
    sigma = 0.6
    sizes = rng.lognormal(np.log(JPEG_MEAN_BYTES) - sigma**2 / 2, sigma, int(2_400 * scale)).astype(int) + 16
    return [b"\xff\xd8\xff" + rng.bytes(size - 3) for size in sizes.tolist()]


def store_samples(folder: Path, samples: list[Any]) -> tuple[int, int]:
    """Stores samples for the arms and returns their number and bytes."""
    lengths = [num_bytes(sample) for sample in samples]
    with open(folder / "samples.bin", "wb") as file:
        for sample in samples:
            file.write(sample.encode() if isinstance(sample, str) else sample)
    np.save(folder / "lengths.npy", np.array(lengths))
    return len(samples), sum(lengths)


class ArmError(Exception):
    """An arm cannot be measured; the text says why."""


class ArmProcess:
    """One arm of `pack_arms` in a process of its own."""

    def __init__(self, python: str, name: str, *arguments: str) -> None:
        # Ours must find the package this bench runs with; a peer's Python must find its own packages alone.
        paths = {"PYTHONPATH": str(Path(shardload.__file__).parents[1])} if python == sys.executable else {}
        self.name = name
        self._process = subprocess.Popen(
            [python, str(_ARMS), name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | paths,
        )

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise ArmError("its process ended without an answer")
        facts: dict[str, Any] = json.loads(line)
        if "failed" in facts:
            raise ArmError(facts["failed"])
        return facts

    def ask(self, **request: str) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def __enter__(self) -> ArmProcess:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            self._process.stdin.close()  # type: ignore[union-attr]


def summary(runs: list[float]) -> dict[str, float]:
    """Returns median and spread."""
    median = statistics.median(runs)
    return {"median": median, "spread": (max(runs) - min(runs)) / median}


def first_write(arm: ArmProcess, target: str, expected: tuple[int, int]) -> float:
    """Writes once, reads all back, and returns the stored bytes."""
    stored = arm.ask(do="write", target=target)["stored_bytes"]
    found = arm.ask(do="check", target=target)
    shutil.rmtree(target)
    if arm.name not in CEILINGS and (found["samples"], found["bytes"]) != expected:
        raise ArmError(f"{expected} samples and bytes were written, {found} came back")
    return float(stored)


def measure(
    arms: list[str], workload: str, level: int | None, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Returns by arm the figures of writing one workload, or why the arm is missing."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        expected = store_samples(folder, make_samples(workload, options.scale))
        core, target = str(max(os.sched_getaffinity(0))), str(folder / "written")
        processes, times, cpu_times = [], {}, {}
        for name in arms:
            python = options.peers_python if name in PEERS else sys.executable
            arm = stack.enter_context(ArmProcess(python, name, workload, str(folder), str(level or "none"), core))
            try:
                arm.answer()
                found[name] = {"stored_ratio": first_write(arm, target, expected) / expected[1]}
            except ArmError as error:
                if name == OURS:
                    raise
                print(f"MISSING: {name} cannot be measured: {error}", file=sys.stderr)
                shutil.rmtree(target, ignore_errors=True)
                found[name] = {"missing": str(error)}
                continue
            processes.append(arm)
            times[name], cpu_times[name] = [], []
        for _ in range(options.repeats):
            for arm in processes:
                facts = arm.ask(do="write", target=target)
                shutil.rmtree(target)
                times[arm.name].append(facts["seconds"])
                cpu_times[arm.name].append(facts["cpu_seconds"])
    for name, runs in times.items():
        wall, cpu = summary(runs), summary(cpu_times[name])
        found[name] |= {"mb_a_second": expected[1] / 1e6 / wall["median"], "spread": wall["spread"]}
        found[name] |= {"mb_a_cpu_second": expected[1] / 1e6 / cpu["median"], "cpu_spread": cpu["spread"]}
        found[name] |= {"cpu_microseconds_a_sample": cpu["median"] / expected[0] * 1e6}
    return found


def compare(
    case: str, others: tuple[str, ...], workload: str, level: int | None, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Returns one row an arm: its figures, and our speed over its."""
    found = measure([OURS, *others], workload, level, options)
    ours, rows = found[OURS], []
    compression = "none" if level is None else f"zstd:{level}"
    for name, figures in found.items():
        row = {"case": case, "workload": workload, "compression": compression, "arm": name} | figures
        if "missing" not in figures and name != OURS:
            row["ratio"] = ours["mb_a_second"] / figures["mb_a_second"]
            row["claim"] = max(ours["spread"], figures["spread"]) <= MAX_SPREAD
            row["cpu_ratio"] = ours["mb_a_cpu_second"] / figures["mb_a_cpu_second"]
            row["cpu_claim"] = max(ours["cpu_spread"], figures["cpu_spread"]) <= MAX_SPREAD
        rows.append(row)
    return rows


def raw(options: argparse.Namespace) -> list[dict[str, Any]]:
    """P23."""
    return [row for workload in options.workloads for row in compare("raw", CEILINGS, workload, None, options)]


def peers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """P24."""
    rows = [row for workload in options.workloads for row in compare("peers", PEERS, workload, None, options)]
    if "text" in options.workloads:
        with_zstd = tuple(name for name in PEERS if name != "TarWriter")
        rows += compare("peers", with_zstd, "text", ZSTD_LEVEL, options)
    return rows


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory by number of samples; one process each."""
    rows = []
    for num_samples in (10**4, 10**5, 10**6, *([10**7] if options.long else [])):
        with (
            tempfile.TemporaryDirectory(dir=options.directory) as folder,
            ArmProcess(sys.executable, "memory", str(num_samples), folder + "/written") as arm,
        ):
            rows.append({"case": "memory", "samples": num_samples} | arm.answer())
    return rows


def dictionary(options: argparse.Namespace) -> list[dict[str, Any]]:
    """P26."""
    samples = [piece.encode() for piece in source_text()]
    return [{"case": "dictionary"} | row for row in dictionary_speed.measure(samples, options.repeats, MAX_SPREAD)]


def with_map(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Parallel efficiency of a CPU-bound map."""
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        rows = pack_map.measure(Path(folder), options.repeats, options.scale)
    return [row | {"claim": row["spread"] <= MAX_SPREAD} for row in rows]


CASES = {"raw": raw, "peers": peers, "memory": memory, "dictionary": dictionary, "map": with_map}


def line(row: dict[str, Any]) -> str:
    """Returns a row as one line for people."""
    words = []
    for key, value in row.items():
        if key in ("claim", "cpu_claim"):
            words.append("" if value else "NO CLAIM (spread above 15 %)")
        elif "spread" in key:
            words.append(f"{key} {value:.0%}")
        elif isinstance(value, float):
            words.append(f"{key} {value:.3f}" if value < 10 else f"{key} {value:.1f}")
        else:
            words.append(f"{value:,} {key}" if isinstance(value, int) else str(value))
    return "  ".join(word for word in words if word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--workloads", default="tokens,text,jpeg", type=lambda text: text.split(","))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads; below 1 for a quick look")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--directory", help="where to write; the default is the system's place for temporary files")
    parser.add_argument("--long", action="store_true", help="the memory of 10^7 samples too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = ("numpy", "zstandard", "google-crc32c")
    facts = f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)
    facts += f"; one core, fsync included, {options.repeats} repeats"
    rows = []
    if not options.json:
        print(facts)
    for name in options.cases.split(","):
        for row in CASES[name](options):
            rows.append(row)
            if not options.json:
                print(line(row), flush=True)
    if options.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
