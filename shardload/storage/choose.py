"""Local or remote: which storage a location has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from shardload.storage.base import Storage
from shardload.storage.limits import Limits
from shardload.storage.local import LocalStorage
from shardload.storage.remote import RemoteStorage
from shardload.storage.retrying import RetryingStorage
from shardload.storage.schedule import RetryPolicy
from shardload.storage.secrets import is_url, shown
from shardload.storage.uploading import UploadStorage, WritableObjects, refuse_to_write

OWN_OPTIONS = "shardload"
"""Storage options below this name are for this package; all others are for the file system."""

_LOCAL_SCHEMES = ("file", "local")


def storage_of(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Storage:
    """Returns the storage of a dataset's location, without looking at it.

    Args:
        location: a path, or any URL of fsspec.
        options: for the file system that fsspec has for the URL, such as `key`, `secret` and `endpoint_url` of s3. Those under
            `shardload` are ours: see `RetryPolicy.from_options`.

    Raises:
        ValueError: there are options for a path, which has none; or such of ours that do not exist.
    """
    path = _without_scheme(os.fspath(location))
    if is_url(path):
        return _far(path, dict(options or {}))
    if options:
        raise ValueError(f"storage_options are for URLs, such as s3://bucket/data; {path} is a path")
    return LocalStorage(os.path.abspath(path))


def local_path(location: str | os.PathLike[str]) -> str:
    """Returns the absolute path of a directory to be written.

    Raises:
        ValueError: it is a URL.
    """
    path = _without_scheme(os.fspath(location))
    if is_url(path):
        raise ValueError(
            f"{shown(path)} is a URL: only pack and ShardWriter write to such; use a directory and upload it, manifest.json last"
        )
    return os.path.abspath(path)


def is_far(location: str | os.PathLike[str]) -> bool:
    """Tells whether a location is a URL that leads to no directory of this machine."""
    return is_url(_without_scheme(os.fspath(location)))


def _without_scheme(path: str) -> str:
    scheme, separator, rest = path.partition("://")
    return unquote(rest) if separator and scheme in _LOCAL_SCHEMES else path


def upload_storage_of(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> UploadStorage:
    """Returns the storage of a URL that a dataset is written to, without looking at it.

    Raises:
        ValueError: nothing there keeps two writers from publishing at once, or there is no such option of ours.
    """
    refuse_to_write(url)
    own, policy = _policy(dict(options or {}))
    return UploadStorage(WritableObjects(os.fspath(url), own, _limits(policy)), policy)


def _far(url: str, options: dict[str, Any]) -> Storage:
    options, policy = _policy(options)
    return RetryingStorage(RemoteStorage(url, options, _limits(policy)), policy)


def _policy(options: dict[str, Any]) -> tuple[dict[str, Any], RetryPolicy]:
    """Returns the options of the file system, and what ours say."""
    own = options.pop(OWN_OPTIONS, {})
    if not isinstance(own, Mapping):
        raise ValueError(f"storage_options[{OWN_OPTIONS!r}] must be a mapping, such as {{'deadline': 60}}")
    return options, RetryPolicy.from_options(own)


def _limits(policy: RetryPolicy) -> Limits:
    return Limits(policy.progress_seconds, policy.deadline_seconds)
