"""Files of a dataset in an object store, or wherever a URL of fsspec leads: one range, one request, one attempt."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardload.errors import FormatError, ShardloadError
from shardload.storage.answers import AnswerError, Kind
from shardload.storage.limits import Limits
from shardload.storage.secrets import redact, secrets_of, shown

if TYPE_CHECKING:
    from shardload.storage.ranges import RangeFetch, Told

_making = threading.Lock()
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}


class RemoteStorage:
    """The files below a URL. Made without I/O, and what a process fetches through is its own: a forked child starts anew.

    Its pickle holds the URL as it was given and the storage options, with whatever secrets are in them: a worker process could
    not read without. `root`, messages and the `repr` hold neither user and password, nor query string, nor options.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, limits: Limits | None = None) -> None:
        """Describes where files are.

        Args:
            url: any URL of fsspec, such as `s3://bucket/data` or `https://host/data`.
            options: options for its file system, as fsspec's `storage_options`; belongs to the caller, and is copied.
            limits: how long an attempt may take; None for the usual.
        """
        bare = url.rstrip("/")
        # The root of a file system may be nothing but slashes.
        self.url = url if "?" in url or bare.endswith(":") else bare
        self.options = dict(options or {})
        self.limits = limits
        self.root = shown(self.url).rstrip("/")
        self._secrets = secrets_of(self.url, self.options)
        self._own: tuple[int, RangeFetch] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "limits": self.limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def renew(self) -> None:
        """Has credentials read anew, from where they came: the next request makes a client of its own."""
        self._own = None

    def __repr__(self) -> str:
        return f"<RemoteStorage {self.root!r}>"

    def open(self, name: str, num_bytes: int | None = None) -> RemoteFile:
        """Opens a file; with its length given nothing is asked of the store before the first read."""
        file = RemoteFile(self, name, num_bytes)
        if num_bytes is None:
            file.ask_length()
        return file

    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file of at most `max_bytes`, by one request."""
        got = bytearray()

        def accept(told: Told) -> memoryview:
            total = told.stop if told.total is None else told.total
            if total > max_bytes:
                raise self.unlike(name, f"has {total} bytes; at most {max_bytes} can be right")
            if (told.start, told.stop) != (0, total):
                raise self.wrong(name, f"bytes {told.start} to {told.stop} of {total} came for the whole")
            got.extend(bytes(total))
            return memoryview(got)

        self.fetch(name, 0, max(1, max_bytes), None, accept)
        return bytes(got)

    def exists(self, name: str) -> bool:
        """Tells whether there is such an object.

        Raises:
            AnswerError: the store does not tell.
        """
        return bool(self._asked(name, None, lambda ranges, limits: ranges.exists(name, limits.request_seconds)))

    def list(self, name: str) -> list[str]:
        """Returns the names below a name, sorted; none where the protocol has no listings (HTTP).

        Raises:
            AnswerError: the store does not tell.
        """
        try:
            return sorted(self._asked(name, None, lambda ranges, limits: ranges.list(name, limits.request_seconds)))
        except AnswerError as error:
            if error.kind == "missing":
                return []
            raise

    def facts(self, name: str) -> tuple[int, str]:
        """Returns the length of a file and what changes with its content, nothing where the store has none, by its first byte.

        Raises:
            AnswerError: it is missing, or the store does not tell.
        """
        found: list[tuple[int, str]] = []

        def accept(told: Told) -> memoryview:
            if told.total is None:
                raise self.wrong(name, "the store does not tell its length")
            if told.stop - told.start > 1:
                raise self.wrong(name, "the store does not give ranges")
            found.append((told.total, told.tag or ""))
            return memoryview(bytearray(told.stop - told.start))

        self.fetch(name, 0, 1, None, accept)
        return found[-1]

    def walk(self) -> Sequence[tuple[str, int, str]]:
        """Returns all files below the URL: name, length, and what changes with the content, as far as the listing tells.

        Raises:
            AnswerError: the store does not tell, or has no listings (HTTP).
        """
        if self.url.partition(":")[0].lower() in ("http", "https"):
            raise self.wrong("", "HTTP has no listings")

        def ask(ranges: RangeFetch, limits: Limits) -> Sequence[tuple[str, int, str]]:
            from shardload.storage.ranges_any import find_files

            return find_files(self.url, self.options)

        found: Sequence[tuple[str, int, str]] = self._asked("", None, ask)
        return found

    def fetch(
        self, name: str, start: int, stop: int, tag: str | None, accept: Any, within_seconds: float | None = None
    ) -> None:
        """Fetches one range, by one attempt; see `RangeFetch.fetch`.

        Args:
            name: of the file.
            start: first byte.
            stop: byte after the last.
            tag: what the object must have; None for whatever it has.
            accept: see `shardload.storage.ranges.Accept`.
            within_seconds: how long it may take; None for the usual.

        Raises:
            AnswerError: it failed; tells how.
        """

        def ask(ranges: RangeFetch, limits: Limits) -> None:
            seconds = limits.seconds_for(stop - start) if within_seconds is None else within_seconds
            ranges.fetch(name, start, stop, tag, accept, seconds)

        self._asked(name, (start, stop), ask)

    def wrong(self, name: str, reason: str, kind: Kind = "wrong") -> AnswerError:
        """Returns the error of an answer that does not answer."""
        return AnswerError(f"{self.root}: {name} cannot be read: {reason}", kind=kind, dataset=self.root, shard=name)

    def unlike(self, name: str, reason: str) -> FormatError:
        """Returns the error of a file that cannot be the one that was written."""
        return FormatError(f"{self.root}: {name} {reason}", dataset=self.root, shard=name)

    def _asked(self, name: str, place: tuple[int, int] | None, ask: Any, doing: str = "read") -> Any:
        """Returns what a way of fetching answers; its failures come out as errors of ours, without those of libraries.

        What libraries raise may hold the URL with all that is secret in it, and would be printed as the cause.
        """
        failure: Exception
        ranges = None
        try:
            ranges, limits = self._ranges()
            return ask(ranges, limits)
        except (ShardloadError, ImportError) as error:
            failure = error
        except Exception as error:
            failure = self._failed(name, place, error, doing, ranges)
        failure.__cause__ = failure.__context__ = None
        raise failure

    def _failed(
        self, name: str, place: tuple[int, int] | None, error: Exception, doing: str, ranges: RangeFetch | None
    ) -> AnswerError:
        start, stop = place or (None, None)
        if ranges is None:
            kind, reason, wait = "refused", f"{type(error).__name__}: {error}", None
        else:
            told = ranges.explain(error)
            kind, reason, wait = told.kind, told.reason, told.retry_after_seconds
        where = "" if place is None or kind == "missing" else f" at bytes {start} to {stop}"
        what = "is missing" if kind == "missing" else f"cannot be {doing}{where}: {redact(reason, self._secrets)}"
        message = f"{self.root}: {name} {what}" if name else f"{self.root} {what}"
        told_kind: Kind = kind  # type: ignore[assignment]
        facts = {"dataset": self.root, "shard": name, "start": start, "stop": stop}
        return AnswerError(message, kind=told_kind, retry_after_seconds=wait, **facts)  # type: ignore[arg-type]

    def _ranges(self) -> tuple[RangeFetch, Limits]:
        """Returns what this process fetches through."""
        limits, own = self.limits or Limits(), self._own
        if own is None or own[0] != os.getpid():
            # Dozens of threads come here at once, and a client of its own for each would cost seconds.
            with _making:
                own = self._own
                if own is None or own[0] != os.getpid():
                    own = self._own = os.getpid(), self._way(limits)
        return own[1], limits

    def _way(self, limits: Limits) -> RangeFetch:
        return _ranges_of(self.url, self.options, limits)


class RemoteFile:
    """A file of a `RemoteStorage`. Safe for several threads and after a fork.

    Its first answer has to bear out the length, and tells the tag that all others must have.
    """

    def __init__(self, storage: RemoteStorage, name: str, num_bytes: int | None) -> None:
        self.dataset = storage.root
        self.name = name
        self.num_bytes = -1 if num_bytes is None else num_bytes
        self._storage = storage
        self._tags: dict[str, str] = {}
        """Under its own name the first one that was told. No lock: one that a fork caught would never be released."""

    def ask_length(self) -> None:
        """Asks the store for the length, by way of the first byte."""
        first = bytearray(1)

        def accept(told: Told) -> memoryview:
            if told.total is None:
                raise self._storage.wrong(self.name, "the store does not tell its length")
            self.num_bytes = told.total
            self._note(told)
            return memoryview(first)[: told.stop - told.start]

        self._storage.fetch(self.name, 0, 1, None, accept)

    def read_into(self, buffer: memoryview, start: int, within_seconds: float | None = None) -> None:
        """Fills a writable buffer of bytes with those from `start` on, by one request.

        Args:
            buffer: what is filled; half filled where it fails.
            start: first byte.
            within_seconds: how long the attempt may take; None for the usual.

        Raises:
            AnswerError: the attempt failed; tells how.
            FormatError: the file has another length.
        """
        stop = start + len(buffer)
        if start == stop:
            return
        if start < 0 or stop > self.num_bytes:
            raise self._storage.unlike(self.name, f"has {self.num_bytes} bytes; {start} to {stop} are not in it")

        def accept(told: Told) -> memoryview:
            total = self.num_bytes if told.total is None else told.total
            if (told.start, told.stop) != (start, max(start, min(stop, total))):
                ranges = ": the store does not give ranges" if (told.start, told.stop) == (0, total) else ""
                raise self._wrong(start, stop, f"bytes {told.start} to {told.stop} came{ranges}")
            if total != self.num_bytes:
                reason = f"has {total} bytes instead of {self.num_bytes}: it was cut, extended or replaced"
                raise self._storage.unlike(self.name, reason)
            self._note(told)
            return buffer

        self._storage.fetch(self.name, start, stop, self._tags.get(self.name), accept, within_seconds)

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range; raises as `read_into`."""
        data = bytearray(stop - start)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def will_need(self, start: int, num_bytes: int) -> None:
        """Does nothing: what is to be fetched ahead, and where it is kept, is decided above."""

    def discard(self, start: int, stop: int) -> bool:
        """Returns True: bytes may have been damaged on their way, and no copy is kept here."""
        return True

    def _note(self, told: Told) -> None:
        """Notes the tag of the first answer, and compares it with those of others."""
        if told.tag is not None and self._tags.setdefault(self.name, told.tag) != told.tag:
            raise self._wrong(told.start, told.stop, "it changed since it was opened", "changed")

    def _wrong(self, start: int, stop: int, reason: str, kind: Kind = "wrong") -> AnswerError:
        message = f"{self.dataset}: {self.name} cannot be read at bytes {start} to {stop}: {reason}"
        return AnswerError(message, kind=kind, dataset=self.dataset, shard=self.name, start=start, stop=stop)


def _ranges_of(url: str, options: Mapping[str, Any], limits: Limits) -> RangeFetch:
    """Returns the way to what a URL names.

    Raises:
        ImportError: a package is missing; names the extra that has it.
    """
    scheme = url.partition(":")[0].lower() if "::" not in url else ""
    try:
        if scheme in ("http", "https"):
            from shardload.storage.ranges_http import HttpRanges

            return HttpRanges(url, options, limits)
        if scheme in ("s3", "s3a"):
            from shardload.storage.ranges_s3 import S3Ranges

            return S3Ranges(url, options, limits)
        from shardload.storage.ranges_any import AnyRanges

        return AnyRanges(url, options, limits)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'shardload[{extra}]'" if extra else f"install what fsspec needs for it ({error})"
        raise ImportError(
            f"{shown(url)}: reading from {scheme or 'there'} needs a package that is missing: {hint}"
        ) from None


def _renew_lock() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
