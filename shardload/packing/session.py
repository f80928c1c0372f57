"""One pack at one target: begun or continued, carried out, committed, and left so that it can be continued."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from shardload.errors import PackError, ShardloadError
from shardload.format.manifest import MANIFEST_NAME, Description, Manifest
from shardload.format.table import ShardEntry
from shardload.importers import LostCopyError, SourcePlan, Unit
from shardload.packing.alone import pack_alone
from shardload.packing.events import EventLog
from shardload.packing.journal import Journal
from shardload.packing.processes import Workers
from shardload.packing.progress import Count, Tally
from shardload.packing.record import check_same, make_record
from shardload.packing.rejects import prepare_rejects
from shardload.packing.signals import signals_held
from shardload.packing.unit import Job, Step, Task
from shardload.writer.failures import named, write_error
from shardload.writer.job import JobRecord, PackedRecord, read_packed, read_record, write_record
from shardload.writer.resume import ResumableTarget
from shardload.writer.target import PACKED_NAME, REJECTS_NAME, WORK
from shardload.writer.versions import read_entries
from shardload.writer.work import JOB, UNSHUFFLED

_STAYS = "what was packed stays: go on with the same command and --continue (resume=True)"


_TOLD_LATER = ("num_dropped", "num_split", "num_duplicates")
"""Counts that a pack which is found complete tells again."""


class SetAside(NamedTuple):
    """What another pass has come to, and its rejects."""

    done: Count
    rows: Callable[[], Iterator[tuple[int, str, str]]]
    """Gives unit, place and reason of each."""


class Session:
    """A pack at a claimed target. `leave` gives the target back, whatever has happened."""

    def __init__(self, place: ResumableTarget, resume: bool) -> None:
        self.place = place
        self.journal: Journal | None = None
        self._committed: Manifest | None = None
        self.set_aside: SetAside | None = None
        """What an earlier pass rejected in the place of this one."""
        self._resume = resume
        self._continued = resume and place.has_job

    def find_complete(
        self, options: Mapping[str, Any], plan: SourcePlan
    ) -> tuple[Manifest, list[ShardEntry], Count] | None:
        """Returns manifest, shards and counts of what is there, if the same pack made it, or None."""
        packed, current = read_packed(self.place.public), self.place.current
        if self._continued or packed is None or current is None or packed.version != current.version:
            return None
        if packed.job != make_record(options, plan).digest:
            return None
        entries = read_entries(self.place.public, current, packed.generation)
        self.place.leave_finished()
        return current, entries, Count(num_rejects=packed.num_rejects, **packed.counts)

    def begin(self, options: Mapping[str, Any], plan: SourcePlan) -> Journal:
        """Begins a pack, or takes up the one that is there.

        Args:
            options: all that decides the bytes.
            plan: the source.

        Raises:
            PackError: the pack that is there was begun with something else, or the target may not be written to.
        """
        record = make_record(options, plan)
        with named(self.place.root):
            self.journal = self._take_up(record, plan.units) if self._continued else self._begin(record)
        self._digest = record.digest
        return self.journal

    def _take_up(self, record: JobRecord, units: list[Unit]) -> Journal:
        place = self.place
        before = read_record(place.storage)
        check_same(place.storage, before, record, units)
        self._committed = place.take_up(before.version, before.generation)
        journal = Journal(place.storage, place.generation, resume=True, intact=place.intact)
        if self._committed is None:
            place.keep_only(journal.entries)
        return journal

    def _begin(self, record: JobRecord) -> Journal:
        place = self.place
        if self._resume:
            place.prepare()
        record = msgspec.structs.replace(record, version=place.version, generation=place.generation)
        write_record(place.storage, record)
        return Journal(place.storage, place.generation)

    def tasks(self, units: Sequence[Unit]) -> list[Task]:
        """Returns what is left to do of the units of the pack that was begun."""
        assert self.journal is not None
        return [] if self._committed is not None else self.journal.tasks(units)

    def run(
        self,
        job: Job,
        tasks: Sequence[Task],
        workers: Workers,
        num_workers: int,
        tally: Tally,
        max_rejects: int | None,
        log: EventLog | None = None,
    ) -> None:
        """Packs units: with the workers that were started; here if none was, and with workers what that is too slow for."""
        assert self.journal is not None
        take = _Take(self.place, self.journal, tally, max_rejects, log)
        take.check(None)
        if not len(workers):
            tasks = pack_alone(job, tasks, take, num_workers)
            workers.start(min(num_workers, len(tasks)))
        if tasks:
            workers.pack(job, tasks, take, tally.tell)

    def commit(self, description: Description, source: str) -> tuple[Manifest, list[ShardEntry]]:
        """Publishes the shards; returns the manifest and what this pack has added to it.

        Raises:
            PackError: there is no sample, another writer came first, or the storage failed.
        """
        place, journal = self.place, self.journal
        assert journal is not None
        with named(place.root):
            journal.check_mine()
        entries = journal.entries
        if not entries:
            raise PackError(f"{source} holds no sample to pack{_first_reject(journal)}")
        done = sum(journal.counts.values(), Count())
        rows: Iterable[tuple[int, str, str]] = journal.rejects()
        if self.set_aside is not None:
            rows = self.set_aside.rows()
            done = replace(self.set_aside.done, num_duplicates=done.num_dropped)
        keep = place.public if place.mode == "append" else None
        counts = {name: number for name in _TOLD_LATER if (number := getattr(done, name))}
        packed = PackedRecord(place.generation, self._digest, done.num_rejects, place.version, counts)
        with named(place.root):
            rejects = prepare_rejects(place.storage, rows, place.generation, source, keep)
            place.storage.write(f"{WORK}/packed", packed.encode())
        place.beside |= {REJECTS_NAME: rejects, PACKED_NAME: f"{WORK}/packed"}
        with signals_held(), named(place.root):
            journal.check_mine()
            if self._committed is not None:
                place.finish(self._committed, entries)
                return self._committed, entries
            return place.commit(description, entries), entries

    def leave(self, error: BaseException | None) -> None:
        """Gives the target back: as it was where nothing is worth keeping, else so that the pack can be continued."""
        place, journal = self.place, self.journal
        if not place.is_released:
            kept = self._continued or (journal is not None and (journal.has_shards or self._has_unshuffled))
            if kept and place.is_mine:
                place.suspend(journal.entries if journal is not None else None)
                # An error before the journal was taken up is that of this call, and says what to do; so does a lost copy.
                says_it = journal is None or isinstance(error, LostCopyError)
                if error is not None and not says_it and place.has_job:
                    _add(error, _STAYS)
            else:
                place.abandon()
        if journal is not None:
            journal.close()

    @property
    def _has_unshuffled(self) -> bool:
        """Whether a pass before this one has come to anything."""
        storage = self.place.storage
        return any(storage.exists(f"{UNSHUFFLED}/{name}") for name in (JOB, MANIFEST_NAME))


class _Take:
    """What becomes of the news of a unit: steps go to the journal, counts to the tally."""

    def __init__(
        self, place: ResumableTarget, journal: Journal, tally: Tally, max_rejects: int | None, log: EventLog | None
    ) -> None:
        self._root = place.root
        self._journal = journal
        self._tally = tally
        self._max_rejects = max_rejects
        self._log = log

    def __call__(self, unit: int, news: Step | Count) -> None:
        if isinstance(news, Count):
            self._tally.update(unit, news)
            return
        try:
            self._journal.add(news)
        except PackError:
            raise
        except OSError as error:
            raise write_error(self._root, error) from error
        self._tally.update(unit, news.count)
        if self._log is not None:
            self._log.step(news, self._tally.stage)
        self.check(news)

    def check(self, step: Step | None) -> None:
        """Refuses to go on with too many rejects."""
        num_rejects = self._tally.done.num_rejects
        if self._max_rejects is not None and num_rejects > self._max_rejects:
            last = f"; the last one: {': '.join(step.rejects[-1])}" if step is not None and step.rejects else ""
            raise PackError(
                f"{self._root}: {num_rejects:,} rejects so far, and at most {self._max_rejects:,} may be set aside "
                f"(--max-rejects, max_rejects){last}"
            )


def _first_reject(journal: Journal) -> str:
    """Says why there is no sample, if anything was set aside."""
    num_dropped = sum(count.num_dropped for count in journal.counts.values())
    dropped = f": the steps dropped {num_dropped:,}" if num_dropped else ""
    with contextlib.closing(journal.rejects()) as rejects:  # type: ignore[type-var]
        first = next(rejects, None)
    if first is None:
        return dropped
    everything = f"{dropped} and everything else" if dropped else ": everything in it"
    return f"{everything} was rejected, at first {first[1]}: {first[2]}"


def _add(error: BaseException, text: str) -> None:
    # Of two passes both say so.
    if isinstance(error, ShardloadError):
        error.message += f"; {text}" if text not in error.message else ""
    elif text not in getattr(error, "__notes__", ()):
        error.add_note(text)
