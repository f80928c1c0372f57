"""A target in an object store: written by way of a directory on the disk, which holds what is not uploaded yet.

Each shard is uploaded when it is finished, and its bytes on the disk go. What makes one writer win is what the store creates only
where there is nothing: a claim in `.work`, which stays when its writer is killed, and `manifests/<version>`, the commit. Both carry
the writer's id, so that an answer that was lost is no matter: what is there is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shardload.errors import PackError, ShardloadError
from shardload.format.manifest import MANIFEST_NAME, Description, Manifest
from shardload.format.schema import canonical_json
from shardload.format.table import ShardEntry
from shardload.storage import (
    OPERATIONS,
    AnswerError,
    LocalStorage,
    Operations,
    Storage,
    UploadStorage,
    is_far,
    upload_storage_of,
)
from shardload.writer.failures import NOTHING, named
from shardload.writer.maintenance import locked
from shardload.writer.resume import ResumableTarget
from shardload.writer.target import Mode
from shardload.writer.work import WORK, remove_work

CLAIM = f"{WORK}/claim"
_NUM_LOOKS = 16
"""Questions whether a shard is there that are asked at once."""
_SHARD = re.compile(r"[0-9]{4,}-[0-9]{6,}-[0-9]{5,}\.shard")
_TABLE = re.compile(r"[0-9a-f]{64}")
_FOLDERS = ("shards", "tables", "manifests")


@dataclass(frozen=True, slots=True)
class Delivery:
    """Brings finished shards from the disk to the store. Picklable, for the processes that finish them."""

    storage: LocalStorage
    uploads: UploadStorage

    def __call__(self, entry: ShardEntry) -> None:
        """Uploads a shard, unless it is there, and removes it from the disk.

        Raises:
            PackError: the store does not take it, or has another one of its name.
        """
        with named(self.uploads.root):
            file = self.storage.open(entry.name, entry.num_bytes)
            self.uploads.upload(entry.name, file, entry.file_digest.hex())
            self.storage.operations.unlink(self.storage.path(entry.name))


def staging_place(url: str, options: Mapping[str, Any] | None, staging: str | os.PathLike[str] | None) -> str:
    """Returns the directory on the disk for what is written to a URL: always the same, so that it can be continued.

    Args:
        url: where the dataset is to be.
        options: storage options for it.
        staging: a directory that the user chose; None for one of the user's cache directory, by a digest of the URL.
    """
    if staging is not None:
        return os.path.abspath(staging)
    given = dict(options or {})
    endpoint = given.get("endpoint_url") or (given.get("client_kwargs") or {}).get("endpoint_url")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    root = upload_storage_of(url, options).root
    digest = hashlib.sha256(canonical_json([root, str(endpoint)])).hexdigest()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(os.path.join(caches, "shardload", "staging", digest[:32]))


class FarTarget(ResumableTarget):
    """A place below a URL that is claimed for the next version of a dataset, and the directory on the disk it is made in."""

    def __init__(
        self,
        url: str,
        mode: Mode = "create",
        operations: Operations = OPERATIONS,
        resume: bool = False,
        options: Mapping[str, Any] | None = None,
        staging: str | os.PathLike[str] | None = None,
    ) -> None:
        """Claims a place, as `Target` does.

        Args:
            url: where; s3 only.
            mode: whether what is there may be replaced by a new version or added to.
            operations: the file operations on the disk.
            resume: leave all as it is for now.
            options: storage options.
            staging: see `staging_place`.

        Raises:
            PackError: something is there that the mode does not allow, or another writer is at work.
            ValueError: datasets are not written to such URLs.
        """
        self.uploads = upload_storage_of(url, options)
        self._place = staging_place(url, options, staging)
        self._note = LocalStorage(self._place, operations)
        self._claimed = False
        with named(self._place):
            os.makedirs(self._place, mode=0o700, exist_ok=True)
        try:
            super().__init__(os.path.join(self._place, "data"), mode, operations, resume)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(self._place)
            raise

    @property
    def deliver(self) -> Callable[[ShardEntry], None]:
        """Uploads a finished shard."""
        return Delivery(self.storage, self.uploads)

    def intact(self, entries: Sequence[ShardEntry]) -> set[str]:
        """Returns the names of those shards that are in the store with the length and digest they were uploaded with."""

        def is_there(entry: ShardEntry) -> bool:
            return self.uploads.has(entry.name, entry.num_bytes, entry.file_digest.hex())

        with ThreadPoolExecutor(_NUM_LOOKS, "shardload-upload") as pool:
            return {entry.name for entry, there in zip(entries, pool.map(is_there, entries), strict=True) if there}

    def take_up(self, version: int, generation: int) -> Manifest | None:
        """Goes on with the unfinished pack that is there, and gives up what it had half uploaded."""
        committed = super().take_up(version, generation)
        with named(self.root):
            self._take_claim()
            self._abort_open()
        return committed

    def commit(self, description: Description, entries: Sequence[ShardEntry]) -> Manifest:
        """Publishes shards as the next version, if all of them are in the store; see `Target.commit`."""
        self.check_process()
        with named(self.root):
            there = self.intact(entries)
        lost = next((entry.name for entry in entries if entry.name not in there), None)
        if lost is not None:
            raise PackError(
                f"{self.root}: {lost} is not there as it was uploaded any more; {NOTHING}", dataset=self.root
            )
        return super().commit(description, entries)

    def leave_finished(self) -> None:
        """Gives back a place whose dataset is complete."""
        with named(self.root):
            self._remove_work()
            if write_id := self._write_id():
                # The writer that published it was cut off before it had let go.
                claim = self.uploads.facts(CLAIM)
                if claim is not None and claim.mark == write_id:
                    self.uploads.remove([CLAIM])
                self.storage.operations.unlink(self._note.path("write-id"))
            self._tidy()
        self._lock.release()

    def _publishes_at(self) -> tuple[str, Storage]:
        return self.uploads.root, self.uploads

    def _refuse(self, there: set[str], resume: bool = False) -> None:
        if WORK in there:
            claim = self.uploads.facts(CLAIM)
            if claim is not None and claim.mark != self._write_id():
                raise self._taken()
            there = there if claim is not None else there - {WORK}
        # Some stores go on listing folders whose last object was removed.
        empty = {name for name in there.intersection(_FOLDERS) if not self.public.list(name)}
        super()._refuse(there - empty, resume)

    def _taken(self) -> PackError:
        return PackError(
            f"{self.root}: another writer is at work there, or was cut off: go on with its command and --continue (resume=True) "
            "where it was begun, or, if nobody is at work, remove what it left with `shardload prune --unfinished`",
            dataset=self.root,
        )

    def _prepare(self) -> None:
        with named(self.root):
            known = self._take_claim()
            left = self._left_over()
            if left and not known and self.mode != "replace":
                self._drop_claim()
                raise PackError(
                    f"{self.root} holds {left[0]}, which no version names: is it being uploaded? If not, remove it with "
                    "`shardload prune --unfinished`",
                    dataset=self.root,
                )
            self._abort_open()
            self.uploads.remove(left)
        super()._prepare()

    def _abort_open(self) -> None:
        """Gives up what was half uploaded, by this writer or one that was cut off here: the claim is held."""
        try:
            self.uploads.abort(self.uploads.open_uploads())
        except AnswerError as error:
            # To list these is a right of its own, which who may write need not have; they are in nobody's way.
            if error.kind not in ("access", "refused"):
                raise

    def _take_claim(self) -> bool:
        """Claims the place; tells whether it was claimed before, by a writer that was cut off and is continued or replaced here.

        Raises:
            PackError: another writer has it, or the store does not keep writers apart.
        """
        write_id = self._write_id() or self._new_write_id()
        before = self.uploads.facts(CLAIM)
        content = f"{write_id}\n".encode()
        mine = self.uploads.create(CLAIM, content, write_id) if before is None else before.mark == write_id
        if not mine:
            raise self._taken()
        self._claimed = True
        if before is None and self.uploads.put_new(CLAIM, content, write_id):
            self._drop_claim()
            raise PackError(
                f"{self.root}: the store does not heed If-None-Match, so that two writers could publish at once: write to a "
                "directory and upload it, manifest.json last",
                dataset=self.root,
            )
        return before is not None

    def _check_claim(self) -> None:
        claim = self.uploads.facts(CLAIM)
        if claim is None or claim.mark != self._write_id():
            raise PackError(
                f"{self.root}: the claim of this writer was removed meanwhile; {NOTHING}", dataset=self.root
            )

    def _drop_claim(self) -> None:
        self.uploads.remove([CLAIM])
        self._claimed = False
        with contextlib.suppress(FileNotFoundError):
            self.storage.operations.unlink(self._note.path("write-id"))

    def _write_id(self) -> str:
        """Returns the id of this writer, or of the one before it that was cut off here; nothing if there is none."""
        return self._note.read_small("write-id", 64).decode() if self._note.exists("write-id") else ""

    def _new_write_id(self) -> str:
        write_id = secrets.token_hex(16)
        with contextlib.suppress(FileNotFoundError):
            self.storage.operations.unlink(self._note.path("new-id"))
        self._note.write("new-id", write_id.encode())
        self.storage.operations.replace(self._note.path("new-id"), self._note.path("write-id"))
        self._note.sync_directory("")
        return write_id

    def _left_over(self) -> list[str]:
        """Returns shards of this generation, and tables, that no published version names."""
        shards = [name for name in self.public.list("shards") if _SHARD.fullmatch(name)]
        tables = [name for name in self.public.list("tables") if _TABLE.fullmatch(name) and name not in self._tables]
        own = [f"shards/{name}" for name in shards if int(name.partition("-")[0]) == self.generation]
        return own + [f"tables/{name}" for name in tables]

    def _write_table(self, name: str, data: bytes) -> None:
        self._check_claim()
        self.uploads.put(name, data)

    def _commit(self, encoded: bytes) -> None:
        self._check_claim()
        if not self.uploads.create(f"manifests/{self.version}", encoded, self._write_id()):
            raise PackError(
                f"{self.root}: another writer published version {self.version} first; its dataset stands, this one "
                "was not published",
                dataset=self.root,
            )
        self._publish(encoded)

    def _is_committed(self, encoded: bytes) -> bool | None:
        try:
            there = self.uploads.facts(f"manifests/{self.version}")
        except OSError:
            return None
        return there is not None and there.mark == self._write_id()

    def _outcome(self) -> str:
        return (
            f"this came after the commit: version {self.version} is there whole, but {MANIFEST_NAME} may not name it yet; the "
            "same command with --continue (resume=True) finishes it"
        )

    def _publish(self, encoded: bytes) -> None:
        for name, prepared in self.beside.items():
            if prepared:
                self.uploads.put(name, self.storage.read_small(prepared, 1 << 32))
            elif self.public.exists(name):
                self.uploads.remove([name])
        self.uploads.put(MANIFEST_NAME, encoded)
        # Such as one whose beginning was not answered.
        self._abort_open()
        self._remove_work()
        self._drop_claim()
        self._tidy()

    def _clean_up(self) -> None:
        if self._claimed:
            # What stays is named by the claim, which stays too: the next writer here, or `prune`, removes it.
            with contextlib.suppress(OSError, ShardloadError):
                if str(self.version) not in self.public.list("manifests"):
                    self._abort_open()
                    self.uploads.remove(self._left_over())
                self._drop_claim()
        super()._clean_up()
        self._tidy()

    def _tidy(self) -> None:
        """Removes the directories on the disk, as far as they are empty."""
        for path in (self.storage.path("shards"), self.storage.path(WORK), self.storage.root, self._place):
            with contextlib.suppress(OSError):
                self.storage.operations.rmdir(path)


def clear_staging(url: str, options: Mapping[str, Any] | None, staging: str | os.PathLike[str] | None) -> None:
    """Removes what an unfinished pack to a URL left on this disk, if it did.

    Raises:
        PackError: it is at work.
    """
    place = staging_place(url, options, staging)
    storage = LocalStorage(os.path.join(place, "data"))
    if not os.path.isdir(storage.root):
        return
    with locked(storage):
        remove_work(storage)
        names = [f"shards/{name}" for name in storage.list("shards") if _SHARD.fullmatch(name)]
        for name in [*names, "../write-id"]:
            with contextlib.suppress(FileNotFoundError):
                storage.operations.unlink(storage.path(name))
        for path in (storage.path("shards"), storage.root, place):
            with contextlib.suppress(OSError):
                storage.operations.rmdir(path)


def target_at(
    location: str,
    mode: Mode = "create",
    operations: Operations = OPERATIONS,
    resume: bool = False,
    others: bool = False,
    *,
    options: Mapping[str, Any] | None = None,
    staging: str | os.PathLike[str] | None = None,
) -> ResumableTarget:
    """Claims a directory or a place below a URL; see `Target` and `FarTarget`.

    Raises:
        PackError: something is there that the mode does not allow, or another writer is at work.
        ValueError: there are options for a directory, or datasets are not written to such URLs.
    """
    if is_far(location):
        return FarTarget(location, mode, operations, resume, options, staging)
    if options or staging is not None:
        raise ValueError(f"storage_options and staging are for URLs, such as s3://bucket/data; {location} is a path")
    return ResumableTarget(location, mode, operations, resume, others)
