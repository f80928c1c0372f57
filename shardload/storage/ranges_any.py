"""Ranges through whatever fsspec knows: what comes is compared by its length only, the rest is for checksums to find."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import fsspec
import fsspec.core

from shardload.storage.answers import AnswerError, RefusalError
from shardload.storage.ranges import Accept, Limits, Told
from shardload.storage.secrets import shown

_ANY = "-"
_CHANGING = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)
"""What file systems tell of a file that changes with its content, the surest first."""


def identity(facts: Mapping[str, Any]) -> str:
    """Returns what changes with the content of a file, of what a file system tells of it."""
    value = next((facts[name] for name in _CHANGING if facts.get(name) is not None), _ANY)
    # Of one file system some answers tell a time by a number, and others by a date.
    return str(value.timestamp() if isinstance(value, datetime.datetime) else value)


class AnyRanges:
    """Objects below a URL of any protocol that fsspec has a file system for. How long it waits is that one's own affair."""

    def __init__(self, url: str, options: Mapping[str, Any], limits: Limits) -> None:
        _check_protocols(url)
        self._files, root = fsspec.core.url_to_fs(url, **(dict(options) | {"skip_instance_cache": True}))
        self._root = root.rstrip("/")

    def fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept, seconds: float) -> None:
        """Asks for a range, and before the first one for the object's length; see `RangeFetch.fetch`."""
        path, total, facts = f"{self._root}/{name}", None, {}
        if tag is None:
            self._files.invalidate_cache()
            facts = self._files.info(path)
            if facts.get("type", "file") != "file":
                raise RefusalError("missing", "this is no file")
            total = facts.get("size")
        end = stop if total is None else min(stop, total)
        data = self._files.cat_file(path, start=start, end=end) if start < end else b""
        if start < end and len(data) != end - start:
            raise RefusalError("wrong", f"{len(data)} bytes came for a range of {end - start}")
        accept(Told(start, max(start, end), total, tag or identity(facts)))[:] = data

    def exists(self, name: str, seconds: float) -> bool:
        """Tells whether there is such an object."""
        self._files.invalidate_cache()
        return bool(self._files.exists(f"{self._root}/{name}"))

    def list(self, name: str, seconds: float) -> list[str]:
        """Returns the names directly below a name."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(f"{self._root}/{name}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found})

    def explain(self, error: Exception) -> RefusalError:
        """Returns what kind of failure an exception of a file system is."""
        if isinstance(error, RefusalError):
            return error
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            return RefusalError("missing", "there is no such object")
        if isinstance(error, PermissionError):
            return RefusalError("access", "access is refused")
        return RefusalError("transient", f"{type(error).__name__}: {error}")


def _check_protocols(url: str) -> None:
    """Raises AnswerError for a protocol that nobody has a file system for: no store has failed then."""
    for part in url.split("::"):
        protocol, separator, _ = part.partition("://")
        if (separator or part != url) and protocol not in fsspec.available_protocols():
            known = "s3, gs, az and https are some that there are"
            raise AnswerError(f"{shown(url)}: there is no protocol {protocol!r}; {known}", kind="refused")


def find_files(url: str, options: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Returns all files below a URL: name, length, and what changes with the content."""
    _check_protocols(url)
    files, root = fsspec.core.url_to_fs(url, **(dict(options) | {"skip_instance_cache": True}))
    root = root.rstrip("/")
    files.invalidate_cache()
    found = []
    for path, facts in files.find(root, detail=True).items():
        name = path.removeprefix(root).lstrip("/")
        if name and not name.endswith("/") and facts.get("type", "file") == "file":
            found.append((name, int(facts["size"]), identity(facts)))
    return found
