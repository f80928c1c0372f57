"""One unit of a source packed into its shards: what a worker does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shardload.errors import PackError
from shardload.format.record import record_layout
from shardload.format.table import ShardEntry
from shardload.importers import Reject, Sample, Unit, UnitReader
from shardload.packing.outbox import Outbox
from shardload.packing.progress import NO_COUNT, REPORT_SECONDS, Count
from shardload.packing.step import Step as Step
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


@dataclass(frozen=True, slots=True)
class Job:
    """All that is needed to pack any unit. Small and picklable."""

    reader: UnitReader
    storage: LocalStorage
    recipe: Recipe
    hint: str = ""
    """Added to the error of a sample that does not fit the schema."""
    on_error: OnError = "raise"
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
        self._writer = UnitWriter(
            *(job.storage, job.recipe, task.unit.number),
            first_part=task.first_part,
            on_part=lambda entry: self._step(entry=entry),
        )
        self._num_items = 0
        self._num_samples = task.count.num_samples
        self._source_bytes = task.count.source_bytes
        self._num_rejects = task.count.num_rejects
        self._rejects: list[tuple[str, str]] = []

    def run(self) -> None:
        """Reads all items, passes over those of earlier parts and packs the others."""
        try:
            self._take_all()
            self._writer.finish()
        except BaseException:
            self._writer.abandon()
            raise
        self._step(finished=True)

    def _take_all(self) -> None:
        due = time.monotonic() + REPORT_SECONDS
        with contextlib.closing(self._job.reader.read(self._task.unit)) as items:
            for item in items:
                if self._num_items >= self._task.num_items:
                    self._take(item)
                # Only now: a part that was finished on the way does not hold this item.
                self._num_items += 1
                if time.monotonic() >= due:
                    self._report()
                    due = time.monotonic() + REPORT_SECONDS
        if self._num_items < self._task.num_items:
            raise PackError(
                f"{self._task.unit} had at least {self._task.num_items} samples before and has {self._num_items} now: "
                "the source has changed; pack it again from the start"
            )

    def _take(self, item: Sample | Reject) -> None:
        if isinstance(item, Reject):
            self._set_aside(str(item.place), item.reason, item.message, item.num_bytes)
            return
        try:
            encoded = self._encoder.encode(item.values, item.place)
        except PackError as error:
            message = f"{error}; {self._job.hint}" if self._job.hint else str(error)
            place = str(item.place)
            self._set_aside(place, str(error).removeprefix(f"{place}: "), message, item.num_bytes)
            return
        if item.outside is not None:
            leave_outside(encoded, record_layout(self._encoder.schema), item.outside)
        try:
            self._writer.add(encoded, item.place)
        except DuplicateKeyError as error:
            self._set_aside(str(item.place), str(error).removeprefix(f"{item.place}: "), str(error), item.num_bytes)
            return
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
        self._tell(Step(self._task.unit.number, self._num_items, self._count(), rejects, entry, finished))

    def _count(self) -> Count:
        stored_bytes = self._task.count.stored_bytes + self._writer.num_bytes
        return Count(self._num_samples, self._source_bytes, stored_bytes, self._num_rejects)


def _storable(text: str) -> str:
    """Returns text that JSON can hold: names of files need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
