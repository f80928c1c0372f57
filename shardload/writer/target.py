"""The place a dataset is written to: claimed by one writer, published by one commit, left clean otherwise."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from shardload.errors import FormatError, PackError, ShardloadError
from shardload.format.manifest import MANIFEST_NAME, Description, Manifest, complete, decode_manifest
from shardload.format.table import ShardEntry, make_table, table_name
from shardload.storage import OPERATIONS, LocalStorage, Operations, Storage, local_path
from shardload.writer.failures import NOTHING, named
from shardload.writer.failures import write_error as write_error
from shardload.writer.journal_lines import is_intact
from shardload.writer.keys import check_keys
from shardload.writer.lock import DirectoryLock
from shardload.writer.versions import find_versions, own_names, read_current, read_entries
from shardload.writer.work import JOB as JOB
from shardload.writer.work import JOURNAL_NAMES as JOURNAL_NAMES
from shardload.writer.work import WORK as WORK
from shardload.writer.work import missing_directories, remove_work

REJECTS_NAME = "rejects.jsonl"
PACKED_NAME = "packed.json"

Mode = Literal["create", "replace", "append"]
"""What may be at the target: nothing, anything that is replaced, or a dataset that is added to."""

_SHARD = re.compile(r"[0-9]{4,}-[0-9]{6,}-[0-9]{5,}\.shard")
_TABLE = re.compile(r"[0-9a-f]{64}")
_UNKNOWN = "it cannot be told whether it was published: open tells once the storage can be read"
OWN_NAMES = {MANIFEST_NAME, "manifests", "tables", "shards", WORK, REJECTS_NAME, PACKED_NAME}
"""What a dataset may consist of, by its name in the directory."""


class Target:
    """A directory claimed for writing the next version of a dataset.

    The claim is a lock on the directory that goes with this object and with the process; where a file system does not
    lock, the exclusive creation of shards and of `manifests/<version>` still lets one writer win. It belongs to the
    process that made it: a forked child can only let go of its own descriptors.
    """

    def __init__(
        self,
        root: str,
        mode: Mode = "create",
        operations: Operations = OPERATIONS,
        resume: bool = False,
        others: bool = False,
    ) -> None:
        """Claims a directory.

        Args:
            root: path; created with its parents if it is not there.
            mode: whether what is there may be replaced by a new version or added to.
            operations: the file operations.
            resume: leave all as it is for now: the caller looks at what is there and calls `take_up` or `prepare`.
            others: whether other files may be there, which stay as they are.

        Raises:
            PackError: something is there that the mode does not allow, or another writer is at work.
        """
        self.storage = LocalStorage(local_path(root), operations)
        self.root, self.public = self._publishes_at()
        self.mode = mode
        self.version, self.generation = 1, 1
        self.current: Manifest | None = None
        """What is there when it is claimed."""
        self.beside = {REJECTS_NAME: "", PACKED_NAME: ""}
        """Files that a commit puts beside the manifest: name -> prepared file; an empty one means there is none."""
        self._locked, self._others = False, others
        self._table = self._unfinished = ""
        directory = self.storage.root
        with named(self.root):
            if os.path.lexists(directory) and not os.path.isdir(directory):
                raise PackError(f"{root} exists and is not a directory", dataset=root)
            self._missing = missing_directories(directory)
            self._created = bool(self._missing)
            for name in reversed(self._missing):
                with contextlib.suppress(FileExistsError):
                    operations.mkdir(name)
            self._lock = DirectoryLock(directory)
        try:
            self._locked = self._take_lock()
            self._check(resume)
        except BaseException:
            # Without the lock the empty directory may be that of another writer who has just begun.
            if self._created and self._locked:
                with contextlib.suppress(OSError):
                    operations.rmdir(directory)
            self._lock.release()
            raise
        if not resume:
            self.prepare()

    def _publishes_at(self) -> tuple[str, Storage]:
        """Returns the place as messages name it, and what its versions are read through."""
        return self.storage.root, self.storage

    @property
    def deliver(self) -> Callable[[ShardEntry], None] | None:
        """What is to be done with each shard that is finished before it counts, if anything; picklable."""
        return None

    def intact(self, entries: Sequence[ShardEntry]) -> set[str]:
        """Returns the names of those shards that are there as they were finished."""
        return {entry.name for entry in entries if is_intact(self.storage, entry)}

    @property
    def base(self) -> Manifest | None:
        """The dataset that is added to, or None."""
        return self.current if self.mode == "append" else None

    @property
    def has_job(self) -> bool:
        """Whether an unfinished pack is there that can be continued."""
        return self.storage.exists(JOB)

    @property
    def is_released(self) -> bool:
        """Whether the claim was given back."""
        return self._lock.released

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

    def commit(self, description: Description, entries: Sequence[ShardEntry]) -> Manifest:
        """Publishes shards as the next version and returns its manifest.

        Args:
            description: what the shards carry.
            entries: all shards of the new generation.

        Raises:
            PackError: another writer published this version first, a key stands in two shards, or the storage failed;
                nothing is published then, unless the message says that it failed only after the commit.
            FormatError: the manifest would not be one, such as for metadata that it cannot hold.
        """
        self.check_process()
        with named(self.root):
            everything = [*(read_entries(self.public, self.base) if self.base is not None else []), *entries]
            if description.key:
                check_keys(self.public, everything, description.parsed_schema)
        data = make_table(everything, len(description.parsed_schema.stream_fields)).encode()
        manifest = complete(
            description,
            num_bytes=sum(entry.num_bytes for entry in everything),
            num_shards=len(everything),
            num_added=sum(entry.num_samples for entry in entries),
            table=hashlib.sha256(data).hexdigest(),
        )
        encoded = manifest.encode()
        decode_manifest(encoded, f"{self.root}: the manifest to be written")
        try:
            self._write_table(table_name(manifest.table), data)
            self._commit(encoded)
        except OSError as error:
            committed = self._is_committed(encoded)
            outcome = _UNKNOWN if committed is None else self._outcome() if committed else NOTHING
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
        storage.write(self.work_name("table"), data)
        storage.operations.replace(storage.path(self.work_name("table")), storage.path(name))
        self._check_mine(name, data)
        for directory in ("shards", "tables"):
            storage.sync_directory(directory)

    def _commit(self, encoded: bytes) -> None:
        self.storage.write(self.work_name("manifest"), encoded)
        if not self.storage.create_exclusively(f"manifests/{self.version}", self.work_name("manifest")):
            raise PackError(
                f"{self.root}: another writer published version {self.version} first; its dataset stands, this one "
                "was not published",
                dataset=self.root,
            )
        self._check_mine(f"manifests/{self.version}", encoded)
        self._publish(encoded)

    def _check_mine(self, name: str, content: bytes) -> None:
        """Refuses a file that became another writer's between its writing and its naming, as can be where nothing locks."""
        if not self._locked and not self._holds(name, content):
            raise PackError(f"{self.root}: another writer is at work there; {NOTHING}", dataset=self.root)

    def work_name(self, name: str) -> str:
        """Returns the name under which a file is prepared."""
        return f"{WORK}/{name}"

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return self.public.read_small(name, len(content)) == content
        except FormatError:
            return False

    def _is_committed(self, encoded: bytes) -> bool | None:
        """Tells whether this writer's manifest is there; None where the storage does not tell."""
        name = f"manifests/{self.version}"
        try:
            return self.public.exists(name) and self._holds(name, encoded)
        except OSError:
            return None

    def _outcome(self) -> str:
        """Says what a failure after the commit has left."""
        there = f"this came after the commit: version {self.version} is there whole"
        with contextlib.suppress(OSError, ShardloadError):
            current = read_current(self.public)
            if current is not None and current.version != self.version:
                return (
                    f"{there}, but {MANIFEST_NAME} is still version {current.version}: open gives that one until "
                    f"manifests/{self.version} is copied to {MANIFEST_NAME} or the next version is written"
                )
        return f"{there}, but may not survive a power loss"

    def prepare(self) -> None:
        """Clears away what an earlier writer left, and makes room for shards.

        Raises:
            PackError: something is there that the mode does not allow; nothing was changed.
        """
        try:
            with named(self.root):
                self._refuse(own_names(self.public, OWN_NAMES, self._others), resume=True)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._prepare()
        except BaseException:
            self.abandon()
            raise

    def keep_only(self, entries: Sequence[ShardEntry]) -> None:
        """Removes the shards of this generation that are not among `entries`."""
        kept = {os.path.basename(entry.name) for entry in entries}
        for name in self._uncommitted():
            if name not in kept:
                self.storage.operations.unlink(self.storage.path(f"shards/{name}"))

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
                steps = [self._remove_uncommitted, self._remove_table, self._remove_work]
        removed = ["tables", "manifests", "shards"] if self.version == 1 else []
        steps += [partial(storage.operations.rmdir, storage.path(name)) for name in removed]
        if self._created:
            steps.append(lambda: storage.operations.rmdir(storage.root))
        for step in steps:
            # What stays is removed by the next writer; the error that led here counts, not this one.
            with contextlib.suppress(OSError):
                step()

    def _publish(self, encoded: bytes) -> None:
        """Makes the committed manifest the current one. A crash before this leaves a dataset that opens all the same."""
        storage = self.storage
        for name, prepared in self.beside.items():
            if prepared:
                storage.operations.replace(storage.path(prepared), storage.path(name))
            elif storage.exists(name):
                storage.operations.unlink(storage.path(name))
        storage.write(self.work_name("current"), encoded)
        storage.operations.replace(storage.path(self.work_name("current")), storage.path(MANIFEST_NAME))
        # Not before all this is on the device may that go which finishes it after a crash.
        storage.sync_directory("")
        self._remove_work()
        storage.sync_directory("")

    def _take_lock(self) -> bool:
        try:
            return self._lock.take()
        except BlockingIOError:
            raise PackError(f"{self.root}: another writer is at work there", dataset=self.root) from None

    def _check(self, resume: bool) -> None:
        """Refuses a place that may not be written to, before anything there is changed."""
        with named(self.root):
            there = own_names(self.public, OWN_NAMES, self._others)
            if not resume:
                self._refuse(there)
            found = find_versions(self.public, self._locked)
            self.current, self._unfinished, self._tables = found.current, found.unfinished, found.tables
            self.version, self.generation = found.next_version, found.next_generation
            if self.mode == "append" and self.current is None:
                raise PackError(
                    f"{self.root} holds no dataset to append to: pack without --append (append=True)", dataset=self.root
                )

    def _refuse(self, there: set[str], resume: bool = False) -> None:
        """Refuses what the mode does not allow.

        Args:
            there: names in the directory.
            resume: whether what an unfinished pack left may go; what can be continued was continued.
        """
        unfinished = "what an unfinished pack left" if MANIFEST_NAME not in there else "a dataset"
        if self.has_job and not resume and self.mode != "replace":
            give_up = "replace it (--replace, replace=True)" if MANIFEST_NAME not in there else f"remove its {WORK}"
            raise PackError(
                f"{self.root} exists and holds what an unfinished pack left: go on with the same command and --continue "
                f"(resume=True), or {give_up}",
                dataset=self.root,
            )
        left_over = resume and self.version == 1
        if self.mode == "create" and there and not left_over:
            raise PackError(
                f"{self.root} exists and holds {unfinished}: choose another target, or replace it (--replace, replace=True)",
                dataset=self.root,
            )

    def _prepare(self) -> None:
        with named(self.root):
            self._remove_uncommitted()
            self._remove_unnamed_tables()
            self._remove_work()
            self._make_directories()

    def _make_directories(self) -> None:
        if self._unfinished:
            self.storage.operations.unlink(self.storage.path(self._unfinished))
            self.storage.sync_directory("manifests")
            self._unfinished = ""
        for name in self._missing:
            self.storage.sync_directory(os.path.dirname(name))
        if not self._missing:
            # A writer that was killed may have made the directory. Who may not read its parent has not made it.
            with contextlib.suppress(PermissionError):
                self.storage.sync_directory(os.path.dirname(self.storage.root))
        self.storage.make_directory("shards")
        self.storage.make_directory(WORK)

    def _remove_uncommitted(self) -> None:
        """Removes shards of a generation that no manifest names: no reader can have seen them."""
        if self._locked:
            self.keep_only([])

    def _uncommitted(self) -> Iterator[str]:
        prefix = f"{self.generation:04d}-"
        return (name for name in self.storage.list("shards") if _SHARD.fullmatch(name) and name.startswith(prefix))

    def _remove_unnamed_tables(self) -> None:
        """Removes shard tables that a killed writer left before its commit."""
        if self._locked:
            for name in self.storage.list("tables"):
                if _TABLE.fullmatch(name) and name not in self._tables:
                    self.storage.operations.unlink(self.storage.path(f"tables/{name}"))

    def _remove_table(self) -> None:
        """Removes the shard table written for a commit that did not come about."""
        if self._table:
            with contextlib.suppress(FileNotFoundError):
                self.storage.operations.unlink(self.storage.path(self._table))

    def _remove_work(self) -> None:
        remove_work(self.storage)
