"""P4: shardload beside other loaders, each in a process of its own, each with 0 and with 2 workers.

In each repeat every arm reads one epoch, ours first. All data is in the page cache, which is checked. Beforehand each arm has
stored the samples in its own form and read an untimed epoch, of which every sample's bytes and number are compared with what was
stored; of a timed epoch the numbers are. The clock runs from `iter` to the last batch, and worker processes live on from epoch
to epoch. All processes keep the memory they free (glibc's thresholds), since fresh pages are dear.

The best packaged peer is the one with the least median time, whichever workers. Arms that a user writes are shown and do not
count as such. A peer that cannot be measured is named with the reason.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

import shardload
from bench.limits import resident_fraction
from bench.pack_speed import source_text
from bench.peer_form import TOKENS, Samples
from bench.peers import ARMS, numbers_digest, sample_digest

CLAIM_SPREAD, CLAIM_REPEATS = 0.15, 5
ANSWER_SECONDS = 300
ZSTD_LEVEL = 3
WHAT = "samples/s from memory: loader / best packaged peer with 0 or 2 workers"
LINES = {
    "tokens": ("tokens", None, 50_000, 5.0, 12.0),
    "raw text": ("text", None, 60_000, 3.0, 7.0),
    "zstd text": ("text", ZSTD_LEVEL, 60_000, 8.0, 20.0),
    "jpeg": ("jpeg", None, 3_000, 1.3, 2.0),
}
"""Kind, zstd level, number of samples, at least, aim."""
OURS, SECOND = "path 2", "path 1"
SECOND_AT_LEAST, SECOND_AIM = 0.5, 1.0
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


def pieces(kind: str, count: int) -> Iterator[bytes]:
    """Yields samples that carry their number."""
    rng = np.random.default_rng(0)
    texts = itertools.cycle(source_text()) if kind == "text" else itertools.repeat("")
    lengths = np.maximum(1000, rng.lognormal(np.log(110_000) - 0.125, 0.5, count)).astype(np.int64)
    for number, text, length in zip(range(count), texts, lengths.tolist(), strict=False):
        if kind == "tokens":
            row = rng.integers(0, 50_000, TOKENS, dtype=np.int32)
            row[0] = number
            yield row.tobytes()
        elif kind == "text":
            yield f"{number:08d}{text}".encode()
        else:
            yield number.to_bytes(8, "little") + rng.bytes(length - 8)


def store(samples: Samples, count: int) -> dict[str, Any]:
    """Stores samples raw and returns what a right epoch gives."""
    lengths, total = [], 0
    samples.folder.mkdir()
    with open(samples.raw, "wb") as file:
        for piece in pieces(samples.kind, count):
            file.write(piece)
            lengths.append(len(piece))
            total += sample_digest(piece)
    np.save(samples.folder / "lengths.npy", np.array(lengths))
    return {"samples": count, "bytes": total % 2**128, "numbers": numbers_digest(range(count))}


class ArmError(Exception):
    """An arm cannot be measured; the text says why."""


class Process:
    """One arm with one number of workers, in a process of its own."""

    def __init__(self, python: str, arguments: list[str], log: Path) -> None:
        here = Path(__file__).parents[1]
        # A peer's Python must find its own packages and the program alone, ours also the package this bench runs with.
        paths = [str(here), *([str(Path(shardload.__file__).parents[1])] if python == sys.executable else [])]
        environment = HEAP | {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "bench.peers", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer."""
        stdout: IO[str] = self._process.stdout  # type: ignore[assignment]
        if not select.select([stdout], [], [], ANSWER_SECONDS)[0]:
            # It must not go on beside the others.
            self.kill()
            raise ArmError(f"it gave no answer within {ANSWER_SECONDS} s")
        line = stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ArmError(f"its process ended without an answer: {' '.join(last)}")
        facts: dict[str, Any] = json.loads(line)
        if "failed" in facts:
            raise ArmError(facts["failed"])
        return facts

    def ask(self, do: str) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        try:
            print(json.dumps({"do": do}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ArmError("its process has ended") from None
        return self.answer()

    def close(self) -> None:
        """Ends the process and its workers."""
        self._process.stdin.close()  # type: ignore[union-attr]
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    def kill(self) -> None:
        """Ends at once whatever of the process and its workers is left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@dataclass
class Measured:
    """One arm with one number of workers."""

    arm: str
    workers: int
    process: Process
    version: str = ""
    stored: int = 0
    moved: float = 0.0
    microseconds: list[float] = field(default_factory=list)
    """Of each epoch, a sample."""
    start_up: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Names it in the table."""
        return self.arm if len(ARMS[self.arm].settings) == 1 else f"{self.arm}, {self.workers} workers"

    def run(self, expected: dict[str, Any]) -> None:
        """Reads and notes an epoch."""
        facts = self.process.ask("run")
        if any(facts[key] != expected[key] for key in ("samples", "numbers")):
            raise ArmError(f"of {expected['samples']} samples {facts['samples']} came, not each once")
        self.microseconds.append(facts["microseconds"])
        self.start_up.append(facts["first_seconds"])


class Bench:
    """All arms of one workload, alive together."""

    def __init__(self, folder: Path, samples: Samples, expected: dict[str, Any], pythons: list[str]) -> None:
        self._folder, self._samples, self._expected = folder, samples, expected
        self._pythons = [*pythons, sys.executable]
        self._stack = ExitStack()
        self.arms: list[Measured] = []
        self.missing: dict[str, str] = {}
        self._stored: dict[str, int] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def facts(self) -> dict[str, Any]:
        """Returns what the figures hold for."""
        sizes = {"samples": self._expected["samples"], "bytes": self._samples.raw.stat().st_size}
        checked = "each sample once in each epoch, all bytes in one before"
        return sizes | {"batch": self._samples.batch_size, "cache": "warm, residency checked", "checked": checked}

    def drop(self, arm: str, workers: int, error: ArmError) -> None:
        """Goes on without an arm, but names it; without ours there is nothing to measure."""
        if arm in (OURS, SECOND):
            raise error
        self.missing[f"{arm}, {workers} workers"] = str(error)
        self.arms = [one for one in self.arms if (one.arm, one.workers) != (arm, workers)]

    def start(self, name: str, workers: int) -> Measured:
        """Starts an arm with the first Python that has what it needs."""
        samples = self._samples
        target = self._folder / ARMS[name].form
        arguments = [name, str(workers), samples.kind, str(samples.level or "none"), str(samples.folder), str(target)]
        reasons = []
        for python in [sys.executable] if name in (OURS, SECOND) else self._pythons:
            # Seen from here without starting a process, as most peers are in --peers only.
            module = ARMS[name].module.partition(".")[0]
            if python == sys.executable and importlib.util.find_spec(module) is None:
                reasons.append(f"there is no {module} here: give --peers a Python that has bench/peers.txt")
                continue
            process = Process(python, arguments, self._folder / f"{name} {workers}.log".replace("/", " "))
            self._stack.callback(process.close)
            try:
                return Measured(name, workers, process, process.answer()["version"])
            except ArmError as error:
                reasons.append(str(error))
        raise ArmError(reasons[0])

    def prepare(self, name: str, workers: int) -> None:
        """Starts an arm, has the samples stored in its form unless they are, and checks what it reads."""
        target, expected = self._folder / ARMS[name].form, self._expected
        arm = self.start(name, workers)
        if not target.exists():
            try:
                self._stored[ARMS[name].form] = arm.process.ask("write")["stored_bytes"]
            except ArmError:
                shutil.rmtree(target, ignore_errors=True)
                raise
        found = arm.process.ask("check")
        if any(found[key] != expected[key] for key in expected):
            raise ArmError(f"what came is not what was stored: {found} instead of {expected}")
        # Each worker may end with a batch that is not full.
        if found["full_batches"] < expected["samples"] // self._samples.batch_size - 2 * max(1, workers):
            raise ArmError(f"only {found['full_batches']} batches were full")
        files = [path for path in target.rglob("*") if path.is_file() and path.stat().st_size]
        arm.stored, arm.moved = self._stored[ARMS[name].form], found["moved"]
        if (resident := resident_fraction(files)) < 0.99:
            raise ArmError(f"only {resident:.0%} of its files are in memory")
        arm.process.ask("run")
        self.arms.append(arm)

    def run(self, repeats: int) -> None:
        """Prepares all arms, and reads all in turn."""
        for name, arm in ARMS.items():
            if self._samples.level is None and arm.only_zstd:
                continue
            if self._samples.level is not None and not arm.zstd:
                self.missing[name] = "it has no zstd of its own"
                continue
            for workers in arm.settings:
                try:
                    self.prepare(name, workers)
                except ArmError as error:
                    self.drop(name, workers, error)
        for _ in range(repeats):
            for one in list(self.arms):
                try:
                    one.run(self._expected)
                except ArmError as error:
                    self.drop(one.arm, one.workers, error)


def row(one: Measured, ours: Measured, raw_bytes: int, zstd: bool) -> dict[str, Any]:
    """Returns the figures of one arm beside ours."""
    ratios = np.array(one.microseconds) / np.array(ours.microseconds)
    low, middle, high = (round(float(q), 3) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    median, arm = statistics.median(one.microseconds), ARMS[one.arm]
    facts = {"microseconds": round(median, 3), "ratio": middle, "middle_half": [low, high]}
    facts["spread"] = round(float(np.subtract(*np.quantile(one.microseconds, [0.75, 0.25]))) / median, 3)
    facts |= {"start_up_seconds": round(statistics.median(one.start_up), 4), "workers": one.workers}
    facts |= {"by_hand": arm.by_hand, "packaged": one.arm not in (OURS, SECOND) and not arm.by_hand}
    facts |= {
        "shuffles": arm.order,
        "moved": round(one.moved, 3),
        "stored": round(one.stored / raw_bytes, 3),
        "version": one.version,
    }
    facts |= {"zstd": arm.zstd} if zstd else {}
    return facts


def lines_of(name: str, bench: Bench, raw_bytes: int) -> Iterator[dict[str, Any]]:
    """Yields the line about path 2 and the best packaged peer, with all arms, and that about path 1."""
    _, level, _, at_least, aim = LINES[name]
    ours = bench.arms[0]
    rows = {one.name: row(one, ours, raw_bytes, level is not None) for one in bench.arms}
    packaged = {key: facts for key, facts in rows.items() if facts["packaged"]}
    best = min(packaged, key=lambda key: packaged[key]["microseconds"], default=None)

    def line(label: str, first: str, last: str, ratio: list[float], limits: tuple[float, float]) -> dict[str, Any]:
        spreads = [rows[key]["spread"] for key in (first, last)]
        found = {"case": "P4", "line": label, "at_least": limits[0], "aim": limits[1], "ratio": ratio[1]}
        found |= {"middle_half": [ratio[0], ratio[2]], "spread": {key: rows[key]["spread"] for key in (first, last)}}
        found |= {"microseconds": {key: rows[key]["microseconds"] for key in (first, last)}}
        return found | {"claim": max(spreads) <= CLAIM_SPREAD and len(ours.microseconds) >= CLAIM_REPEATS}

    if best is not None:
        low, high = rows[best]["middle_half"]
        found = line(name, OURS, best, [low, rows[best]["ratio"], high], (at_least, aim))
    else:
        found = {"case": "P4", "line": name, "at_least": at_least, "aim": aim, "claim": False}
    yield found | {"facts": bench.facts(), "arms": rows, "missing": bench.missing}
    (second,) = (one for one in bench.arms if one.arm == SECOND)
    speeds = np.array(ours.microseconds) / np.array(second.microseconds)
    ratio = [round(float(q), 3) for q in np.quantile(speeds, [0.25, 0.5, 0.75])]
    yield line(f"{name}, path 1 / 2", SECOND, OURS, ratio, (SECOND_AT_LEAST, SECOND_AIM))


def p4(folder: Path, scale: float, repeats: int, pythons: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of P4; `pythons` have the peers, see peers.txt."""
    for name, (kind, level, count, *_) in LINES.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            samples = Samples(Path(place, "raw"), kind, level)
            expected = store(samples, max(1000, int(count * scale)))
            with Bench(Path(place), samples, expected, pythons) as bench:
                bench.run(repeats)
                yield from lines_of(name, bench, samples.raw.stat().st_size)


def text(line: dict[str, Any], head: Callable[[dict[str, Any]], str]) -> str:
    """Returns a line for people, and its arms below it."""
    lines = [head(line) if "ratio" in line else f"P4   {line['line']:20s} no packaged peer could be measured"]
    lines += [arm_text(name, facts) for name, facts in line.get("arms", {}).items()]
    return "\n".join([*lines, *(f"       MISSING {name}: {why}" for name, why in line.get("missing", {}).items())])


def arm_text(name: str, facts: dict[str, Any]) -> str:
    """Returns the figures of one arm for people."""
    low, high = facts["middle_half"]
    words = [f"{facts['microseconds']:9.2f} us (+-{facts['spread']:.0%})"]
    words += [f"{facts['ratio']:7.2f} ({low:.2f}-{high:.2f})", f"first batch {facts['start_up_seconds'] * 1e3:.0f} ms"]
    words += [f"shuffles {facts['shuffles']}", f"stored {facts['stored']:.2f}"]
    words += [f"zstd: {facts['zstd']}"] if "zstd" in facts else []
    words += [facts["version"], *(["by hand"] if facts["by_hand"] else [])]
    return f"       {name:34s} {', '.join(words)}"
