"""Which parts of a scan's output are on the device: a journal of its own for each process, read together."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from shardload.errors import StorageError
from shardload.format.table import ShardEntry
from shardload.storage import LocalStorage
from shardload.writer.journal_lines import decode_line, encode_line, entry_facts, entry_of, is_intact, lines_of
from shardload.writer.target import WORK

_PREFIX = "journal-"
NAME = "journal"


class PartJournal:
    """The journal of one process."""

    def __init__(self, storage: LocalStorage, name: str) -> None:
        """Describes it; the file is made with the first part.

        Args:
            storage: files of the target.
            name: of the file, which nobody else has.
        """
        self.entries: list[ShardEntry] = []
        """What was added."""
        self._storage = storage
        self._name = name
        self._descriptor = -1
        self._process = os.getpid()

    def add(self, entries: Sequence[ShardEntry]) -> None:
        """Adds parts that are on the device, and brings that to the device too."""
        operations = self._storage.operations
        if self._descriptor < 0:
            self._descriptor = operations.open_new(self._storage.path(self._name))
            self._storage.sync_directory(WORK)
        view, done = memoryview(b"".join(encode_line(entry_facts(entry)) for entry in entries)), 0
        while done < len(view):
            done += operations.write(self._descriptor, view[done:])
        operations.fsync(self._descriptor)
        self.entries += entries

    def close(self) -> None:
        """Closes the file; what was added stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._storage.operations.close(descriptor)


def read_parts(storage: LocalStorage, generation: int) -> dict[int, list[ShardEntry]]:
    """Returns what the journals of all processes tell, by unit and in the order of the parts.

    A part may be there twice, as it was written before and after a crash that took it.
    """
    parts: dict[int, set[ShardEntry]] = {}
    for name in storage.list(WORK):
        if not name.startswith(_PREFIX):
            continue
        try:
            journal = storage.open(f"{WORK}/{name}")
        except StorageError:
            if storage.exists(f"{WORK}/{name}"):
                raise
            # Who has published the dataset tidies up.
            continue
        for line in lines_of(journal):
            facts = decode_line(line)
            if facts is None:
                # A crash tears the end only; whatever follows is written again.
                break
            entry = entry_of(facts)
            if entry.generation == generation:
                parts.setdefault(entry.unit, set()).add(entry)
    return {unit: sorted(entries) for unit, entries in parts.items()}


def believed(
    storage: LocalStorage, entries: Sequence[ShardEntry], known: Collection[ShardEntry] = ()
) -> list[ShardEntry]:
    """Returns the parts of a unit that are there as they were finished, from the first one on without a gap.

    Args:
        storage: files of the target.
        entries: what the journals tell of the unit.
        known: parts that need not be looked at again.
    """
    found: list[ShardEntry] = []
    for entry in entries:
        if entry.part == len(found) and (entry in known or is_intact(storage, entry)):
            found.append(entry)
    return found
