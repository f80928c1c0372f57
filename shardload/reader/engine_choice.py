"""Which engine reads a dataset, by where it is stored."""

from __future__ import annotations

import os
from typing import Literal, get_args

from shardload.errors import StorageError
from shardload.format.table import ShardTable
from shardload.reader.cached_engine import CachedEngine
from shardload.reader.engines import Engine, ReadEngine
from shardload.reader.files import NumberedFiles, OpenFiles
from shardload.reader.map_engine import MapEngine
from shardload.reader.range_engine import RangeEngine
from shardload.storage import CachedStorage, LocalStorage, Storage

EngineName = Literal["auto", "map", "pread", "ranges"]

# Where a page that is not in memory costs a round trip, a fault for each of them is the wrong way to ask.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "9p", "afs", "beegfs", "glusterfs", "virtiofs"}


def choose_engine(
    name: EngineName, storage: Storage, files: OpenFiles, table: ShardTable, stays: bool, spare_bytes: int = 0
) -> Engine:
    """Returns the engine of a name; for `auto` the one that fits file system, kernel and number of shards.

    Args:
        name: of the engine.
        storage: where the dataset is.
        files: its shards.
        table: what is known of them.
        stays: whether the dataset stays in memory once it was read.
        spare_bytes: addresses for files that are added later, if they are mapped.

    Raises:
        StorageError: mapping was asked for and is not to be had here.
    """
    root = storage.root
    if isinstance(storage, CachedStorage) and name not in ("map", "pread"):
        return CachedEngine(files, table, storage)
    if not isinstance(storage, LocalStorage):
        if name == "map":
            raise StorageError(f"{root}: engine='map' is for file systems; use 'ranges'", dataset=root)
        return ReadEngine(files, table) if name == "pread" else RangeEngine(files, NumberedFiles(table))
    if name == "ranges":
        return RangeEngine(files, NumberedFiles(table))
    if name == "pread" or (name == "auto" and file_system(root) in _NETWORK):
        return ReadEngine(files, table)
    try:
        return MapEngine(files, table, stays, spare_bytes)
    except OSError as error:
        if name == "map":
            message = f"{root}: engine='map' does not work here: {error.strerror or error}; use 'auto' or 'pread'"
            raise StorageError(message, dataset=root) from error
        return ReadEngine(files, table)


def check_engine(name: str) -> EngineName:
    """Returns the name; raises ValueError if there is no such engine."""
    if name not in get_args(EngineName):
        raise ValueError(f"engine must be one of {', '.join(get_args(EngineName))}, not {name!r}")
    return name  # type: ignore[return-value]


def file_system(path: str) -> str:
    """Returns the type of the file system that holds a path, as the kernel names it; nothing where it does not tell."""
    path, best, kind = os.path.realpath(path), "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                facts, _, rest = line.partition(" - ")
                place = facts.split()[4].replace("\\040", " ")
                inside = path == place or path.startswith(place.rstrip("/") + "/")
                if inside and len(place) >= len(best):
                    best, kind = place, rest.split()[0]
    except (OSError, IndexError):
        return ""
    return "nfs" if kind.startswith("fuse") else kind
