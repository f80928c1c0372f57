"""How far a pack has come."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace

REPORT_SECONDS = 0.1
"""How often progress is told."""


@dataclass(frozen=True, slots=True)
class Count:
    """What has been packed of a unit, or of all."""

    num_samples: int = 0
    source_bytes: int = 0
    """Bytes of the source, as stored there."""
    stored_bytes: int = 0
    """Bytes of shards; those of wide values and rows come when their shard is finished."""
    num_rejects: int = 0
    """What was no sample or did not fit the schema, and was set aside."""
    num_dropped: int = 0
    """Samples that maps and filters left out."""
    num_split: int = 0
    """Samples of the source that a map made several of."""
    num_duplicates: int = 0
    """Samples left out since an earlier one has the same content; known when all are packed."""
    read_seconds: float = 0.0
    """Time in which all workers read the source, parsed it and made tokens of texts; of this call, like those below."""
    map_seconds: float = 0.0
    """Time for the steps: a worker waits meanwhile, even where several processes do them for it."""
    encode_seconds: float = 0.0
    """Time to encode and compress."""
    write_seconds: float = 0.0
    """Time for checksums and to write, until it was on the device."""
    cpu_seconds: float = 0.0
    """CPU time of all workers, and of processes that do steps for them."""

    def __add__(self, other: Count) -> Count:
        return Count(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Count) -> Count:
        return Count(*map(operator.sub, astuple(self), astuple(other)))


NO_COUNT = Count()
STAGES = ("read", "map", "encode", "write")
"""What a worker does with a sample, one after the other; the time of each is in a `Count`."""


def times_of(count: Count) -> Count:
    """Returns the times of a count alone."""
    times = {f"{stage}_seconds": getattr(count, f"{stage}_seconds") for stage in (*STAGES, "cpu")}
    return replace(NO_COUNT, **times)


def stage_rates(count: Count) -> dict[str, float]:
    """Returns for each stage that takes time the bytes of the source a second in one worker."""
    seconds = {stage: getattr(count, f"{stage}_seconds") for stage in STAGES}
    return {stage: count.source_bytes / took for stage, took in seconds.items() if took}


@dataclass(frozen=True, slots=True)
class Progress:
    """A pack under way. The first one comes before the first sample, when the source is known."""

    done: Count
    total_bytes: int
    """Bytes of the whole source."""
    seconds: float
    """Time since the first unit was begun."""
    types: Mapping[str, str]
    """Field name -> type of the samples."""
    num_units: int
    num_workers: int
    before: Count = NO_COUNT
    """What of it an earlier pack did that this one continues."""
    stage: str = "packing"
    """What is done: `packing` or `indexing`, or after packing `shuffling`, whose bytes are those of the first."""

    @property
    def fraction(self) -> float:
        """Part of the source that is packed."""
        return min(1.0, self.done.source_bytes / self.total_bytes) if self.total_bytes else 1.0

    @property
    def fresh(self) -> Count:
        """What this call has done."""
        return self.done - self.before

    @property
    def samples_per_second(self) -> float:
        """Samples a second since the start."""
        return self.fresh.num_samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes of the source a second since the start."""
        return self.fresh.source_bytes / self.seconds if self.seconds else 0.0

    @property
    def ratio(self) -> float:
        """Bytes of the source a byte stored."""
        return self.done.source_bytes / self.done.stored_bytes if self.done.stored_bytes else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest will take at this speed; None before anything is known."""
        speed = self.bytes_per_second
        return max(0, self.total_bytes - self.done.source_bytes) / speed if speed else None


Report = Callable[[Progress], None]


class Tally:
    """Adds up what the units tell, and reports the sum every so often. Used by one thread."""

    def __init__(self, blank: Progress, report: Report | None, counts: Mapping[int, Count] | None = None) -> None:
        """Starts the clock.

        Args:
            blank: the progress before the first sample.
            report: called with each progress, or None.
            counts: what an earlier pack did, by unit.
        """
        self._counts = dict(counts or {})
        self.done = sum(self._counts.values(), Count())
        """What has been packed so far."""
        blank = replace(blank, done=self.done, before=self.done)
        self._blank = blank
        self.stage = blank.stage
        self.before = self.done
        """What an earlier pack did."""
        self._report = report
        self._started = self._reported = time.monotonic()
        self.num_workers = blank.num_workers
        if report is not None:
            report(blank)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def update(self, unit: int, count: Count) -> None:
        """Takes what a unit has come to."""
        self.done += count - self._counts.get(unit, Count())
        self._counts[unit] = count
        self.tell()

    def tell(self, last: bool = False) -> None:
        """Reports, if it is time to or this is the last one."""
        now = time.monotonic()
        if self._report is not None and (last or now - self._reported >= REPORT_SECONDS):
            self._reported = now
            self._report(replace(self._blank, done=self.done, seconds=self.seconds))
