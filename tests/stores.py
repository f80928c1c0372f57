"""Has every dataset that a test opens by its path come through a store: how the suite is run against one.

`SHARDLOAD_TEST_STORE=http tools/test tests/reader tests/loader` serves the files where they are; with `s3` they are uploaded when
they are opened, to an object store of the run's own or to that of `SHARDLOAD_TEST_S3` (JSON: `bucket`, and storage options).
Messages name the path, as ever. `tests/storage/test_suite_through_stores.py` runs both, marked slow.

Engines are taken for the one of stores, and `FILES_ONLY` is skipped. Programs that tests start read through the same store.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from launch import python_path
from range_server import RangeServer
from servers import BUCKET, ObjectStore

from shardload.reader import dataset, verify
from shardload.reader.engine_choice import EngineName, check_engine
from shardload.storage import LocalStorage, RemoteStorage, RetryingStorage, Storage, storage_of
from shardload.storage.limits import Limits
from shardload.storage.schedule import RetryPolicy

FILES_ONLY = {
    "test_a_tar_that_is_cut_while_it_is_read": "changes a file that is open",
    "test_a_file_cut_while_it_is_read": "changes a file that is open",
    "test_a_sample_that_was_checked_once_is_checked_again_where_asked": "changes a file that is open",
    "test_a_byte_that_changed_is_found_where_the_value_lies": "changes a file that is open",
    "test_a_damaged_page_is_told_and_read_again": "changes a file that is open",
    "test_the_first_damaged_row_that_is_due_is_named": "changes a file that is open",
    "test_of_several_damaged_rows_the_first_is_named_and_none_counts_as_checked": "changes a file that is open",
    "test_zeros_that_are_cut_are_missed_by_nobody_who_reads": "changes a file that is open",
    "test_damage_that_comes_later_is_found_by_who_always_looks": "changes a file that is open",
    "test_a_file_cut_under_the_mapping_is_an_error": "changes a file that is open",
    "test_a_file_cut_after_it_was_seen_in_memory_is_an_error": "changes a file that is open",
    "test_a_shard_that_is_cut_under_a_scan_is_a_named_error": "changes a file that is open",
    "test_more_tars_than_addresses_are_read_by_position": "is about the engines of files",
    "test_values_of_any_size_are_gathered_from_memory": "is about the engines of files",
    "test_what_waits_for_nothing_is_taken_where_it_lies": "is about the engines of files",
    "test_records_to_be_checked_are_not_joined_from_memory_while_a_thread_is_computing": "is about the engines of files",
    "test_texts_are_read_without_objects_that_the_collector_counts": "is about the engines of files",
    "test_files_may_be_added_while_others_are_read": "is about the engines of files",
    "test_a_length_that_lies_under_the_right_checksum_is_refused_each_time": "is about the engines of files",
    "test_batches_are_read_together_and_come_one_by_one": "is about files in memory",
    "test_other_sources_read_together_too": "is about files in memory",
    "test_byte_strings_are_read_together_less_far": "is about the bursts of files",
    "test_an_epoch_begins_in_one_thread": "is about the bursts of files",
    "test_no_room_for_addresses_means_positioned_reads": "is about the engines of files",
    "test_a_system_that_forbids_the_call": "is about the engines of files",
    "test_network_file_systems_are_read_by_position": "is about the engines of files",
    "test_a_scan_is_announced_where_the_system_reads_little_ahead": "is about hints to the system",
    "test_what_was_right_is_looked_at_once": "counts what the engines of files read",
    "test_hints_are_given_once_where_the_dataset_stays_in_memory": "is about hints to the system",
    "test_a_dataset_that_fits_is_hinted_once_others_always": "is about hints to the system",
    "test_rows_by_page_are_announced_a_window_before_the_records": "waits for hints, which a store takes beside the reader",
    "test_other_orders_are_announced": "is about hints to the system",
    "test_hints_of_a_table_that_is_not_held_whole_read_nothing": "is about hints to the system",
    "test_a_dead_disk_ends_the_run_at_once": "has the system's reads fail",
    "tests/reader/test_read_faults.py": "has the system's reads fail",
    "test_opening_leaves_nothing_open": "a connection to a store stays open for the next request",
    "test_nothing_is_started_by_making_things": "a connection to a store stays open for the next request",
    "test_local_datasets_have_no_cache_and_others_files_no_owner": "is about paths",
}
"""Tests, or files of them, that are about files alone, and why."""
NOT_FOR = {
    "http": {
        "test_a_commit_without_its_copy_opens": "it lists no directory",
        "test_missing_files_are_named": "it lists no directory; it runs with s3",
        "test_an_unfinished_only_commit_is_no_dataset": "it lists no directory; it runs with s3",
        "test_many_shards_with_few_descriptors": "its connections take all of them; it runs with s3",
    },
    "s3": {
        "test_every_flipped_byte_is_reported": "each byte is an upload; it runs with http",
        "test_every_cut_is_an_error": "each cut is an upload; it runs with http",
        "test_pickle_pins_the_content": "what has changed since is another upload; it runs with http",
        "test_a_missing_shard_is_an_error_of_its_own_batches": "what was uploaded stays; it runs with http",
        "test_more_shards_than_descriptors": "3,000 files are uploads for minutes; it runs with http",
    },
}
"""Tests that cannot be run with one of the stores, and why."""


def reason_to_skip(store: str, path: str, name: str) -> str | None:
    """Returns why a test, or another parameter of it, is not for a store; None if it is."""
    reasons = FILES_ONLY | NOT_FOR[store]
    return reasons.get(name.partition("[")[0]) or next(
        (why for file, why in reasons.items() if path.endswith(file)), None
    )


_LIMITS = Limits(progress_seconds=600, request_seconds=600)
_POLICY = RetryPolicy(deadline_seconds=1800, progress_seconds=600)
"""How long a request takes says more of who else uses the machine than of the code."""


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
    """Changes where `shardload.open` and `verify_dataset` read paths from, in this process and in those that it starts."""
    place = {"http": _http, "s3": _s3}[kind]()

    def through(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Storage:
        found = storage_of(location, options)
        return place(found.root) if isinstance(found, LocalStorage) else found

    def engine(name: str) -> EngineName:
        return "ranges" if check_engine(name) == "map" else check_engine(name)

    dataset.storage_of = through  # type: ignore[attr-defined]
    dataset.check_engine = engine  # type: ignore[attr-defined]
    verify.storage_of = through  # type: ignore[attr-defined]
    os.environ["PYTHONPATH"] = python_path(*os.environ.get("PYTHONPATH", "").split(os.pathsep))


def _shared(name: str, start: Callable[[], Any]) -> Any:
    """Returns where a server is that this process starts for itself and all that it starts, or that it was given."""
    if not os.environ.get(name):
        os.environ[name] = json.dumps(start())
    return json.loads(os.environ[name])


def _far(url: str, options: dict[str, Any] | None, root: str) -> Storage:
    # A client of its own takes a tenth of a second, and tests open the same hundreds of times.
    if url not in _places:
        _places[url] = InPlace(url, options, _LIMITS, root)
    return RetryingStorage(_places[url], _POLICY)


_places: dict[str, InPlace] = {}


def _http() -> Any:
    def start() -> str:
        server = RangeServer(Path("/"))
        server.__enter__()
        return server.url

    url = _shared("SHARDLOAD_TEST_HTTP", start)
    return lambda path: _far(f"{url}{quote(path)}", None, path)


_flock = fcntl.flock
"""Also where a test has the system give no locks."""


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keeps other processes that ask for the same directory waiting."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _own_store() -> dict[str, Any]:
    """Starts a server that ends with this process."""
    folder = tempfile.mkdtemp()
    store = ObjectStore(Path(folder))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(store.__exit__)
    return {"bucket": BUCKET, **store.s3_options}


def _s3() -> Any:
    settings = _shared("SHARDLOAD_TEST_S3", _own_store)
    bucket = settings.pop("bucket")

    @functools.cache
    def upload(path: str, url: str) -> None:
        files = fsspec.filesystem("s3", use_listings_cache=False, **settings)
        sizes = {file.relative_to(path): file.stat().st_size for file in Path(path).rglob("*") if file.is_file()}
        # Another process may have done it, or be at it: readers see no object that is written again.
        with _alone(path):
            if not files.exists(f"{url}.uploaded"):
                files.put(f"{path}/", f"{url}/", recursive=True)
                stored = {Path(name).relative_to(url): size for name, size in files.du(url, total=False).items()}
                assert sizes.items() <= stored.items(), f"{path} is not in the store as it is here"
                files.pipe_file(f"{url}.uploaded", b"")

    def place(path: str) -> Storage:
        # What a test has changed since is another upload.
        content = hashlib.sha256(path.encode())
        for file in sorted(Path(path).rglob("*")):
            content.update(str(file).encode() + (file.read_bytes() if file.is_file() else b""))
        url = f"{bucket}/{content.hexdigest()[:16]}"
        if Path(path).is_dir():
            upload(path, url)
        return _far(f"s3://{url}", settings, path)

    return place
