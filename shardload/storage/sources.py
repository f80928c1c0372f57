"""Files that are packed, by URL: listed, told apart from later ones, and read as streams.

Paths of them are those that may be shown: without user, password, query string and options. What is secret goes with the
pickle of a `SourceStore` only, as a worker process could not read without.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from shardload.errors import FormatError
from shardload.storage.answers import AnswerError
from shardload.storage.base import Storage, StoredFile
from shardload.storage.choose import storage_of
from shardload.storage.remote import RemoteStorage
from shardload.storage.secrets import is_url, shown

MIN_READ_BYTES = 1 << 18
"""What is asked for at once at a place that nothing was read before; the double each time that reading goes on there, ..."""
MAX_READ_BYTES = 4 << 20
"""... up to so many."""

_NUM_WINDOWS = 8
_LOCAL_SCHEMES = ("file", "local")


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """What a store tells of a file."""

    path: str
    """Below the URL of a folder; of a file that was named by its own URL that, as it may be shown."""
    num_bytes: int
    tag: str
    """What changes with its content; nothing where the store has none."""


class SourceStore:
    """The files below one URL, or those of several URLs. Picklable; made without I/O."""

    def __init__(self, urls: Sequence[str], options: Mapping[str, Any] | None = None, folder: bool = False) -> None:
        """Describes where they are.

        Args:
            urls: URLs of fsspec: of one folder, or of files.
            options: options of fsspec for all of them.
            folder: whether it is a folder.
        """
        self.options = dict(options or {})
        self.folder = urls[0].rstrip("/") if folder and "?" not in urls[0] else urls[0] if folder else ""
        """URL of the folder; nothing where files are named by their own."""
        self.urls = {} if folder else {_path_of(url): url for url in urls}
        """URL of each file by its path."""
        self._storages: dict[str, Storage] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_storages": {}}

    def __repr__(self) -> str:
        return f"<SourceStore {self.shown!r}>"

    @property
    def shown(self) -> str:
        """Its URL, or all of them, as messages name it."""
        return shown(self.folder) if self.folder else ", ".join(self.urls)

    def facts(self, path: str) -> StoredFacts:
        """Returns what the store tells of a file.

        Raises:
            AnswerError: it is missing (its `kind` says so), or the store does not tell.
        """
        storage, name = self._place(path)
        length, tag = _bare(storage).facts(name)
        return StoredFacts(path, length, tag)

    def walk(self) -> list[StoredFacts]:
        """Returns all files of the folder.

        Raises:
            AnswerError: the store does not tell, or has no listings.
        """
        return [StoredFacts(*facts) for facts in _bare(self._storage(self.folder)).walk()]

    def open(self, path: str, num_bytes: int) -> SourceStream:
        """Returns the bytes of a file of known length; asks for nothing yet."""
        storage, name = self._place(path)
        return SourceStream(storage.open(name, num_bytes), lambda: self.facts(path))

    def read_small(self, path: str, max_bytes: int) -> bytes | None:
        """Returns a whole file, or None where there is none.

        Raises:
            AnswerError: the store does not tell.
            FormatError: it has more than `max_bytes`.
        """
        storage, name = self._place(path)
        try:
            return storage.read_small(name, max_bytes)
        except AnswerError as error:
            if error.kind == "missing":
                return None
            raise

    def _place(self, path: str) -> tuple[Storage, str]:
        if self.folder:
            return self._storage(self.folder), path
        root, name = split_url(self.urls.get(path, path))
        return self._storage(root), name

    def _storage(self, root: str) -> Storage:
        if root not in self._storages:
            self._storages[root] = storage_of(root, self.options)
        return self._storages[root]


def _bare(storage: Storage) -> RemoteStorage:
    """Returns the storage that makes the requests, without what repeats them."""
    inner = getattr(storage, "inner", storage)
    assert isinstance(inner, RemoteStorage)
    return inner


def split_url(url: str) -> tuple[str, str]:
    """Returns the URL of the folder that a file is in, with the query string of the file's, and the file's name."""
    chain = url.split("::")
    # Of chained URLs the first that has a path names the file: zip://a.csv::s3://bucket/b.zip, simplecache::s3://bucket/a.csv.
    number = next((i for i, part in enumerate(chain) if part.partition("://")[2]), len(chain) - 1)
    scheme, separator, rest = chain[number].partition("://")
    rest, question, query = rest.partition("?") if scheme.lower() in ("http", "https") else (rest, "", "")
    folder, slash, name = rest.rpartition("/")
    chain[number] = f"{scheme}{separator}{folder}{slash if not folder else ''}{question}{query}"
    # Names are escaped again where they are asked for.
    return "::".join(chain), unquote(name) if scheme.lower() in ("http", "https") else name


def _path_of(url: str) -> str:
    """Returns a URL as it may be shown, with the name of the file at its end."""
    chain = shown(url).split("::")
    return "::".join(reversed(chain)) if "://" in chain[0] else shown(url)


def local_path(location: str) -> str:
    """Returns a location as a path if it is a URL of a local file."""
    scheme, separator, rest = location.partition("://")
    if separator and scheme in _LOCAL_SCHEMES:
        return unquote(rest) if rest.startswith("/") else rest
    return location


def is_far(location: str) -> bool:
    """Tells whether a location is a URL of something that is no local file."""
    return is_url(local_path(location))


class SourceStream(io.RawIOBase):
    """The bytes of a stored file, read by ranges. Places that are read in turn, as those of columns, are each read ahead."""

    def __init__(self, file: StoredFile, facts: Callable[[], StoredFacts]) -> None:
        self._file = file
        self.facts = facts
        """Asks the store what it tells of the file by now."""
        self._at = 0
        # Start, bytes, and how many to ask for next, of each place; the last used last.
        self._windows: list[tuple[int, bytes, int]] = []

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return self._file.num_bytes

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"byte {base + offset} is before the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer, which comes short at the end of the file only; returns how many bytes.

        Raises:
            AnswerError: the store does not give them; of kind `changed` where the file is another one by now.
        """
        view = memoryview(buffer).cast("B")
        count = self._fill(view, self._at)
        self._at += count
        return count

    def read_at(self, num_bytes: int, start: int) -> bytes:
        """Returns bytes of a place, fewer at the end of the file only; raises as `readinto`."""
        data = bytearray(max(0, min(num_bytes, self.num_bytes - start)))
        self._fill(memoryview(data), start)
        return bytes(data)

    def _fill(self, view: memoryview, start: int) -> int:
        size = min(len(view), max(0, self.num_bytes - start))
        done = 0
        while done < size:
            first, data = self._window(start + done, size - done)
            part = data[start + done - first :][: size - done]
            view[done : done + len(part)] = part
            done += len(part)
        return size

    def _window(self, start: int, wanted: int) -> tuple[int, bytes]:
        """Returns bytes that hold those from `start` on, or some of them, and where they start."""
        ahead = MIN_READ_BYTES
        for number, (first, data, later) in enumerate(self._windows):
            if first <= start < first + len(data):
                self._windows.append(self._windows.pop(number))
                return first, data
            if start == first + len(data):
                ahead = later
                del self._windows[number]
                break
        stop = min(self.num_bytes, start + max(ahead, min(wanted, MAX_READ_BYTES)))
        try:
            data = self._file.read(start, stop)
        except FormatError as error:
            # Of a file that is packed it says no more than that it is another one.
            raise AnswerError(error.message, kind="changed", dataset=error.dataset, shard=error.shard) from None
        self._windows = [*self._windows[-_NUM_WINDOWS + 1 :], (start, data, min(2 * ahead, MAX_READ_BYTES))]
        return start, data
