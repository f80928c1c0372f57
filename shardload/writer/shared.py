"""A target that several writers of one dataset have at once, each for units of its own, without talking to each other.

The job's record in `.work` is what they share: who comes first makes it, the others compare theirs with it. Who writes a
unit holds its number. Who finds all units complete publishes them; the exclusive creation of the manifest lets one win,
and the others find what they would have written themselves.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence

import msgspec

from shardload.errors import PackError, ShardloadError, StorageError
from shardload.format.layout import shard_name
from shardload.format.manifest import Description, Manifest
from shardload.format.table import ShardEntry
from shardload.storage import OPERATIONS, Operations
from shardload.writer.failures import named
from shardload.writer.job import JobRecord, PackedRecord, again, difference, read_packed, read_record
from shardload.writer.lock import DirectoryLock, NumberLocks
from shardload.writer.resume import ResumableTarget
from shardload.writer.target import PACKED_NAME, REJECTS_NAME, Mode
from shardload.writer.versions import read_entries, read_manifest
from shardload.writer.work import JOB, WORK, remove_work_directories, work_files

JOIN_SECONDS = 30.0
"""How long to wait for another process that has the directory for itself: one that begins the same job takes less."""
COMMIT_SECONDS = 600.0
_WAIT_SECONDS = 0.01
_NUMBERS = f"{WORK}/numbers"
_COMMIT = 1 << 62
"""Number that is held during a commit; units are below it."""


class SharedTarget(ResumableTarget):
    """A directory claimed together with the other writers of one job; writers of anything else are kept off."""

    def __init__(
        self,
        root: str,
        record: JobRecord,
        unit_samples: int,
        given: bool,
        mode: Mode = "create",
        operations: Operations = OPERATIONS,
    ) -> None:
        """Begins a job, joins the one that is there, or finds it complete.

        Args:
            root: path; created with its parents if it is not there.
            record: what is asked for, without generation and version.
            unit_samples: samples of a unit, if this process is the first.
            given: whether a job that is there must have the same units; else it decides.
            mode: `create`, or `replace` for what another job has written.
            operations: the file operations.

        Raises:
            PackError: something is there that the mode does not allow, another writer is at work, or the job that is there was
                asked for something else.
        """
        self.unit_samples = unit_samples
        self.manifest: Manifest | None = None
        """What this job has published."""
        self._asked, self._given = record, given
        self._token = secrets.token_hex(4)
        self._deadline = time.monotonic() + JOIN_SECONDS
        self._numbers: NumberLocks | None = None
        super().__init__(root, mode, operations, resume=True)
        try:
            with named(self.root):
                self._join_and_share()
        except BaseException:
            self.leave()
            raise

    def take_unit(self, unit: int) -> None:
        """Takes a unit, which nobody else writes until this process ends or lets it go.

        Raises:
            PackError: another process is writing it.
        """
        assert self._numbers is not None
        try:
            self._numbers.take(unit)
        except BlockingIOError:
            raise PackError(
                f"{self.root}: another process is writing samples from {unit * self.unit_samples} on: is a rank running twice?",
                dataset=self.root,
            ) from None

    def release_unit(self, unit: int) -> None:
        """Lets a unit go."""
        if self._numbers is not None:
            self._numbers.release(unit)

    def has_part(self, unit: int, part: int) -> bool:
        """Tells whether a part is there, finished or not."""
        return self.storage.exists(shard_name(self.generation, unit, part))

    def clear_part(self, unit: int, part: int) -> None:
        """Removes what a process that was cut off left of a part."""
        with contextlib.suppress(FileNotFoundError):
            self.storage.operations.unlink(self.storage.path(shard_name(self.generation, unit, part)))

    def publish(self, description: Description, entries: Sequence[ShardEntry]) -> Manifest:
        """Publishes the dataset, or finds that another process has done so.

        Args:
            description: what the shards carry.
            entries: all its shards.

        Raises:
            PackError: another writer came first, or the storage failed.
        """
        assert self._numbers is not None
        with named(self.root):
            self._take_commit(self._numbers)
            try:
                self.manifest = self.published() or self._publish_entries(description, entries)
            except (OSError, ShardloadError):
                # Where nothing locks, another process may have done the same meanwhile.
                self.manifest = self._published_equal(entries)
                if self.manifest is None:
                    raise
            finally:
                self._numbers.release(_COMMIT)
        return self.manifest

    def published(self) -> Manifest | None:
        """Returns the manifest of what this job has published, all tidied up."""
        packed = read_packed(self.storage)
        if packed is None or packed.job != self._asked.digest or self.has_job:
            return None
        return read_manifest(self.storage, f"manifests/{packed.version}")

    def finds_published(self) -> bool:
        """Looks whether another process has published the dataset since this one has joined."""
        self.manifest = self.manifest or self.published()
        return self.manifest is not None

    def leave(self) -> None:
        """Gives the directory back; what was written stays for whoever goes on."""
        if self._numbers is not None:
            self._numbers.close()
        self._lock.release()

    def abandon(self) -> None:
        """Gives the directory back as it was before the job, if no other process is in it; else as `leave`."""
        with contextlib.suppress(OSError):
            self._locked = not self._lock.released and self._lock.is_mine and self._lock.take()
        if self._numbers is not None:
            self._numbers.close()
        if self._locked:
            super().abandon()
        self._lock.release()

    def work_name(self, name: str) -> str:
        """Returns the name under which this process prepares a file; several may prepare the same at once."""
        return f"{super().work_name(name)}-{self._token}"

    def _take_lock(self) -> bool:
        """Takes the directory for this process alone, else together with those that have begun the job."""
        while True:
            for shared in (False, True):
                try:
                    locks = self._lock.take(shared)
                except BlockingIOError:
                    continue
                if self._reopened():
                    break
                if not locks:
                    return False
                if not shared:
                    return True
                if self.has_job or self.published() is not None:
                    return False
            else:
                self._wait("another writer is at work there", self._deadline)

    def _reopened(self) -> bool:
        """Makes and opens the directory anew, if another process that failed has removed it meanwhile; tells whether it has."""
        if self._lock.is_at(self.root):
            return False
        self._lock.release()
        with named(self.root):
            with contextlib.suppress(FileExistsError):
                self.storage.operations.mkdir(self.root)
            self._missing, self._created = self._missing or [self.root], True
            self._lock = DirectoryLock(self.root)
        return True

    def _join_and_share(self) -> None:
        self._join()
        self._share()
        # While it is passed on the lock is nobody's, and one that failed may just then have taken everything away.
        while self.manifest is None and not self.has_job:
            if self._numbers is not None:
                self._numbers.close()
                self._numbers = None
            self._locked = self._take_lock()
            self._join()
            self._share()

    def _share(self) -> None:
        """Lets others in that do the same job."""
        while self._locked:
            try:
                self._lock.take(shared=True)
                self._locked = False
            except BlockingIOError:
                self._wait("another writer is at work there", self._deadline)

    def _wait(self, reason: str, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise PackError(f"{self.root}: {reason}", dataset=self.root)
        time.sleep(_WAIT_SECONDS)

    def _join(self) -> None:
        # Between two looks, the last of the others may publish the dataset and tidy up.
        while (manifest := self.published()) is None:
            if not self.has_job:
                self._begin()
            with contextlib.suppress(FileNotFoundError, StorageError):
                self._numbers = self._numbers or NumberLocks(self.storage.path(_NUMBERS))
                self._take_part(read_record(self.storage))
                return
            self._wait("its unfinished job cannot be read", self._deadline)
        self.manifest = manifest
        if self._locked:
            self._remove_work()

    def _begin(self) -> None:
        self.prepare()
        options = self._asked.options | {"unit_samples": self.unit_samples}
        numbers = {"generation": self.generation, "version": self.version}
        record = msgspec.structs.replace(self._asked, options=options, **numbers)
        self.storage.write(self.work_name("job"), record.encode())
        self.storage.create_exclusively(JOB, self.work_name("job"))

    def _take_part(self, record: JobRecord) -> None:
        asked = self._asked
        found = record.options["unit_samples"]
        options = asked.options | {"unit_samples": self.unit_samples if self._given else found}
        changed = difference("version of", record.versions, asked.versions)
        changed = changed or difference("option", record.options, options)
        if changed and self.mode == "replace" and self._locked:
            self._begin()
            record = read_record(self.storage)
        elif changed:
            raise PackError(
                f"{self.root}: the unfinished job there is another one: {changed}. Go on as it was begun, or {again(self.storage)}",
                dataset=self.root,
            )
        self._take_version(record.version, record.generation)
        self.unit_samples = record.options["unit_samples"]
        if self._locked:
            self._make_directories()

    def _prepare(self) -> None:
        if self._locked:
            super()._prepare()
        else:
            # What is there may be that of another process which begins the same job.
            self._make_directories()

    def _publish_entries(self, description: Description, entries: Sequence[ShardEntry]) -> Manifest:
        prepared = self.work_name("packed")
        self.storage.write(prepared, PackedRecord(self.generation, self._asked.digest, 0, self.version).encode())
        self.beside = {REJECTS_NAME: "", PACKED_NAME: prepared}
        self.keep_only(entries)
        name = f"manifests/{self.version}"
        if not self.storage.exists(name):
            return self.commit(description, entries)
        committed = read_manifest(self.storage, name)
        self.finish(committed, entries)
        return committed

    def _published_equal(self, entries: Sequence[ShardEntry]) -> Manifest | None:
        name = f"manifests/{self.version}"
        with contextlib.suppress(OSError, ShardloadError):
            manifest = read_manifest(self.storage, name)
            if read_entries(self.storage, manifest, self.generation) == sorted(entries):
                return manifest
        return None

    def _take_commit(self, numbers: NumberLocks) -> None:
        deadline = time.monotonic() + COMMIT_SECONDS
        while True:
            try:
                return numbers.take(_COMMIT)
            except BlockingIOError:
                self._wait("another process does not come to an end with the commit of the same job", deadline)

    def _remove_work(self) -> None:
        # Others may be leaving, and put something there or tidy up as well; what stays tells nobody of a job.
        for name in work_files(self.storage):
            with contextlib.suppress(OSError):
                self.storage.operations.unlink(self.storage.path(name))
        with contextlib.suppress(OSError):
            remove_work_directories(self.storage)
