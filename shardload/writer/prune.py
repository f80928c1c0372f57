"""Old versions removed, and what nothing refers to: the only thing that deletes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.manifest import MANIFEST_NAME, Manifest, decode_manifest
from shardload.format.table import decode_table, table_bytes, table_name
from shardload.storage import OPERATIONS, LocalStorage, Operations, local_path
from shardload.writer.maintenance import locked, shard_identity
from shardload.writer.work import WORK, remove_work_directories, work_files


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be."""

    versions: list[int]
    files: list[str]
    """Names inside the dataset, in the order in which they go."""
    num_bytes: int


def prune(
    path: str | os.PathLike[str],
    *,
    keep: int = 1,
    unfinished: bool = False,
    dry_run: bool = False,
    operations: Operations = OPERATIONS,
) -> Pruned:
    """Removes all versions of a dataset but the newest, and the shards and tables that only those had.

    Jobs that read an older version, or would resume from a state that names it, fail from then on. A prune that was cut
    off is finished by the next one: manifests go first, so that no version stays that lacks a shard.

    Args:
        path: directory of the dataset.
        keep: how many of the newest versions stay.
        unfinished: also remove what an unfinished pack left; otherwise that is refused.
        dry_run: only tell what would go.
        operations: the file operations.

    Raises:
        PackError: a writer is at work, a pack is unfinished, or the versions cannot be told.
        FormatError: a manifest is damaged, so that it is not known what belongs to it.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    storage = LocalStorage(local_path(path), operations)
    with locked(storage):
        manifests = _manifests(storage)
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
        files += _unreferenced(storage, kept)
        num_bytes = sum(os.path.getsize(storage.path(name)) for name in files)
        if not dry_run:
            _remove(storage, files)
        return Pruned(versions, files, num_bytes)


def _manifests(storage: LocalStorage) -> dict[int, Manifest]:
    names = [name for name in storage.list("manifests") if name.isdecimal()]
    manifests = {}
    for name in names:
        place = f"manifests/{name}"
        data = storage.read_small(place, layout.MAX_MANIFEST_BYTES)
        manifests[int(name)] = decode_manifest(data, f"{storage.root}/{place}")
    current = decode_manifest(
        storage.read_small(MANIFEST_NAME, layout.MAX_MANIFEST_BYTES), f"{storage.root}/{MANIFEST_NAME}"
    )
    if not manifests or current.version != max(manifests):
        raise PackError(
            f"{storage.root}: {MANIFEST_NAME} is version {current.version}, but the versions there are "
            f"{sorted(manifests)}: look with `shardload verify` first",
            dataset=storage.root,
        )
    return manifests


def _unreferenced(storage: LocalStorage, kept: list[Manifest]) -> list[str]:
    tables, shards = set(), set()
    for manifest in kept:
        name = table_name(manifest.table)
        tables.add(name)
        table = decode_table(storage.read_small(name, table_bytes(manifest)), manifest, f"{storage.root}/{name}")
        shards |= {entry.name for entry in table}
    return [*_others(storage, "tables", tables), *_others(storage, "shards", shards)]


def _others(storage: LocalStorage, directory: str, referenced: set[str]) -> Iterator[str]:
    for name in storage.list(directory):
        ours = shard_identity(name) is not None if directory == "shards" else len(name) == 2 * layout.DIGEST_BYTES
        if ours and f"{directory}/{name}" not in referenced:
            yield f"{directory}/{name}"


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
