"""`.work`: what a writer keeps beside a dataset until it is published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from shardload.storage import LocalStorage

WORK = ".work"
JOB = f"{WORK}/job.json"
"""What an unfinished pack was asked for; while it is there the pack can be continued."""
JOURNAL_NAMES = ("journal", "journal.old")
"""Files in `.work` that tell what an unfinished pack has done."""
UNSHUFFLED = f"{WORK}/unshuffled"
"""The dataset in the order of the source, while a pack shuffles it."""


def work_files(storage: LocalStorage) -> list[str]:
    """Returns the names of all files in `.work` and below it, the job first: without it nobody goes on with the rest."""
    return sorted(_files(storage, WORK), key=lambda name: name != JOB)


def remove_work(storage: LocalStorage) -> None:
    """Removes `.work` and all that is in it."""
    for name in work_files(storage):
        storage.operations.unlink(storage.path(name))
    remove_work_directories(storage)


def remove_work_directories(storage: LocalStorage) -> None:
    """Removes the directories of a `.work` without files."""
    folders = [name for name, _, _ in os.walk(storage.path(WORK), topdown=False)] or [storage.path(WORK)]
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            storage.operations.rmdir(folder)


def _files(storage: LocalStorage, folder: str) -> Iterator[str]:
    for name in storage.list(folder):
        path = f"{folder}/{name}"
        if path.startswith(UNSHUFFLED) and os.path.isdir(storage.path(path)):
            yield from _files(storage, path)
        else:
            yield path


def missing_directories(path: str) -> list[str]:
    """Returns a directory and those of its parents that are not there."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
