"""The manifests at a target."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from shardload.errors import FormatError, PackError, ShardloadError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.manifest import MANIFEST_NAME, Manifest, decode_manifest
from shardload.format.table import ShardEntry, decode_table, table_bytes, table_name
from shardload.storage import Storage


@dataclass(frozen=True, slots=True)
class FoundVersions:
    """What is published at a target, and what comes next."""

    current: Manifest | None
    """What manifest.json says, or what counts where it is missing."""
    next_version: int
    next_generation: int
    unfinished: str
    """Name of a manifest that was cut off while it was made, or nothing."""
    tables: frozenset[str]
    """SHA-256 of the shard tables that published versions name."""


def own_names(storage: Storage, own: set[str], others: bool) -> set[str]:
    """Returns the names in a target's directory that are a dataset's.

    Args:
        storage: files of the target.
        own: names that a dataset may have.
        others: whether others may be there. They also may beside a dataset whose records lie in them, as far as is known.

    Raises:
        PackError: others are there, and may not.
    """
    there = set(storage.list(""))
    foreign = sorted(there - own)
    if foreign and not others and not _lies_in_others(storage):
        raise PackError(
            f"{storage.root} is not empty and holds {foreign[0]!r}, which is no part of a dataset: choose another target",
            dataset=storage.root,
        )
    return there & own


def _lies_in_others(storage: Storage) -> bool:
    """Tells whether a version is there whose records may lie in existing files."""
    for name in [MANIFEST_NAME, *(f"manifests/{name}" for name in storage.list("manifests") if name.isdecimal())]:
        with contextlib.suppress(OSError, ShardloadError):
            if read_manifest(storage, name).external:
                return True
    return False


def find_versions(storage: Storage, locked: bool) -> FoundVersions:
    """Looks at all manifests.

    Args:
        storage: files of the target.
        locked: whether this process holds its lock: only then a manifest that is being made is told from one that was
            cut off.

    Raises:
        PackError: manifest.json is not to be overwritten.
        FormatError: a committed manifest is damaged.
    """
    current = read_current(storage)
    versions = sorted(int(name) for name in storage.list("manifests") if name.isdecimal())
    # manifest.json counts too: it may be all that is left of its version.
    generations = [0] if current is None else [current.generations[-1].generation]
    taken = [0] if current is None else [current.version]
    tables = set() if current is None else {current.table}
    unfinished = ""
    for version in versions:
        name = f"manifests/{version}"
        try:
            manifest = read_manifest(storage, name)
            generations.append(manifest.generations[-1].generation)
            tables.add(manifest.table)
            taken.append(version)
        except UnsupportedVersionError:
            raise
        except FormatError:
            published = current is not None and current.version >= version
            if published or version != versions[-1] or not locked:
                raise
            # Cut off while it was made, which happens without hard links only: this was no commit yet.
            unfinished = name
    if current is None and len(taken) > 1:
        # A crash between the two steps of the first commit: the newest counts.
        current = read_manifest(storage, f"manifests/{max(taken)}")
    return FoundVersions(current, max(taken) + 1, max(generations) + 1, unfinished, frozenset(tables))


def read_current(storage: Storage) -> Manifest | None:
    """Returns what manifest.json says, or None where it is not there.

    Raises:
        PackError: it is something else, or damaged; it must not be overwritten.
    """
    if not storage.exists(MANIFEST_NAME):
        return None
    try:
        return read_manifest(storage, MANIFEST_NAME)
    except UnsupportedVersionError:
        raise
    except FormatError as error:
        raise PackError(
            f"{storage.root}: {MANIFEST_NAME} is not a manifest of shardload, or damaged, and is not overwritten: "
            "choose another target, or move the file away",
            dataset=storage.root,
            shard=MANIFEST_NAME,
        ) from error


def read_manifest(storage: Storage, name: str) -> Manifest:
    """Returns a manifest, checked."""
    return decode_manifest(storage.read_small(name, layout.MAX_MANIFEST_BYTES), f"{storage.root}/{name}")


def read_entries(storage: Storage, manifest: Manifest, generation: int | None = None) -> list[ShardEntry]:
    """Returns the shards of a published version, or of one of its generations, in their order."""
    name = table_name(manifest.table)
    data = storage.read_small(name, table_bytes(manifest))
    table = decode_table(data, manifest, f"{storage.root}/{name}")
    return [entry for entry in table if generation in (None, entry.generation)]
