"""The journal of a pack: which parts are on the device, so that the rest can be packed later.

One line for each step of a unit, written by the parent only, after the worker has brought the shard to the device. What a
crash left torn or unsaid is packed again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shardload.errors import PackError, StorageError
from shardload.format.table import ShardEntry
from shardload.importers import Unit
from shardload.packing.progress import Count
from shardload.packing.unit import Step, Task
from shardload.storage import FileReader, LocalStorage
from shardload.writer.journal_lines import decode_line, encode_line, entry_facts, entry_of, lines_of
from shardload.writer.target import WORK

JOURNAL = f"{WORK}/journal"
_BEFORE = f"{WORK}/journal.old"
_REWRITTEN = f"{WORK}/journal.new"
_COUNTED = ("num_samples", "source_bytes", "stored_bytes", "num_rejects", "num_dropped", "num_split")
"""What is counted of a unit; times are not, as they are those of one call."""

Intact = Callable[[Sequence[ShardEntry]], set[str]]
"""Returns the names of those shards that are there as they were finished."""


@dataclass(slots=True)
class _Line:
    """Where a line lies in the journal."""

    start: int
    num_bytes: int


@dataclass(slots=True)
class _UnitState:
    """What the journal says of a unit."""

    steps: list[tuple[_Line, Step]] = field(default_factory=list)
    """Without the texts of their rejects, which may be many."""

    @property
    def last(self) -> Step | None:
        return self.steps[-1][1] if self.steps else None

    @property
    def entries(self) -> list[ShardEntry]:
        return [step.entry for _, step in self.steps if step.entry is not None]

    def believe(self, intact: set[str], generation: int) -> None:
        """Drops the first step whose shard is not among those that are what they were, and all after it."""
        num_kept = part = 0
        for number, (_, step) in enumerate(self.steps, 1):
            if step.entry is not None:
                if (step.entry.generation, step.entry.part) != (generation, part) or step.entry.name not in intact:
                    break
                part += 1
            if step.entry is not None or step.finished:
                num_kept = number
        # Rejects that no later part confirms are found again.
        del self.steps[num_kept:]


class Journal:
    """The journal of the pack that this process does. Used by one thread."""

    def __init__(
        self, storage: LocalStorage, generation: int, resume: bool = False, intact: Intact | None = None
    ) -> None:
        """Starts a journal.

        Args:
            storage: files of the target.
            generation: the generation that is packed.
            resume: go on with the journal that is there, without the lines that are not to be believed any more.
            intact: returns the names of those shards that are there as they were finished; needed to resume.

        Raises:
            PackError: a journal is there that is not to be gone on with.
        """
        self._storage = storage
        self._units: dict[int, _UnitState] = {}
        self._num_bytes = 0
        before = self._take_over() if resume else None
        if before is not None:
            assert intact is not None
            self._load(before, generation, intact)
        self._descriptor = storage.operations.open_new(storage.path(_REWRITTEN))
        try:
            if before is not None:
                self._copy_believed(before)
            storage.operations.fsync(self._descriptor)
            self._publish(resume)
            storage.sync_directory(WORK)
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> list[ShardEntry]:
        """The finished shards."""
        return [entry for _, state in sorted(self._units.items()) for entry in state.entries]

    @property
    def has_shards(self) -> bool:
        """Whether anything is there that going on would keep."""
        return any(state.entries for state in self._units.values())

    @property
    def counts(self) -> dict[int, Count]:
        """What is packed of each unit."""
        return {unit: state.last.count for unit, state in self._units.items() if state.last is not None}

    def tasks(self, units: Sequence[Unit]) -> list[Task]:
        """Returns what is left to do of the units."""
        tasks = []
        for unit in units:
            state = self._units.get(unit.number)
            last = state.last if state is not None else None
            if state is None or last is None:
                tasks.append(Task(unit))
            elif not last.finished:
                tasks.append(Task(unit, len(state.entries), last.num_items, last.count, last.num_outputs))
        return tasks

    def add(self, step: Step) -> None:
        """Adds a step and brings it to the device."""
        data = _encode(step)
        line = _Line(self._num_bytes, len(data))
        self._write(data)
        # Before the device is waited for: a signal meanwhile must not give up what is written.
        self._remember(line, step)
        self._storage.operations.fsync(self._descriptor)

    def rejects(self) -> Iterator[tuple[int, str, str]]:
        """Yields unit, place and reason of all rejects, in the order of the source."""
        # By a reader of its own: the descriptor is one for writing.
        journal = self._storage.open(JOURNAL)
        for unit, state in sorted(self._units.items()):
            num_rejects = 0
            for line, step in state.steps:
                if step.count.num_rejects > num_rejects:
                    num_rejects = step.count.num_rejects
                    whole = _decode(journal.read(line.start, line.start + line.num_bytes))
                    if whole is None:
                        raise PackError(f"{self._storage.root}: {JOURNAL} was damaged meanwhile: pack again")
                    yield from ((unit, place, reason) for place, reason in whole.rejects)

    def check_mine(self) -> None:
        """Refuses to go on where another process has taken the pack over, which a lock would have kept off.

        Raises:
            PackError: the journal is not the one that this process writes.
        """
        with contextlib.suppress(StorageError):
            operations = self._storage.operations
            descriptor = operations.open_read(self._storage.path(JOURNAL)) if self._storage.exists(JOURNAL) else -1
            if descriptor >= 0:
                try:
                    if os.path.samestat(operations.stat(descriptor), operations.stat(self._descriptor)):
                        return
                finally:
                    operations.close(descriptor)
        raise PackError(f"{self._storage.root}: another writer has taken over there; nothing was published by this one")

    def close(self) -> None:
        """Closes the file; what was added stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                self._storage.operations.close(descriptor)

    def _take_over(self) -> FileReader | None:
        """Returns the journal that is there, under a name where nobody adds to it any more."""
        storage = self._storage
        # First of all: from now on a process that is still at work notices before its commit that it has lost the pack.
        with contextlib.suppress(FileNotFoundError):
            storage.operations.replace(storage.path(JOURNAL), storage.path(_BEFORE))
        return storage.open(_BEFORE) if storage.exists(_BEFORE) else None

    def _publish(self, resume: bool) -> None:
        """Gives the new journal its name."""
        storage = self._storage
        if not resume and storage.exists(JOURNAL):
            # What was there before was cleared away: where nothing locks, this is that of a writer who has just begun. Its
            # shards must not be taken for those of this pack, which may have another source.
            raise PackError(f"{storage.root}: another writer is at work there", dataset=storage.root)
        storage.operations.replace(storage.path(_REWRITTEN), storage.path(JOURNAL))
        with contextlib.suppress(FileNotFoundError):
            storage.operations.unlink(storage.path(_BEFORE))

    def _load(self, journal: FileReader, generation: int, intact: Intact) -> None:
        start = 0
        for data in lines_of(journal):
            step = _decode(data)
            if step is None:
                # A crash tears the end only; whatever follows is packed again.
                break
            self._remember(_Line(start, len(data)), step)
            start += len(data)
        there = intact([entry for state in self._units.values() for entry in state.entries])
        for state in self._units.values():
            state.believe(there, generation)

    def _copy_believed(self, before: FileReader) -> None:
        lines = [line for state in self._units.values() for line, _ in state.steps]
        for line in sorted(lines, key=lambda line: line.start):
            data = before.read(line.start, line.start + line.num_bytes)
            line.start = self._num_bytes
            self._write(data)

    def _remember(self, line: _Line, step: Step) -> None:
        self._units.setdefault(step.unit, _UnitState()).steps.append((line, replace(step, rejects=())))

    def _write(self, data: bytes) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            done += self._storage.operations.write(self._descriptor, view[done:])
        self._num_bytes += len(data)


def _encode(step: Step) -> bytes:
    entry, count = step.entry, step.count
    facts = {
        "count": [getattr(count, name) for name in _COUNTED],
        "finished": step.finished,
        "items": step.num_items,
        "outputs": step.num_outputs,
        "rejects": step.rejects,
        "shard": None if entry is None else entry_facts(entry),
        "unit": step.unit,
    }
    return encode_line(facts)


def _decode(line: bytes) -> Step | None:
    """Returns the step in a line, or None if it is torn or damaged."""
    facts: dict[str, Any] | None = decode_line(line)
    if facts is None:
        return None
    shard = facts["shard"]
    return Step(
        unit=facts["unit"],
        num_items=facts["items"],
        count=Count(*facts["count"]),
        rejects=tuple((place, reason) for place, reason in facts["rejects"]),
        entry=None if shard is None else entry_of(shard),
        finished=facts["finished"],
        num_outputs=facts["outputs"],
    )
