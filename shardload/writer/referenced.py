"""What the versions of a dataset refer to, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.manifest import MANIFEST_NAME, Manifest, decode_manifest
from shardload.format.table import decode_table, table_bytes, table_name
from shardload.storage import Storage
from shardload.writer.maintenance import shard_identity


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be."""

    versions: list[int]
    files: list[str]
    """Names inside the dataset, in the order in which they go."""
    num_bytes: int


def find_manifests(storage: Storage) -> dict[int, Manifest]:
    """Returns all versions by their number.

    Raises:
        PackError: manifest.json is not the newest of them.
        FormatError: one is damaged.
        StorageError: manifest.json is not there.
    """
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


def unreferenced(storage: Storage, kept: list[Manifest]) -> list[str]:
    """Returns the tables and shards that none of some versions names."""
    tables, shards = set(), set()
    for manifest in kept:
        name = table_name(manifest.table)
        tables.add(name)
        table = decode_table(storage.read_small(name, table_bytes(manifest)), manifest, f"{storage.root}/{name}")
        shards |= {entry.name for entry in table}
    return [*_others(storage, "tables", tables), *_others(storage, "shards", shards)]


def _others(storage: Storage, directory: str, referenced: set[str]) -> Iterator[str]:
    for name in storage.list(directory):
        ours = shard_identity(name) is not None if directory == "shards" else len(name) == 2 * layout.DIGEST_BYTES
        if ours and f"{directory}/{name}" not in referenced:
            yield f"{directory}/{name}"
