"""One unit of a source packed into its shards: what a worker does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shardload.errors import PackError
from shardload.format.record import record_layout
from shardload.format.schema import Field
from shardload.format.table import ShardEntry
from shardload.importers import Item, Outcome, Reject, Sample, Unit, UnitReader, preparing, read_from
from shardload.packing.outbox import Outbox
from shardload.packing.progress import NO_COUNT, REPORT_SECONDS, Count
from shardload.packing.step import Step as Step
from shardload.preparation.digest import ContentDigest
from shardload.storage import LocalStorage
from shardload.writer.encode import SampleEncoder
from shardload.writer.external import leave_outside
from shardload.writer.failures import write_error
from shardload.writer.keys import DuplicateKeyError
from shardload.writer.recipe import Recipe
from shardload.writer.shard import UnitWriter

OnError = Literal["raise", "reject"]
"""What to do about what is no sample or does not fit the schema: end the pack, or set it aside and go on."""

_MAX_REASON_CHARACTERS = 1000
# Rejects are told in bundles, so that a source without a good sample neither fills the memory nor waits for the device at
# each of them.
_TOLD_REJECTS = 1000


class DigestField(NamedTuple):
    """A field that is filled with the digest of others."""

    name: str
    of: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """All that is needed to pack any unit. Small and picklable."""

    reader: UnitReader
    storage: LocalStorage
    recipe: Recipe
    hint: str = ""
    """Added to the error of a sample that does not fit the schema."""
    on_error: OnError = "raise"
    digest: DigestField | None = None
    deliver: Callable[[ShardEntry], None] | None = None
    """What is done with each finished shard before it counts."""


@dataclass(frozen=True, slots=True)
class Task:
    """A unit to be packed, or what is left of it."""

    unit: Unit
    first_part: int = 0
    num_items: int = 0
    """Items at the start of what its reader yields that are in earlier parts, or were rejected."""
    count: Count = NO_COUNT
    """What was packed of it before."""
    num_outputs: int = 0
    """Of the next item, which is an outcome of several samples then: how many at its start are in earlier parts."""


def pack_unit(job: Job, task: Task, tell: Callable[[Step | Count], None]) -> None:
    """Packs a unit, or what is left of one.

    Args:
        job: what it is a part of.
        task: the unit.
        tell: called with each step, the last of which is `finished`, and now and then with the count.

    Raises:
        PackError: the source or a sample is not as it should be, or the storage failed. Shards of this unit that were
            finished stay.
    """
    try:
        if job.deliver is None:
            _UnitPack(job, task, tell).run()
        else:
            _pack_and_deliver(job, task, tell, job.deliver)
    except PackError:
        raise
    except OSError as error:
        raise write_error(job.storage.root, error) from error
    except MemoryError:
        raise PackError(f"{task.unit}: there is not enough memory for its samples") from None


def _pack_and_deliver(
    job: Job, task: Task, tell: Callable[[Step | Count], None], deliver: Callable[[ShardEntry], None]
) -> None:
    outbox = Outbox(deliver, tell)
    try:
        try:
            _UnitPack(job, task, outbox).run()
        except Exception:
            # What was finished before stays, as on a disk. Of two failures the first shard's counts.
            outbox.finish()
            raise
        outbox.finish()
    finally:
        outbox.close()


class _UnitPack:
    """The packing of one unit."""

    def __init__(self, job: Job, task: Task, tell: Callable[[Step | Count], None]) -> None:
        self._job = job
        self._task = task
        self._tell = tell
        self._encoder = SampleEncoder(job.recipe.schema)
        self._digest = ContentDigest(job.digest.of) if job.digest is not None else None
        self._writer = UnitWriter(
            *(job.storage, job.recipe, task.unit.number),
            first_part=task.first_part,
            on_part=lambda entry: self._step(entry=entry),
        )
        self._num_items = task.num_items
        self._num_outputs = task.num_outputs
        self._num_samples = task.count.num_samples
        self._source_bytes = task.count.source_bytes
        self._num_rejects = task.count.num_rejects
        self._num_dropped = task.count.num_dropped
        self._num_split = task.count.num_split
        self._clock = _Clock(job.reader)
        self._rejects: list[tuple[str, str]] = []

    def run(self) -> None:
        """Packs all items but those of earlier parts."""
        try:
            self._take_all()
            started = time.perf_counter()
            self._writer.finish()
            self._clock.add_seconds += time.perf_counter() - started
        except BaseException:
            self._writer.abandon()
            raise
        self._step(finished=True)

    def _take_all(self) -> None:
        due = time.monotonic() + REPORT_SECONDS
        with contextlib.closing(read_from(self._job.reader, self._task.unit, self._num_items)) as items:
            while (item := self._clock.timed_next(items)) is not None:
                if isinstance(item, Outcome):
                    self._take_outcome(item)
                else:
                    self._take(item)
                # Only now: a part that was finished on the way does not hold this item.
                self._num_items += 1
                if time.monotonic() >= due:
                    self._report()
                    due = time.monotonic() + REPORT_SECONDS

    def _take_outcome(self, outcome: Outcome) -> None:
        """Takes what a sample was made to; a part may end between two of its samples."""
        if not outcome.items:
            self._num_dropped += 1
            self._source_bytes += outcome.num_bytes
        for number, item in enumerate(outcome.items):
            if number < self._num_outputs:
                continue
            self._num_outputs = number
            self._take(item)
            # After it, as the bytes are: a part that ends before it is counted without it.
            self._num_split += number == 0
        self._num_outputs = 0

    def _take(self, item: Sample | Reject) -> None:
        if isinstance(item, Reject):
            self._set_aside(str(item.place), item.reason, item.message, item.num_bytes)
            return
        started, values = time.perf_counter(), item.values
        try:
            if self._digest is not None and self._job.digest is not None:
                values = {**values, self._job.digest.name: self._digest.of(values)}
            encoded = self._encoder.encode(values, item.place)
        except PackError as error:
            message = f"{error}; {self._job.hint}" if self._job.hint else str(error)
            place = str(item.place)
            self._set_aside(place, str(error).removeprefix(f"{place}: "), message, item.num_bytes)
            return
        if item.outside is not None:
            leave_outside(encoded, record_layout(self._encoder.schema), item.outside)
        encoded_at = time.perf_counter()
        self._clock.encode_seconds += encoded_at - started
        try:
            self._writer.add(encoded, item.place)
        except DuplicateKeyError as error:
            self._set_aside(str(item.place), str(error).removeprefix(f"{item.place}: "), str(error), item.num_bytes)
            return
        self._clock.add_seconds += time.perf_counter() - encoded_at
        self._num_samples += 1
        self._source_bytes += item.num_bytes

    def _set_aside(self, place: str, reason: str, message: str, num_bytes: int) -> None:
        if self._job.on_error == "raise":
            raise PackError(message) from None
        if len(reason) > _MAX_REASON_CHARACTERS:
            reason = reason[:_MAX_REASON_CHARACTERS] + "..."
        self._rejects.append((_storable(place), _storable(reason)))
        self._num_rejects += 1
        self._source_bytes += num_bytes
        if len(self._rejects) >= _TOLD_REJECTS:
            self._step()

    def _report(self) -> None:
        if self._rejects:
            self._step()
        else:
            self._tell(self._count())

    def _step(self, entry: ShardEntry | None = None, finished: bool = False) -> None:
        rejects, self._rejects = tuple(self._rejects), []
        unit, outputs = self._task.unit.number, self._num_outputs
        self._tell(Step(unit, self._num_items, self._count(), rejects, entry, finished, outputs))

    def _count(self) -> Count:
        stored_bytes = self._task.count.stored_bytes + self._writer.num_bytes
        counts = (self._num_samples, self._source_bytes, stored_bytes, self._num_rejects)
        return Count(*counts, self._num_dropped, self._num_split) + self._clock.times(self._writer.compression_seconds)


class _Clock:
    """Where the time of a unit goes."""

    def __init__(self, reader: UnitReader) -> None:
        self._prepared = list(preparing(reader))
        self._before = self._elsewhere()
        self._cpu_before = time.process_time()
        self._next_seconds = 0.0
        self.encode_seconds = self.add_seconds = 0.0

    def timed_next(self, items: Iterator[Item]) -> Item | None:
        """Returns the next item, or None after the last."""
        started = time.perf_counter()
        item = next(items, None)
        self._next_seconds += time.perf_counter() - started
        return item

    def times(self, compression_seconds: float) -> Count:
        """Returns what took how long."""
        map_seconds, map_cpu_seconds = (now - then for now, then in zip(self._elsewhere(), self._before, strict=True))
        return Count(
            read_seconds=max(0.0, self._next_seconds - map_seconds),
            map_seconds=map_seconds,
            encode_seconds=self.encode_seconds + compression_seconds,
            write_seconds=max(0.0, self.add_seconds - compression_seconds),
            cpu_seconds=time.process_time() - self._cpu_before + map_cpu_seconds,
        )

    def _elsewhere(self) -> tuple[float, float]:
        return sum(one.map_seconds for one in self._prepared), sum(one.map_cpu_seconds for one in self._prepared)


def _storable(text: str) -> str:
    """Returns text that JSON can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
