"""Disks that a power loss may leave, rebuilt from a trace of operations.

The model, after what ALICE found file systems to do (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014)
and LevelDB's `FaultInjectionTestEnv`, which drops what was not synced and the files of a directory that was not:

- **Data.** Of a file only what it held at its last successful fsync is certain. What was written since may be lost, be
  there, be there up to any length, or read as zeros (the length reached the disk, the bytes did not), page by page.
- **Names.** Each name that is made or removed (creation, link, both sides of a rename, unlink, mkdir, rmdir) is a change
  of one directory, certain only after an fsync of that directory. Changes not yet certain may have reached the disk or
  not, each for itself and in any order; changes of one name keep theirs. So a rename over a file leaves the old or the
  new file under the name, never none, while its source may be gone or still there: weaker than POSIX asks of `rename`.
- An fsync of a file makes its data certain, not its name. Where the name of a directory is lost, so is all below it.
- After an fsync that failed nothing more of that file or directory ever becomes certain, whatever later ones say.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults import Event

Files = dict[str, bytes | None]
"""Path -> content; None for a directory."""

_PAGE_BYTES = 4096


@dataclass
class _File:
    durable: bytes = b""
    data: bytes = b""
    doubtful: bool = False
    """Whether an fsync of it failed."""


@dataclass
class _Directory:
    durable: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    changes: list[tuple[str, int | None]] = field(default_factory=list)
    """Since the last fsync: name, and the number of what bears it from then on; None where it was removed."""
    doubtful: bool = False


class Disk:
    """What a disk holds for certain and what it may hold. Nodes (files, directories) are numbered; 0 is the base."""

    def __init__(self, before: Files) -> None:
        """Starts with files that are durable."""
        self._nodes: list[_File | _Directory] = [_Directory()]
        self._created: dict[int, int] = {}
        for path in sorted(before):
            data = before[path]
            self._name(path, self._add(_Directory() if data is None else _File(data, data)))
        for directory in self._directories():
            directory.durable, directory.changes = dict(directory.names), []

    def carry_out(self, event: Event) -> None:
        """Does one operation of a trace."""
        if event.path.startswith(".."):
            return
        if event.name == "open_new":
            self._created[event.file] = self._add(_File())
            self._name(event.path, self._created[event.file])
        elif event.name == "mkdir":
            self._name(event.path, self._add(_Directory()))
        elif event.name == "write":
            self._file(event.file).data += event.data
        elif event.name == "link":
            self._name(event.target, self._at(event.path))
        elif event.name == "replace":
            self._name(event.target, self._at(event.path))
            self._name(event.path, None)
        elif event.name in ("unlink", "rmdir"):
            self._name(event.path, None)
        else:
            self._sync(event)

    @property
    def num_changes(self) -> int:
        """Changes of names that are not certain."""
        return sum(len(directory.changes) for directory in self._directories())

    @property
    def unsynced(self) -> list[int]:
        """Numbers of the files whose data is not certain."""
        return [
            number for number, node in enumerate(self._nodes) if isinstance(node, _File) and node.data != node.durable
        ]

    def files(self, changes: Iterable[int], data: dict[int, bytes]) -> Files:
        """Returns what is there if some changes of names reached the disk.

        Args:
            changes: which of the `num_changes`.
            data: content of unsynced files; those that are not in it have all of theirs.
        """
        kept = set(changes)
        names: dict[int, dict[str, int]] = {}
        place = 0
        for number, directory in enumerate(self._nodes):
            if isinstance(directory, _Directory):
                names[number] = entries = dict(directory.durable)
                for name, node in directory.changes:
                    if place in kept and node is None:
                        entries.pop(name, None)
                    elif place in kept and node is not None:
                        entries[name] = node
                    place += 1
        found: Files = {}

        def visit(number: int, path: str) -> None:
            for name, child in names[number].items():
                node, below = self._nodes[child], os.path.join(path, name)
                if isinstance(node, _Directory):
                    found[below] = None
                    visit(child, below)
                else:
                    found[below] = data.get(child, node.data)

        visit(0, "")
        return found

    def spoiled(self, number: int, rng: random.Random) -> dict[str, bytes]:
        """Returns what an unsynced file may hold other than all of its data, by kind."""
        node = self._nodes[number]
        assert isinstance(node, _File)
        durable, data = node.durable, node.data
        new = len(data) - len(durable)
        pages = bytearray(data)
        for start in range(len(durable), len(data), _PAGE_BYTES):
            if rng.random() < 0.5:
                pages[start : start + _PAGE_BYTES] = bytes(len(pages[start : start + _PAGE_BYTES]))
        return {
            "lost": durable,
            "zeros": durable + bytes(new),
            "half": data[: len(durable) + new // 2],
            "all but a byte": data[:-1],
            "cut anywhere": data[: len(durable) + rng.randrange(new)],
            "some pages zero": bytes(pages),
        }

    @staticmethod
    def write_to(base: Path, files: Files) -> None:
        """Makes a directory hold exactly these files."""
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        for path in sorted(files):
            data = files[path]
            if data is None:
                (base / path).mkdir()
            else:
                (base / path).write_bytes(data)

    def _directories(self) -> list[_Directory]:
        return [node for node in self._nodes if isinstance(node, _Directory)]

    def _add(self, node: _File | _Directory) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _file(self, created: int) -> _File:
        node = self._nodes[self._created[created]]
        assert isinstance(node, _File)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._nodes[self._at(path)]
        assert isinstance(node, _Directory)
        return node

    def _at(self, path: str) -> int:
        number = 0
        for part in path.split(os.sep) if path not in ("", ".") else []:
            node = self._nodes[number]
            assert isinstance(node, _Directory)
            number = node.names[part]
        return number

    def _name(self, path: str, number: int | None) -> None:
        directory, name = self._directory(os.path.dirname(path)), os.path.basename(path)
        directory.changes.append((name, number))
        if number is None:
            del directory.names[name]
        else:
            directory.names[name] = number

    def _sync(self, event: Event) -> None:
        assert event.name in ("fsync", "failed_fsync"), event
        node = self._nodes[self._created[event.file] if event.file >= 0 else self._at(event.path)]
        node.doubtful |= event.name == "failed_fsync"
        if node.doubtful:
            return
        if isinstance(node, _File):
            node.durable = node.data
        else:
            node.durable, node.changes = dict(node.names), []


def states(disk: Disk, seed: int, num_random: int) -> Iterator[tuple[str, Files]]:
    """Yields disks that a power loss may leave now, each with a word on what reached it.

    All and none; each change of a name alone, and all but it; every other one; with all data, and with the unsynced data
    spoiled in each way; each unsynced file spoiled alone; and random choices of it all.
    """
    rng = random.Random(seed)
    every, unsynced = range(disk.num_changes), disk.unsynced
    spoiled = {number: disk.spoiled(number, rng) for number in unsynced}
    kinds = list(next(iter(spoiled.values()))) if spoiled else []
    choices: dict[str, Iterable[int]] = {
        "all names": every,
        "no names": (),
        "even names": every[::2],
        "odd names": every[1::2],
    }
    for change in every:
        choices[f"name {change} alone"] = (change,)
        choices[f"all names but {change}"] = [other for other in every if other != change]
    for label, changes in choices.items():
        yield f"{label}, all data", disk.files(changes, {})
        for kind in kinds:
            yield f"{label}, data: {kind}", disk.files(changes, {number: spoiled[number][kind] for number in unsynced})
    for number in unsynced:
        for kind in kinds:
            yield f"all names, data of {number}: {kind}", disk.files(every, {number: spoiled[number][kind]})
    for draw in range(num_random):
        changes = [change for change in every if rng.random() < 0.5]
        data = {number: rng.choice(list(spoiled[number].values())) for number in unsynced if rng.random() < 0.7}
        yield f"draw {draw} of seed {seed}", disk.files(changes, data)
