"""P4: shardload beside other loaders, each in a process of its own, each with 0 and with 2 workers.

Each run of an arm is one epoch. All data is in the page cache, which is checked. Beforehand each arm has stored the samples in
its own form and read an untimed epoch, of which every sample's bytes and number are compared with what was stored; of a timed
epoch the numbers are. The clock runs from `iter` to the last batch; loaders, the files they mapped and their worker processes
live on over all repeats. All processes keep the memory they free (glibc's thresholds), since fresh pages are dear.

The best packaged peer is the one with the least median time, whichever workers. Arms that a user writes are shown and do not
count as such. A peer that cannot be measured is named with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import signal
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
from bench.case import Arm, ArmError, Case, Line
from bench.limits import resident_fraction
from bench.peer_form import Samples
from bench.peers import ARMS, numbers_digest, sample_digest
from bench.workloads import Workload, images, text, tokens

ANSWER_SECONDS = 300
ZSTD_LEVEL = 3
WORKLOADS: dict[str, Callable[..., Workload]] = {"tokens": tokens, "text": text, "jpeg": images}
LINES = {
    "tokens": ("tokens", None, 50_000, (5.0, 12.0)),
    "raw text": ("text", None, 60_000, (3.0, 7.0)),
    "zstd text": ("text", ZSTD_LEVEL, 60_000, (8.0, 20.0)),
    "jpeg": ("jpeg", None, 3_000, (1.3, 2.0)),
}
"""Kind, zstd level, number of samples, at least and aim."""
OURS = ("path 2", "path 1")
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


def store(samples: Samples, count: int) -> dict[str, Any]:
    """Stores samples raw and returns what a right epoch gives."""
    samples.folder.mkdir()
    work = WORKLOADS[samples.kind](samples.folder, count)
    # Each arm stores them in its own way, ours as bytes like all others.
    shutil.rmtree(work.dataset)
    work.raw.rename(samples.raw)
    np.save(samples.folder / "lengths.npy", work.lengths)
    total = sum(map(sample_digest, samples.pieces()))
    return {"samples": count, "bytes": total % 2**128, "numbers": numbers_digest(range(count))}


class Process:
    """One arm with one number of workers, in a process of its own."""

    def __init__(
        self, python: str, arguments: list[str], log: Path, program: str = "bench.peers", **variables: str
    ) -> None:
        here = Path(__file__).parents[1]
        # A peer's Python must find its own packages and the program alone, ours also the package this bench runs with.
        paths = [str(here), *([str(Path(shardload.__file__).parents[1])] if python == sys.executable else [])]
        environment = HEAP | {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        self._log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer."""
        stdout: IO[str] = self._process.stdout
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


def first_with(module: str, pythons: list[str], start: Callable[[str], Process]) -> tuple[Process, str]:
    """Starts a process with the first Python that has what it needs; returns it and the version of that."""
    reasons = []
    top = module.partition(".")[0]
    for python in pythons:
        # Seen from here without starting a process, as most peers are in --peers only.
        if python == sys.executable and importlib.util.find_spec(top) is None:
            reasons.append(f"there is no {top} here: give --peers a Python that has bench/peers.txt")
            continue
        process = start(python)
        try:
            return process, process.answer()["version"]
        except ArmError as error:
            reasons.append(str(error))
    raise ArmError(reasons[0])


@dataclass
class Measured:
    """One arm with one number of workers."""

    arm: str
    workers: int
    process: Process
    expected: dict[str, Any]
    """What a right epoch gives."""
    version: str = ""
    stored: int = 0
    moved: float = 0.0
    start_up: list[float] = field(default_factory=list)
    """Milliseconds until the first batch of each epoch."""

    @property
    def name(self) -> str:
        """Names it in the table."""
        return self.arm if len(ARMS[self.arm].settings) == 1 else f"{self.arm}, {self.workers} workers"

    def run(self) -> float:
        """Reads an epoch and returns its seconds a sample."""
        facts = self.process.ask("run")
        if any(facts[key] != self.expected[key] for key in ("samples", "numbers")):
            raise ArmError(f"of {self.expected['samples']} samples {facts['samples']} came, not each once")
        self.start_up.append(facts["first_seconds"] * 1e3)
        return float(facts["seconds_a_sample"])


class Bench:
    """All arms of one workload, alive together."""

    def __init__(self, folder: Path, samples: Samples, expected: dict[str, Any], pythons: list[str]) -> None:
        self._folder, self._samples, self._expected = folder, samples, expected
        self._pythons = pythons
        self._stack = ExitStack()
        self.arms: list[Measured] = []
        self.missing: dict[str, str] = {}
        self._stored: dict[str, int] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def drop(self, arm: str, workers: int, error: ArmError) -> None:
        """Goes on without an arm, but names it; without ours there is nothing to measure."""
        if arm in OURS:
            raise error
        self.missing[f"{arm}, {workers} workers"] = str(error)

    def start(self, name: str, workers: int) -> Measured:
        """Starts an arm with the first Python that has what it needs."""
        samples = self._samples
        target = self._folder / ARMS[name].form
        arguments = [name, str(workers), samples.kind, str(samples.level or "none"), str(samples.folder), str(target)]
        log = self._folder / f"{name} {workers}.log".replace("/", " ")
        by_hand, ours = [sys.executable, *self._pythons], [sys.executable]
        pythons = ours if name in OURS else by_hand if ARMS[name].by_hand else [*self._pythons, sys.executable]

        def process_of(python: str) -> Process:
            process = Process(python, arguments, log)
            self._stack.callback(process.close)
            return process

        process, version = first_with(ARMS[name].module, pythons, process_of)
        return Measured(name, workers, process, self._expected, version)

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
        arm.run()
        self.arms.append(arm)

    def prepare_all(self) -> None:
        """Prepares all arms; those that cannot be are named."""
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


def facts_of_arm(one: Measured, raw_bytes: int, zstd: bool) -> dict[str, Any]:
    """Returns what holds for the figures of one arm."""
    arm = ARMS[one.arm]
    facts: dict[str, Any] = {
        "by": "hand" if arm.by_hand else "us" if one.arm in OURS else "a package",
        "version": one.version,
    }
    facts |= {"shuffles": arm.order, "moved": round(one.moved, 3), "stored": round(one.stored / raw_bytes, 3)}
    return facts | ({"zstd": arm.zstd} if zstd else {})


def lines_of(name: str, arms: list[Measured], missing: dict[str, str], samples: Samples) -> Iterator[Line]:
    """Yields the line about path 2 and the best packaged peer, with all arms, and that about path 1."""
    _, level, _, limits = LINES[name]
    raw_bytes = samples.raw.stat().st_size
    facts = {"order": "shuffled", "epoch": "later", "samples": arms[0].expected["samples"], "bytes": raw_bytes}
    facts |= {"batch": samples.batch_size, "threads": "the loader's choice", "verify": "auto"}
    facts |= {"checked": "each sample once in each epoch, all bytes in one before"}
    by_arm = {one.name: facts_of_arm(one, raw_bytes, level is not None) for one in arms}
    packaged = tuple(one.name for one in arms if one.arm not in OURS and not ARMS[one.arm].by_hand)
    runs: dict[str, Arm] = {one.name: one.run for one in arms}
    first = {f"{one.name}: first batch ms": one.start_up for one in arms}
    all_facts = facts | {"by_arm": by_arm} | ({"missing": missing} if missing else {})
    yield Line(name, runs, False, limits, also=first, facts=all_facts, best_of=packaged)
    second = {path: runs[path] for path in reversed(OURS)}
    yield Line(f"{name}, path 1 / 2", second, False, (0.5, 1.0), facts=facts)


def p4(folder: Path, scale: float, pythons: list[str]) -> Iterator[Line]:
    """Yields the lines of P4; `pythons` have the peers, see peers.txt."""
    for name, (kind, level, count, _) in LINES.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            samples = Samples(Path(place, "raw"), kind, level)
            expected = store(samples, max(1000, int(count * scale)))
            with Bench(Path(place), samples, expected, pythons) as bench:
                bench.prepare_all()
                yield from lines_of(name, bench.arms, bench.missing, samples)


CASES = (
    Case("P4", "from memory: loader / best packaged peer with 0 or 2 workers, samples/s", False, 5.0, 12.0, p4, True),
)
