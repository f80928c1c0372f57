"""What opening a dataset reads: its manifest and shard table, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from shardload.errors import FormatError, ShardloadError, StateMismatchError, StorageError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.manifest import MANIFEST_NAME, Manifest, decode_manifest
from shardload.format.table import ShardTable, decode_table, table_bytes, table_name
from shardload.reader.reread import rereads
from shardload.storage import LocalStorage, Storage, UnavailableError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a dataset."""

    manifest: Manifest
    table: ShardTable


class _Files:
    """The files that an opening reads: once more where they were damaged on their way, or as a copy."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def discard(self, error: FormatError) -> bool:
        """Drops copies of the file that an error names; returns whether another read may give other bytes."""
        if error.shard is None or isinstance(self._storage, LocalStorage):
            return False
        file = self._storage.open(error.shard)
        return file.discard(0, file.num_bytes)

    @rereads
    def snapshot(self, version: int | None, fingerprint: str | None) -> Snapshot:
        """See `read_snapshot`."""
        return _read_snapshot(self._storage, version, fingerprint)


def read_snapshot(storage: Storage, version: int | None, fingerprint: str | None) -> Snapshot:
    """Returns the current or a given version of a dataset.

    Raises:
        StorageError: there is no dataset, or not that version.
        FormatError: manifest or table are damaged or not of this format.
        StateMismatchError: the content is not the one that the fingerprint names.
    """
    return _Files(storage).snapshot(version, fingerprint)


def _read_snapshot(storage: Storage, version: int | None, fingerprint: str | None) -> Snapshot:
    manifest = read_manifest(storage, version)
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise StateMismatchError(
            f"{storage.root}: version {manifest.version} has the fingerprint {manifest.fingerprint}, but {fingerprint} was "
            "asked for: it is another dataset, or the dataset was written anew",
            dataset=storage.root,
        )
    name = table_name(manifest.table)
    data = storage.read_small(name, table_bytes(manifest))
    try:
        return Snapshot(manifest, decode_table(data, manifest, f"{storage.root}/{name}"))
    except ShardloadError as error:
        raise _placed(error, storage.root, name)  # noqa: B904 - the same error, with its place


def read_manifest(storage: Storage, version: int | None) -> Manifest:
    """Returns the manifest of a version, or the current one."""
    name = MANIFEST_NAME if version is None else f"manifests/{version}"
    try:
        data = storage.read_small(name, layout.MAX_MANIFEST_BYTES)
    except UnavailableError:
        # Another question would only take as long again.
        raise
    except StorageError:
        if version is not None or storage.exists(MANIFEST_NAME):
            raise
        # Either there is no dataset, or its writer died between the commit and the copy of the manifest.
        versions = [int(name) for name in storage.list("manifests") if name.isdecimal()]
        if not versions:
            message = f"{storage.root} is not a dataset: it has no {MANIFEST_NAME}"
            raise StorageError(message, dataset=storage.root) from None
        name = f"manifests/{max(versions)}"
        data = storage.read_small(name, layout.MAX_MANIFEST_BYTES)
    try:
        manifest = decode_manifest(data, f"{storage.root}/{name}")
        if name not in (MANIFEST_NAME, f"manifests/{manifest.version}"):
            raise FormatError(f"{storage.root}/{name}: holds version {manifest.version}, not the one it is named for")
        return manifest
    except UnsupportedVersionError as error:
        raise _placed(error, storage.root, name)  # noqa: B904 - the same error, with its place
    except ShardloadError as error:
        if name == "manifests/1" and version is None:
            # Without hard links a writer may die within its commit: then there never was a dataset.
            raise StorageError(
                f"{storage.root} is not a dataset: its only commit, {name}, is unfinished or damaged",
                dataset=storage.root,
                shard=name,
            ) from error
        raise _placed(error, storage.root, name)  # noqa: B904 - the same error, with its place


def _placed(error: ShardloadError, root: str, name: str) -> ShardloadError:
    error.dataset, error.shard = root, name
    return error
