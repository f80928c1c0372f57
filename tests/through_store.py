"""Has tests that open datasets from directories read them through a real object store instead.

`SHARDLOAD_TESTS_THROUGH=s3 tools/test tests/reader tests/loader` runs those tests so; `http` by plain HTTP. What a test opens is
uploaded as it is then, damage and all; tests about files of a file system are left out, see `LOCAL`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from servers import BUCKET, ObjectStore

import shardload
from shardload.reader import open_dataset

VARIABLE = "SHARDLOAD_TESTS_THROUGH"


class ThroughStore:
    """Opens datasets of directories by way of a store."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._open = open_dataset
        self._uploads: dict[str, str] = {}
        self._ends = contextlib.ExitStack()
        self._store: ObjectStore | None = None

    def open(self, path: Any, **options: Any) -> Any:
        """Does what `shardload.open` does."""
        directory = Path(path) if not isinstance(path, str) or "://" not in path else None
        if directory is None or not directory.is_dir() or options.get("engine") in ("map", "pread"):
            return self._open(path, **options)
        if self._store is None:
            folder = self._ends.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._store = self._ends.enter_context(ObjectStore(Path(folder)))
        name = self._name_of(directory)
        if self._kind == "s3":
            return self._open(f"s3://{BUCKET}/{name}", storage_options=self._store.s3_options, **options)
        return self._open(f"{self._store.http_url}/{name}", **options)

    def close(self) -> None:
        """Ends the server."""
        self._ends.close()

    def _name_of(self, directory: Path) -> str:
        """Returns the name below which a directory is stored as it is now."""
        digest = hashlib.sha256(os.fsencode(directory))
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                digest.update(os.fsencode(path) + path.read_bytes())
        key = digest.hexdigest()
        if key not in self._uploads:
            assert self._store is not None
            self._uploads[key] = self._store.upload(directory, key)
        return self._uploads[key]


def begin(config: pytest.Config) -> None:
    """Takes the place of `shardload.open` for the whole run, if the variable says so."""
    kind = os.environ.get(VARIABLE, "")
    if not kind:
        return
    if kind not in ("s3", "http"):
        raise pytest.UsageError(f"{VARIABLE} must be s3 or http, not {kind}")
    through = ThroughStore(kind)
    config.add_cleanup(through.close)

    @functools.wraps(open_dataset)
    def opened(path: Any, **options: Any) -> Any:
        return through.open(path, **options)

    shardload.open = opened  # type: ignore[attr-defined]
