"""A store that datasets are written to: objects created under a condition, uploaded in parts, read back before they count."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shardload.errors import StorageError
from shardload.storage.answers import AnswerError
from shardload.storage.base import StoredFile
from shardload.storage.limits import Limits
from shardload.storage.remote import RemoteStorage
from shardload.storage.retrying import Result, RetryingStorage
from shardload.storage.schedule import RetryPolicy
from shardload.storage.secrets import shown
from shardload.storage.stopping import Stop, current_stop, heed

if TYPE_CHECKING:
    from shardload.storage.objects_s3 import ObjectFacts, OpenUpload, S3Objects

PART_BYTES = 16 << 20
"""What is longer is uploaded in parts of so many bytes; a thread holds one in memory."""
_MAX_PARTS = 10_000
NUM_THREADS = 4
"""Requests that one process has under way at once."""


class OtherObjectError(StorageError):
    """Another object has the name already."""


class WritableObjects(RemoteStorage):
    """The files below a URL where objects can be created under a condition: s3. One call is one attempt."""

    def ask(self, name: str, num_bytes: int, ask: Callable[[S3Objects, float], Result]) -> Result:
        """Returns what one request answers.

        Args:
            name: of the object.
            num_bytes: what it carries.
            ask: makes it, given the way and how many seconds it may take.

        Raises:
            AnswerError: it failed; tells how.
        """
        result: Result = self._asked(
            name, None, lambda way, limits: ask(way, limits.seconds_for(num_bytes)), doing="written"
        )
        return result

    def _way(self, limits: Limits) -> Any:
        try:
            from shardload.storage.objects_s3 import S3Objects
        except ImportError:
            raise ImportError(
                f"{self.root}: writing to s3 needs a package that is missing: pip install 'shardload[s3]'"
            ) from None
        # While a part is on its way nothing comes back: the whole request is what is waited for.
        config = {"read_timeout": limits.request_seconds, **(self.options.get("config_kwargs") or {})}
        return S3Objects(self.url, {**self.options, "config_kwargs": config}, limits)


class UploadStorage(RetryingStorage):
    """A store that is written to, by as many attempts as it takes within a deadline. Picklable, as what reads is."""

    inner: WritableObjects

    def __init__(self, storage: WritableObjects, policy: RetryPolicy | None = None) -> None:
        """Describes it; see `RetryingStorage`."""
        super().__init__(storage, policy)

    def put(self, name: str, data: bytes) -> None:
        """Stores an object, in the place of one that is there."""
        self._ask(name, len(data), lambda way, seconds: way.put(name, data, "", False, seconds))

    def put_new(self, name: str, data: bytes, mark: str) -> bool:
        """Stores an object if the store says that there is none of that name; whether that is so."""
        return self._ask(name, len(data), lambda way, seconds: way.put(name, data, mark, True, seconds))

    def create(self, name: str, data: bytes, mark: str) -> bool:
        """Creates an object; of several callers one wins. Answers may get lost: what is there is read back.

        Args:
            name: of the object.
            data: its bytes.
            mark: what tells it from those of others.

        Returns:
            Whether the object that is there is this one, from now or from before.
        """
        return self._settled(name, mark, lambda: self.put_new(name, data, mark))

    def facts(self, name: str) -> ObjectFacts | None:
        """Returns what is known of an object; None if there is none."""
        return self._ask(name, 0, lambda way, seconds: way.facts(name, seconds))

    def has(self, name: str, num_bytes: int, mark: str) -> bool:
        """Tells whether an object is there with this length and mark."""
        there = self.facts(name)
        return there is not None and (there.num_bytes, there.mark) == (num_bytes, mark)

    def upload(self, name: str, file: StoredFile, mark: str) -> None:
        """Creates an object from a file, unless the same is there; afterwards it is there.

        Args:
            name: of the object.
            file: its bytes.
            mark: what tells it from others, such as its digest.

        Raises:
            OtherObjectError: another object has the name; it stays.
            AnswerError: the store does not take it.
        """
        there = self.facts(name)
        if there is None:
            if file.num_bytes <= PART_BYTES:
                self.create(name, file.read(0, file.num_bytes), mark)
            else:
                self._upload_parts(name, file, mark)
        if not self.has(name, file.num_bytes, mark):
            raise OtherObjectError(
                f"{self.root}: {name} is there with other content: another writer is at work there",
                dataset=self.root,
                shard=name,
            )

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, in any order."""
        with ThreadPoolExecutor(NUM_THREADS, "shardload-upload") as pool:
            for _ in pool.map(self._remove, names):
                pass

    def open_uploads(self) -> list[OpenUpload]:
        """Returns the uploads in parts that were begun and not completed."""
        return self._ask("", 0, lambda way, seconds: way.open_uploads(seconds))

    def abort(self, uploads: Iterable[OpenUpload]) -> None:
        """Gives uploads in parts up."""
        for upload in uploads:
            self._abort(upload.name, upload.number)

    def _upload_parts(self, name: str, file: StoredFile, mark: str) -> None:
        upload = self._ask(name, 0, lambda way, seconds: way.begin_upload(name, mark, seconds))
        try:
            tags = self._put_parts(name, file, upload)
            self._settled(name, mark, lambda: self._complete(name, upload, tags))
        except BaseException:
            # One attempt: the error that led here counts, and `prune` finds what stays.
            with contextlib.suppress(OSError):
                self.inner.ask(name, 0, lambda way, seconds: way.abort_upload(name, upload, seconds))
            raise

    def _put_parts(self, name: str, file: StoredFile, upload: str) -> list[str]:
        part_bytes = max(PART_BYTES, -(-file.num_bytes // _MAX_PARTS))
        stop = Stop()

        def put(number: int) -> str:
            start = (number - 1) * part_bytes
            data = file.read(start, min(start + part_bytes, file.num_bytes))
            return self._ask(name, len(data), lambda way, seconds: way.put_part(name, upload, number, data, seconds))

        pool = ThreadPoolExecutor(NUM_THREADS, "shardload-upload", initializer=heed, initargs=(stop,))
        try:
            with current_stop().calling(stop.set):
                return list(pool.map(put, range(1, -(-file.num_bytes // part_bytes) + 1)))
        finally:
            # Of parts that are still on their way nobody waits for the answer: one has failed, or a signal came.
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _complete(self, name: str, upload: str, tags: list[str]) -> bool:
        return self._ask(name, 0, lambda way, seconds: way.complete_upload(name, upload, tags, True, seconds))

    def _settled(self, name: str, mark: str, create: Callable[[], bool]) -> bool:
        """Creates an object; where that is denied or unclear, looks whether it is there from an attempt whose answer was lost."""
        try:
            if create():
                return True
        except AnswerError:
            with contextlib.suppress(OSError):
                there = self.inner.ask(name, 0, lambda way, seconds: way.facts(name, seconds))
                if there is not None and there.mark == mark:
                    return True
            raise
        there = self.facts(name)
        return there is not None and there.mark == mark

    def _remove(self, name: str) -> None:
        self._ask(name, 0, lambda way, seconds: way.remove(name, seconds))

    def _abort(self, name: str, upload: str) -> None:
        self._ask(name, 0, lambda way, seconds: way.abort_upload(name, upload, seconds))

    def _ask(self, name: str, num_bytes: int, ask: Callable[[S3Objects, float], Result]) -> Result:
        return self._process_retries().call(lambda: self.inner.ask(name, num_bytes, ask))


def refuse_to_write(url: str | os.PathLike[str]) -> None:
    """Refuses URLs of stores where nothing keeps two writers from publishing at once.

    Raises:
        ValueError: it is such a URL.
    """
    text = os.fspath(url)
    scheme = text.partition(":")[0].lower() if "::" not in text else "chained"
    if scheme in ("s3", "s3a"):
        return
    if scheme in ("http", "https"):
        reason = "a dataset is read over HTTP, not written"
    else:
        reason = (
            f"of {scheme} URLs it is not known how a file is created only if there is none, so that one writer wins"
        )
    raise ValueError(
        f"{shown(text)}: {reason}: write to an s3:// URL, or to a directory and upload it, manifest.json last"
    )
