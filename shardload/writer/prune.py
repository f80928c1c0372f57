"""Old versions removed, and what nothing refers to: the only thing that deletes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from shardload.errors import PackError
from shardload.storage import OPERATIONS, LocalStorage, Operations, is_far, local_path
from shardload.writer.maintenance import locked
from shardload.writer.prune_far import prune_far
from shardload.writer.referenced import Pruned, find_manifests, unreferenced
from shardload.writer.work import WORK, remove_work_directories, work_files


def prune(
    path: str | os.PathLike[str],
    *,
    keep: int = 1,
    unfinished: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    staging: str | os.PathLike[str] | None = None,
    operations: Operations = OPERATIONS,
) -> Pruned:
    """Removes all versions of a dataset but the newest, and the shards and tables that only those had.

    Jobs that read an older version, or would resume from a state that names it, fail from then on. A prune that was cut
    off is finished by the next one: manifests go first, so that no version stays that lacks a shard.

    Args:
        path: directory of the dataset, or its s3:// URL.
        keep: how many of the newest versions stay.
        unfinished: also remove what an unfinished pack left; otherwise that is refused.
        dry_run: only tell what would go.
        storage_options: for a URL, as of `open`.
        staging: for a URL: directory on the disk that an unfinished pack was told to use.
        operations: the file operations.

    Raises:
        PackError: a writer is at work, a pack is unfinished, or the versions cannot be told.
        FormatError: a manifest is damaged, so that it is not known what belongs to it.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    if is_far(path):
        return prune_far(os.fspath(path), keep, unfinished, dry_run, storage_options, staging)
    storage = LocalStorage(local_path(path), operations)
    with locked(storage):
        manifests = find_manifests(storage)
        if storage.list(WORK) and not unfinished:
            raise PackError(
                f"{storage.root} holds an unfinished pack: finish it with the same command and --continue, or remove it with "
                "--unfinished",
                dataset=storage.root,
            )
        versions = sorted(manifests)[:-keep]
        kept = [manifest for version, manifest in manifests.items() if version not in versions]
        files = [f"manifests/{version}" for version in versions]
        files += work_files(storage)
        files += unreferenced(storage, kept)
        num_bytes = sum(os.path.getsize(storage.path(name)) for name in files)
        if not dry_run:
            _remove(storage, files)
        return Pruned(versions, files, num_bytes)


def _remove(storage: LocalStorage, files: list[str]) -> None:
    synced = False
    for name in files:
        if not name.startswith("manifests/") and not synced:
            # Before the first shard goes no power loss may bring a manifest back.
            storage.sync_directory("manifests")
            synced = True
        storage.operations.unlink(storage.path(name))
    if storage.exists(WORK):
        remove_work_directories(storage)
    for directory in ("manifests", "tables", "shards"):
        storage.sync_directory(directory)
