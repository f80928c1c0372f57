"""A directory of checkpoints: each appears whole or not at all, and is known to be whole before it is read.

```
directory/step-120/             published; its files and sums are in manifest.json
directory/.writing-130-ab12cd/  under way, or left by a run that was killed
directory/.removing-step-90/    on its way out
directory/aside-step-125/       of a history that a run has left by going back
```
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Sequence

import numpy as np

from shardload.checkpoint.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    CheckpointManifest,
    WrittenFile,
    decode_manifest,
    encode_manifest,
)
from shardload.checkpoint.sums import Crc32c
from shardload.errors import FormatError, StateMismatchError, StorageError
from shardload.storage import OPERATIONS, LocalStorage, Operations
from shardload.writer.lock import DirectoryLock

_log = logging.getLogger("shardload")

_PUBLISHED = re.compile(r"step-(0|[1-9][0-9]{0,17})")
_UNFINISHED = re.compile(r"\.writing-(0|[1-9][0-9]{0,17})-[0-9a-f]+")
_LEFTOVER = re.compile(r"\.(writing|removing)-.*")
_READ_BYTES = 4 << 20


class CheckpointDirectory:
    """The checkpoints below one directory that all ranks see. Only the leading rank writes names into it."""

    def __init__(self, path: str | os.PathLike[str], operations: Operations = OPERATIONS) -> None:
        self.path = os.path.abspath(path)
        self.operations = operations
        self._storage = LocalStorage(self.path, operations)
        self._lock: DirectoryLock | None = None

    def steps(self) -> list[int]:
        """Returns the steps of the published checkpoints, newest first."""
        return sorted(
            (int(match[1]) for match in map(_PUBLISHED.fullmatch, self._storage.list("")) if match), reverse=True
        )

    def unfinished(self) -> list[int]:
        """Returns the steps of the checkpoints that were begun and not published."""
        return sorted(int(match[1]) for match in map(_UNFINISHED.fullmatch, self._storage.list("")) if match)

    def listed(self) -> tuple[list[int], list[int]]:
        """Returns `steps()` and `unfinished()` of a directory that is to be restored from.

        Raises:
            StorageError: something else is at its path, or it cannot be listed.
        """
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise StorageError(f"{self.path} is not a directory", dataset=self.path)
        return self.steps(), self.unfinished()

    def path_of(self, step: int) -> str:
        """Returns where the checkpoint of a step is or would be."""
        return self._storage.path(_name(step))

    def read_manifest(self, step: int) -> CheckpointManifest:
        """Returns the manifest of a published checkpoint.

        Raises:
            FormatError: it is damaged, or of another step.
            StorageError: it cannot be read.
        """
        data = self._storage.read_small(f"{_name(step)}/{MANIFEST_NAME}", MAX_MANIFEST_BYTES)
        manifest = decode_manifest(data, self.path_of(step))
        if manifest.step != step:
            raise FormatError(f"{self.path_of(step)} holds the checkpoint of step {manifest.step}: it was renamed")
        return manifest

    def find_damage(self, step: int, files: Sequence[WrittenFile], *, sums: bool) -> str:
        """Returns what is wrong with files of a published checkpoint; empty for nothing.

        Args:
            step: whose.
            files: of its manifest.
            sums: whether to read all bytes and compare their sums, too.
        """
        for file in files:
            try:
                reader = self._storage.open(f"{_name(step)}/{file.name}", file.num_bytes)
                if not sums:
                    continue
                summed, buffer = Crc32c(), np.empty(min(_READ_BYTES, file.num_bytes), dtype=np.uint8)
                for start in range(0, file.num_bytes, _READ_BYTES):
                    part = buffer[: min(_READ_BYTES, file.num_bytes - start)]
                    reader.read_into(part.data, start)
                    summed.update(part.data)
            except (FormatError, StorageError) as error:
                return str(error)
            if summed.value != file.crc32c:
                return f"{self.path_of(step)}: {file.name} has changed since it was written"
        return ""

    def begin(self, step: int, known: int | None) -> str:
        """Makes the hidden directory that a checkpoint is written to, as the only writer, and returns its name.

        Args:
            step: the step to be saved.
            known: the step that this run has restored or saved last.

        Raises:
            StateMismatchError: there are checkpoints that this run does not go on from.
            StorageError: another process is writing here.
        """
        _make_directories(self.path, self.operations)
        if self._lock is None:
            self._lock = DirectoryLock(self.path)
            try:
                self._lock.take()
            except BlockingIOError:
                self._release()
                raise StorageError(
                    f"{self.path}: another process is writing a checkpoint here", dataset=self.path
                ) from None
        steps = self.steps()
        if known is None and steps:
            raise StateMismatchError(
                f"{self.path} has checkpoints up to step {steps[0]}, which this run does not go on from: call restore() before "
                "the first save, or save to another directory"
            )
        for name in self._storage.list(""):
            if _LEFTOVER.fullmatch(name):
                self._remove(name)
        hidden = f".writing-{step}-{secrets.token_hex(4)}"
        try:
            self._storage.make_directory(hidden)
        except OSError:
            self._remove(hidden)
            raise
        return hidden

    def publish(self, hidden: str, manifest: CheckpointManifest, known: int | None) -> None:
        """Brings a written checkpoint to the device and gives it its name.

        Checkpoints of later steps than `known` belong to a history that the run has left; they are set aside before, so that
        none of them is taken for the newest one.
        """
        self._storage.write(f"{hidden}/{MANIFEST_NAME}", encode_manifest(manifest))
        self._storage.sync_directory(hidden)
        left = [step for step in self.steps() if step > (-1 if known is None else known) or step >= manifest.step]
        for step in left:
            self._set_aside(step)
        if left:
            self._storage.sync_directory("")
        self.operations.replace(self._storage.path(hidden), self.path_of(manifest.step))
        try:
            self._storage.sync_directory("")
        except OSError:
            # Nobody is told of a checkpoint that a power loss may take away.
            self.operations.replace(self.path_of(manifest.step), self._storage.path(hidden))
            raise
        self._release()

    def abandon(self, hidden: str | None) -> None:
        """Removes what a checkpoint that failed has written, as far as that succeeds."""
        if hidden is not None:
            self._remove(hidden)
        self._release()

    def prune(self, keep: int | None) -> int:
        """Removes all but the newest checkpoints, as far as that succeeds; returns how many."""
        steps, removed = self.steps(), 0
        for step in [] if keep is None else steps[keep:]:
            hidden = f".removing-{_name(step)}"
            try:
                self.operations.replace(self.path_of(step), self._storage.path(hidden))
            except OSError as error:
                _log.warning("%s cannot be removed: %s", self.path_of(step), error.strerror or error)
                continue
            removed += self._remove(hidden)
        return removed

    def _set_aside(self, step: int) -> None:
        taken, number = set(self._storage.list("")), 1
        while (name := f"aside-{_name(step)}" + (f"-{number}" if number > 1 else "")) in taken:
            number += 1
        self.operations.replace(self.path_of(step), self._storage.path(name))
        _log.warning(
            "%s is not of the history that goes on now, and was set aside as %s; remove it if you do not need it",
            self.path_of(step),
            name,
        )

    def _remove(self, name: str) -> bool:
        """Removes a directory of files, if it is there; tells whether that succeeded, and logs why not."""
        if not self._storage.exists(name):
            return False
        try:
            for file in self._storage.list(name):
                self.operations.unlink(self._storage.path(f"{name}/{file}"))
            self.operations.rmdir(self._storage.path(name))
        except OSError as error:
            _log.warning("%s cannot be removed: %s", self._storage.path(name), error.strerror or error)
            return False
        return True

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()


def _make_directories(path: str, operations: Operations) -> None:
    """Creates a directory and those above it, each durable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(os.path.split(path))
        path = os.path.dirname(path)
    for parent, name in reversed(missing):
        LocalStorage(parent, operations).make_directory(name)


def _name(step: int) -> str:
    return f"step-{step}"
