"""The place a dataset is written to: claimed by one writer, published by one commit, left clean otherwise."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from shardload.codecs.zstd import library_version
from shardload.errors import FormatError, PackError, ShardloadError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.manifest import MANIFEST_NAME, FieldEntry, Generation, Manifest, Metadata, Writer, decode_manifest
from shardload.format.schema import Schema
from shardload.format.table import ShardEntry, make_table, table_name
from shardload.quantities import format_bytes
from shardload.storage import OPERATIONS, LocalStorage, Operations
from shardload.version import VERSION
from shardload.writer.lock import DirectoryLock

WORK = ".work"
_SHARD = re.compile(r"[0-9]{4,}-[0-9]{6,}-[0-9]{5,}\.shard")
_NOTHING = "nothing was published"
_OWN_NAMES = {MANIFEST_NAME, "manifests", "tables", "shards", WORK}


class Target:
    """A directory claimed for writing the next version of a dataset.

    The claim is a lock on the directory that goes with this object and with the process; where a file system does not
    lock, the exclusive creation of shards and of `manifests/<version>` still lets one writer win. It belongs to the
    process that made it: a forked child can only let go of its own descriptors.
    """

    def __init__(self, root: str, replace: bool, operations: Operations = OPERATIONS) -> None:
        """Claims a directory.

        Args:
            root: path; created with its parents if it is not there.
            replace: whether a dataset that is there may get a new version with other content, and what an unfinished
                pack left may be removed.
            operations: the file operations.

        Raises:
            PackError: something is there that may not be replaced, or another writer is at work.
        """
        self.root = os.path.abspath(root)
        self.storage = LocalStorage(self.root, operations)
        self.version, self.generation = 1, 1
        self._table = ""
        self._unfinished = ""
        with _named(self.root):
            if os.path.lexists(self.root) and not os.path.isdir(self.root):
                raise PackError(f"{root} exists and is not a directory", dataset=root)
            self._missing = _missing_directories(self.root)
            self._created = bool(self._missing)
            os.makedirs(self.root, exist_ok=True)
            self._lock = DirectoryLock(self.root)
        try:
            self._locked = self._take_lock()
            self._check(replace)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._prepare()
        except BaseException:
            self.abandon()
            raise

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that made the claim, not a forked child."""
        return self._lock.is_mine

    def check_process(self) -> None:
        """Refuses to go on in a forked child.

        Raises:
            PackError: another process made the claim.
        """
        if not self._lock.is_mine:
            raise PackError(
                f"{self.root}: this writer belongs to process {self._lock.process}; a process forked from it cannot write",
                dataset=self.root,
            )

    def commit(
        self, schema: Schema, entries: Sequence[ShardEntry], shard_size: int, codec: str, metadata: Metadata
    ) -> Manifest:
        """Publishes the shards as the next version and returns its manifest.

        Raises:
            PackError: another writer published this version first, or the storage failed; nothing is published then,
                unless the message says that it failed only after the commit.
            FormatError: the manifest would not be one, such as for metadata that it cannot hold.
        """
        self.check_process()
        data = make_table(entries).encode()
        manifest = _manifest(schema, entries, data, self.version, self.generation, shard_size, codec, metadata)
        encoded = manifest.encode()
        decode_manifest(encoded, f"{self.root}: the manifest to be written")
        try:
            self._write_table(table_name(manifest.table), data)
            self._commit(encoded)
        except OSError as error:
            outcome = self._outcome() if self._is_committed(encoded) else _NOTHING
            raise write_error(self.root, error, outcome) from error
        self._lock.release()
        return manifest

    def _write_table(self, name: str, data: bytes) -> None:
        storage = self.storage
        # Without locks, another writer that was refused may have tidied up .work.
        for directory in ("tables", "manifests", WORK):
            storage.make_directory(directory)
        if not storage.exists(name):
            self._table = name
        # Also if it is there: a crash may have left it without its content.
        storage.write(f"{WORK}/table", data)
        storage.operations.replace(storage.path(f"{WORK}/table"), storage.path(name))
        for directory in ("shards", "tables"):
            storage.sync_directory(directory)

    def _commit(self, encoded: bytes) -> None:
        self.storage.write(f"{WORK}/manifest", encoded)
        if not self.storage.create_exclusively(f"manifests/{self.version}", f"{WORK}/manifest"):
            raise PackError(
                f"{self.root}: another writer published version {self.version} first; its dataset stands, this one "
                "was not published",
                dataset=self.root,
            )
        self._publish(encoded)

    def _is_committed(self, encoded: bytes) -> bool:
        with contextlib.suppress(OSError, FormatError):
            return self.storage.read_small(f"manifests/{self.version}", layout.MAX_MANIFEST_BYTES) == encoded
        return False

    def _outcome(self) -> str:
        """Says what a failure after the commit has left."""
        there = f"this came after the commit: version {self.version} is there whole"
        with contextlib.suppress(OSError, ShardloadError):
            current = self._current()
            if current is not None and current.version != self.version:
                return (
                    f"{there}, but {MANIFEST_NAME} is still version {current.version}: open gives that one until "
                    f"manifests/{self.version} is copied to {MANIFEST_NAME} or the next version is written"
                )
        return f"{there}, but may not survive a power loss"

    def abandon(self) -> None:
        """Removes what was written since the claim, as far as that succeeds, and gives the directory back.

        In a forked child it only lets go of the child's descriptor.
        """
        if self._lock.released:
            return
        try:
            if self._lock.is_mine:
                self._clean_up()
        finally:
            self._lock.release()

    def _clean_up(self) -> None:
        storage = self.storage
        steps: list[Callable[[], None]] = [self._remove_work]
        with contextlib.suppress(OSError):
            # An error or a signal after the commit must not take the shards from a dataset that readers may have opened.
            # So also where it cannot be told whether there was one.
            if str(self.version) not in storage.list("manifests"):
                steps = [lambda: self._remove_uncommitted(self.generation), self._remove_table, self._remove_work]
        removed = ["tables", "manifests", "shards"] if self.version == 1 else []
        steps += [partial(storage.operations.rmdir, storage.path(name)) for name in removed]
        if self._created:
            steps.append(lambda: storage.operations.rmdir(self.root))
        for step in steps:
            # What stays is removed by the next writer; the error that led here counts, not this one.
            with contextlib.suppress(OSError):
                step()

    def _publish(self, encoded: bytes) -> None:
        """Makes the committed manifest the current one. A crash before this leaves a dataset that opens all the same."""
        storage = self.storage
        storage.write(f"{WORK}/current", encoded)
        storage.operations.replace(storage.path(f"{WORK}/current"), storage.path(MANIFEST_NAME))
        self._remove_work()
        storage.sync_directory("")

    def _take_lock(self) -> bool:
        try:
            return self._lock.take()
        except BlockingIOError:
            raise PackError(f"{self.root}: another writer is at work there", dataset=self.root) from None

    def _check(self, replace: bool) -> None:
        """Refuses a place that may not be written to, before anything there is changed."""
        storage = self.storage
        with _named(self.root):
            there = set(storage.list(""))
            if foreign := sorted(there - _OWN_NAMES):
                raise PackError(
                    f"{self.root} is not empty and holds {foreign[0]!r}, which is no part of a dataset: choose another target",
                    dataset=self.root,
                )
            if there and not replace:
                unfinished = "what an unfinished pack left" if MANIFEST_NAME not in there else "a dataset"
                raise PackError(
                    f"{self.root} exists and holds {unfinished}: choose another target, or replace it (--replace, replace=True)",
                    dataset=self.root,
                )
            self._next_version()

    def _prepare(self) -> None:
        with _named(self.root):
            if self._unfinished:
                self.storage.operations.unlink(self.storage.path(self._unfinished))
                self.storage.sync_directory("manifests")
            self._remove_uncommitted(self.generation)
            self._remove_work()
            for name in self._missing:
                self.storage.sync_directory(os.path.dirname(name))
            self.storage.make_directory("shards")
            self.storage.make_directory(WORK)

    def _next_version(self) -> None:
        current = self._current()
        versions = sorted(int(name) for name in self.storage.list("manifests") if name.isdecimal())
        # manifest.json counts too: it may be all that is left of its version.
        generations = [0] if current is None else [current.generations[-1].generation]
        taken = [0] if current is None else [current.version]
        for version in versions:
            name = f"manifests/{version}"
            try:
                generations.append(self._read(name).generations[-1].generation)
                taken.append(version)
            except UnsupportedVersionError:
                raise
            except FormatError:
                published = current is not None and current.version >= version
                if published or version != versions[-1] or not self._locked:
                    raise
                # Cut off while it was made, which happens without hard links only: this was no commit yet.
                self._unfinished = name
        self.version, self.generation = max(taken) + 1, max(generations) + 1

    def _current(self) -> Manifest | None:
        """Returns what manifest.json says, or None where it is not there."""
        if not self.storage.exists(MANIFEST_NAME):
            return None
        try:
            return self._read(MANIFEST_NAME)
        except UnsupportedVersionError:
            raise
        except FormatError as error:
            raise PackError(
                f"{self.root}: {MANIFEST_NAME} is not a manifest of shardload, or damaged, and is not overwritten: "
                "choose another target, or move the file away",
                dataset=self.root,
                shard=MANIFEST_NAME,
            ) from error

    def _read(self, name: str) -> Manifest:
        return decode_manifest(self.storage.read_small(name, layout.MAX_MANIFEST_BYTES), f"{self.root}/{name}")

    def _remove_uncommitted(self, generation: int) -> None:
        """Removes shards of a generation that no manifest names: no reader can have seen them."""
        if not self._locked:
            return
        for name in self.storage.list("shards"):
            if _SHARD.fullmatch(name) and name.partition("-")[0] == f"{generation:04d}":
                self.storage.operations.unlink(self.storage.path(f"shards/{name}"))

    def _remove_table(self) -> None:
        """Removes the shard table written for a commit that did not come about."""
        if self._table:
            with contextlib.suppress(FileNotFoundError):
                self.storage.operations.unlink(self.storage.path(self._table))

    def _remove_work(self) -> None:
        operations, work = self.storage.operations, self.storage.path(WORK)
        for name in self.storage.list(WORK):
            operations.unlink(os.path.join(work, name))
        with contextlib.suppress(FileNotFoundError):
            operations.rmdir(work)


@contextlib.contextmanager
def _named(root: str) -> Iterator[None]:
    """Turns the operating system's errors into one sentence that names the target and says what is left of it."""
    try:
        yield
    except OSError as error:
        raise write_error(root, error) from error


def _missing_directories(path: str) -> list[str]:
    """Returns the directory and those of its parents that are not there."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def write_error(root: str, error: OSError, outcome: str = _NOTHING) -> PackError:
    """Returns the error for a failed write below a target; `outcome` says what was published before it."""
    if isinstance(error, PackError):
        return error
    detail = error.strerror or str(error)
    if isinstance(error, FileExistsError):
        detail = "a file of the same name was written by another writer"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            detail += f" ({format_bytes(shutil.disk_usage(os.path.dirname(root) or '.').free)} free)"
    name = f" ({os.path.relpath(error.filename, root)})" if isinstance(error.filename, str) else ""
    return PackError(f"{root}: cannot be written{name}: {detail}; {outcome}", dataset=root)


def _manifest(
    schema: Schema,
    entries: Sequence[ShardEntry],
    table: bytes,
    version: int,
    generation: int,
    shard_size: int,
    codec: str,
    metadata: Metadata,
) -> Manifest:
    num_samples = sum(entry.num_samples for entry in entries)
    return Manifest(
        codec=codec,
        generations=[Generation(generation, len(schema), num_samples)],
        metadata=metadata,
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_samples=num_samples,
        num_shards=len(entries),
        schema=[FieldEntry(**entry) for entry in schema.canonical],
        shard_size=shard_size,
        table=hashlib.sha256(table).hexdigest(),
        version=version,
        writer=Writer(np.__version__, VERSION, library_version()),
    )
