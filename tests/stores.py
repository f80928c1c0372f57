"""Has every dataset that a test opens by its path come through a store: how the suite is run against one.

`SHARDLOAD_TEST_STORE=http tools/test tests/reader tests/loader` serves the files where they are; with `s3` they are uploaded when
they are opened, to an object store of the run's own or to that of `SHARDLOAD_TEST_S3` (JSON: `bucket`, and storage options).
Messages name the path, as ever. `tests/storage/test_suite_through_stores.py` runs both, marked slow.

Engines are taken for the one of stores, and `FILES_ONLY` is skipped.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from range_server import RangeServer
from servers import BUCKET, ObjectStore

from shardload.reader import dataset
from shardload.reader.engine_choice import EngineName, check_engine
from shardload.storage import LocalStorage, RemoteStorage, RetryingStorage, Storage, storage_of

FILES_ONLY = {
    "tests/reader/test_damage.py": "opens a file anew for each byte that is changed in place: thousands of uploads",
    "tests/reader/test_damage_everywhere.py": "as test_damage.py",
    "tests/reader/test_engines.py": "is about the engines of files",
    "tests/reader/test_read_faults.py": "has the system's reads fail",
    "tests/reader/test_runs.py": "is about the engines of files",
    "tests/reader/test_arrivals.py": "reads nothing by its path",
    "tests/reader/test_cached.py": "has stores of its own",
    "tests/reader/test_far.py": "has stores of its own",
    "tests/loader/test_shared_cache.py": "has stores of its own",
    "test_a_tar_that_is_cut_while_it_is_read": "changes a file that is open",
    "test_zeros_that_are_cut_are_missed_by_nobody_who_reads": "changes a file that is open",
    "test_more_tars_than_addresses_are_read_by_position": "is about the engines of files",
    "test_a_few_open_files_are_enough": "is about descriptors",
    "test_pickle_is_small_and_pins_the_content": "a URL and its options are longer than a path",
    "test_opening_leaves_nothing_open": "is about descriptors",
    "test_a_commit_without_its_copy_opens": "lists a directory",
    "test_hints_of_a_table_that_is_not_held_whole_read_nothing": "is about hints to the system",
    "test_a_hint_that_fails_is_no_error": "is about hints to the system",
    "test_a_damaged_block_is_named_with_the_first_sample_that_has_part_of_it": "changes a file that is open",
    "test_parts_of_a_batch_that_differ_in_how_they_are_stored": "is about the engines of files",
    "test_local_datasets_have_no_cache_and_others_files_no_owner": "is about paths",
}
"""Tests, or files of them, that are about files alone, and why."""


def reason_to_skip(path: str, name: str) -> str | None:
    """Returns why a test, or another parameter of it, is not for stores; None if it is."""
    return FILES_ONLY.get(name.partition("[")[0]) or next(
        (why for file, why in FILES_ONLY.items() if path.endswith(file)), None
    )


class InPlace(RemoteStorage):
    """A store that passes for the directory that is in it."""

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, limits: Any = None, root: str | None = None
    ) -> None:
        super().__init__(url, options, limits)
        if root is not None:
            self.root = root

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"root": self.root}


def read_through(kind: str) -> None:
    """Changes where `shardload.open` reads paths from."""
    place = {"http": _http, "s3": _s3}[kind]()

    def through(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Storage:
        found = storage_of(location, options)
        return place(found.root) if isinstance(found, LocalStorage) else found

    def engine(name: str) -> EngineName:
        return "ranges" if check_engine(name) == "map" else check_engine(name)

    dataset.storage_of = through  # type: ignore[attr-defined]
    dataset.check_engine = engine  # type: ignore[attr-defined]


def _http() -> Any:
    server = RangeServer(Path("/"))
    server.__enter__()
    return lambda path: RetryingStorage(InPlace(f"{server.url}{quote(path)}", root=path))


def _own_store() -> ObjectStore:
    """Returns a server that ends with this process."""
    folder = tempfile.mkdtemp()
    store = ObjectStore(Path(folder))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(store.__exit__)
    return store


def _s3() -> Any:
    given = os.environ.get("SHARDLOAD_TEST_S3")
    settings = json.loads(given) if given else {"bucket": BUCKET, **_own_store().s3_options}
    bucket, uploaded = settings.pop("bucket"), set()
    files = fsspec.filesystem("s3", **settings)

    def place(path: str) -> Storage:
        # What a test has changed since is another upload.
        content = hashlib.sha256(path.encode())
        for file in sorted(Path(path).rglob("*")):
            content.update(str(file).encode() + (file.read_bytes() if file.is_file() else b""))
        url = f"{bucket}/{content.hexdigest()[:16]}"
        if Path(path).is_dir() and url not in uploaded:
            files.put(f"{path}/", f"{url}/", recursive=True)
            uploaded.add(url)
        return RetryingStorage(InPlace(f"s3://{url}", settings, root=path))

    return place
