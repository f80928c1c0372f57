"""`ShardWriter`: a whole dataset or none, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardload.errors import FormatError, PackError
from shardload.format.layout import shard_name
from shardload.format.manifest import Manifest, decode_manifest
from shardload.format.table import ShardTable, decode_table
from shardload.storage import Operations
from shardload.writer import ShardWriter

SCHEMA = {"text": "str", "wide": "uint8[600]?", "x": "int64"}


def sample(number: int, length: int = 100) -> dict[str, Any]:
    return {"text": "ab" * (length // 2), "wide": np.full(600, number % 256, "u1"), "x": number}


def write(path: Path, samples: Sequence[dict[str, Any]], **options: Any) -> Manifest:
    writer = ShardWriter(path, SCHEMA, **options)
    for one in samples:
        writer.write(one)
    manifest = writer.close()
    assert manifest is not None
    return manifest


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def opened(path: Path) -> tuple[Manifest, ShardTable] | None:
    """What a reader would find at `path`, every file of it checked against its digest; None where no dataset is."""
    current = path / "manifest.json"
    if not current.is_file():
        versions = sorted(int(file.name) for file in (path / "manifests").glob("*"))
        if not versions:
            return None
        current = path / "manifests" / str(versions[-1])
    manifest = decode_manifest(current.read_bytes(), "m")
    assert (path / f"manifests/{manifest.version}").read_bytes() == current.read_bytes()
    table = decode_table((path / "tables" / manifest.table).read_bytes(), manifest, "t")
    for number in range(len(table)):
        entry = table[number]
        assert hashlib.sha256((path / entry.name).read_bytes()).digest() == entry.file_digest
    return manifest, table


@pytest.mark.parametrize("compression", ["none", "zstd:3"])
@pytest.mark.parametrize("shard_size", [1, 8192, 20_000, 20_001, 65_536])
def test_rolls_by_size(tmp_path: Path, shard_size: int, compression: str) -> None:
    lengths = [*range(0, 6000, 61), 50_000, 70_000, 0, 0]
    text = np.random.default_rng(0).bytes(70_000).hex()
    path = tmp_path / "set"
    write(
        path,
        [{"text": text[:n], "wide": None, "x": n} for n in lengths],
        shard_size=shard_size,
        compression=compression,
    )
    found = opened(path)
    assert found is not None
    manifest, table = found
    entries = [table[number] for number in range(len(table))]
    assert manifest.num_samples == len(lengths) and [entry.part for entry in entries] == list(range(len(entries)))
    for entry in entries:
        assert entry.num_bytes == (path / entry.name).stat().st_size
        assert entry.num_bytes <= shard_size or entry.num_samples == 1
    if shard_size == 1:
        assert len(table) == len(lengths)
    if shard_size == 65_536:
        # Closed no earlier than the size demands: two neighbours together would not have fitted.
        pairs = itertools.pairwise(entries)
        assert all(one.num_bytes + other.num_bytes > shard_size for one, other in pairs)


def test_exactly_the_shard_size_fits(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(40)]
    size = write(tmp_path / "one", samples).num_bytes
    assert write(tmp_path / "same", samples, shard_size=size).num_shards == 1
    assert write(tmp_path / "less", samples, shard_size=size - 1).num_shards == 2


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = [sample(number, number * 50) for number in range(50)]
    options: dict[str, Any] = {"shard_size": 16_384, "compression": "zstd:3", "metadata": {"b": 1, "a": ["é"]}}
    write(tmp_path / "one", samples, **options)
    write(tmp_path / "two", samples, **options | {"metadata": {"a": ["é"], "b": 1}})
    one = tree(tmp_path / "one")
    assert one == tree(tmp_path / "two") and len(one) > 6
    assert one["manifest.json"] == one["manifests/1"] and not (tmp_path / "one/.work").exists()


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write(tmp_path / "set", [sample(1)])
    finally:
        os.umask(mask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "set").rglob("*") if file.is_file()} == {0o644}


def test_nothing_is_touched_before_the_first_sample(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "set", SCHEMA)
    assert not (tmp_path / "set").exists()
    writer.abandon()
    assert not (tmp_path / "set").exists()


def test_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a/b/set", [sample(1)])
    assert opened(tmp_path / "a/b/set") is not None


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write(path, [sample(1)])
    before = tree(path)
    with pytest.raises(PackError, match="holds a dataset"):
        write(path, [sample(2)])
    assert tree(path) == before


def test_replace_writes_the_next_version(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write(path, [sample(1)])
    first = tree(path)
    for version in (2, 3):
        manifest = write(path, [sample(version), sample(3)], replace=True)
        assert (manifest.version, manifest.generations[0].generation) == (version, version)
        found = opened(path)
        assert found is not None and found[0] == manifest
        now = tree(path)
        assert {name: now[name] for name in first if name != "manifest.json"} == {
            name: data for name, data in first.items() if name != "manifest.json"
        }
        assert now["manifest.json"] == now[f"manifests/{version}"]


def test_replacing_nothing_is_version_1(tmp_path: Path) -> None:
    assert write(tmp_path / "set", [sample(1)], replace=True).version == 1
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", [sample(1)]).version == 1


def test_an_empty_dataset_after_an_empty_dataset(tmp_path: Path) -> None:
    """Both have the same table; a failed second one must not take it from the first."""
    path = tmp_path / "set"
    write(path, [])
    with pytest.raises(PackError):
        write(path, [], replace=True, operations=Failing("link", 1))
    assert opened(path) is not None
    assert write(path, [], replace=True).version == 2
    assert opened(path) is not None


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("name", ["photo.jpg", ".hidden", "src/main.c", "shards2/0001-000000-00000.shard"])
def test_a_foreign_directory_is_never_touched(tmp_path: Path, name: str, replace: bool) -> None:
    path = tmp_path / "home"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_bytes(b"mine")
    with pytest.raises(PackError, match="no part of a dataset"):
        write(path, [sample(1)], replace=replace)
    assert tree(path) == {name: b"mine"} and len(list(path.iterdir())) == 1


def test_foreign_files_in_a_directory_named_shards_stay(tmp_path: Path) -> None:
    path = tmp_path / "home"
    (path / "shards").mkdir(parents=True)
    names = ["0001-holiday.jpg", "0001-000000-00000.shard.bak", "notes"]
    for name in names:
        (path / "shards" / name).write_bytes(b"mine")
    with pytest.raises(PackError, match="unfinished pack"):
        write(path, [sample(1)])
    write(path, [sample(1)], replace=True)
    assert all((path / "shards" / name).read_bytes() == b"mine" for name in names)


@pytest.mark.parametrize("replace", [False, True])
def test_the_target_is_a_file(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(PackError, match="not a directory"):
            write(tmp_path / name, [sample(1)], replace=replace)
    with pytest.raises(PackError, match="cannot be written"):
        write(tmp_path / "file/set", [sample(1)], replace=replace)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", [sample(1)])
    assert opened(tmp_path / "real") is not None


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_nothing(tmp_path: Path, count: int, error: type[BaseException]) -> None:
    with pytest.raises(error), ShardWriter(tmp_path / "set", SCHEMA, shard_size=16_384) as writer:
        for number in range(count):
            writer.write(sample(number))
        raise error
    assert not list(tmp_path.iterdir())


def test_an_error_while_replacing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write(path, [sample(1)])
    before = tree(path)
    with pytest.raises(KeyError), ShardWriter(path, SCHEMA, shard_size=16_384, replace=True) as writer:
        for number in range(40):
            writer.write(sample(number))
        raise KeyError
    assert tree(path) == before and sorted(os.listdir(path)) == ["manifest.json", "manifests", "shards", "tables"]


def test_a_bad_sample_leaves_nothing_that_opens(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="sample 3: field 'x'"), ShardWriter(tmp_path / "set", SCHEMA) as writer:
        for number in range(3):
            writer.write(sample(number))
        writer.write(sample(3) | {"x": 0.5})
    assert not list(tmp_path.iterdir())


def test_a_bad_sample_may_be_passed_over(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", SCHEMA) as writer:
        for number in range(5):
            try:
                writer.write(sample(number) | ({"x": None} if number % 2 else {}))
            except PackError:
                continue
    found = opened(tmp_path / "set")
    assert found is not None and found[0].num_samples == writer.num_samples == 3
    write(tmp_path / "other", [sample(0), sample(2), sample(4)])
    assert tree(tmp_path / "set") == tree(tmp_path / "other")


def test_an_interrupt_in_the_middle_of_a_sample_ends_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may be in the heap and its row not: who swallows the interrupt must not get such a dataset."""
    from shardload.writer.shard import ShardFile

    with pytest.raises(PackError, match="since a write failed"), ShardWriter(tmp_path / "set", SCHEMA) as writer:
        writer.write(sample(0))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ShardFile, "add", _interrupted)
            writer.write(sample(1))
    assert not list(tmp_path.iterdir())


def _interrupted(*_: object) -> bytes:
    raise KeyboardInterrupt


def test_the_end(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "set", SCHEMA)
    writer.write(sample(0))
    manifest = writer.close()
    assert manifest is not None and opened(tmp_path / "set") == (manifest, opened(tmp_path / "set")[1])  # type: ignore[index]
    before = tree(tmp_path / "set")
    assert writer.close() is None
    writer.abandon()
    with pytest.raises(PackError, match="this writer is closed"):
        writer.write(sample(1))
    with pytest.raises(PackError, match="this writer is closed"), writer:
        raise AssertionError("not reached")
    assert tree(tmp_path / "set") == before
    writer = ShardWriter(tmp_path / "other", SCHEMA)
    writer.write(sample(0))
    writer.abandon()
    writer.abandon()
    assert writer.close() is None
    with pytest.raises(PackError, match="this writer is abandoned"):
        writer.write(sample(1))
    assert not (tmp_path / "other").exists()


def test_arguments(tmp_path: Path) -> None:
    for compression in (
        "zstd",
        "zstd:",
        "zstd:x",
        "zstd:99",
        "zstd:--3",
        "zstd:0003",
        "zstd:٣",
        "zstd:3:4",
        "lz4",
        "none:1",
        "",
    ):
        with pytest.raises(FormatError):
            ShardWriter(tmp_path / "set", SCHEMA, compression=compression)
    for metadata in ({"a": 1.5}, {"a": [1.5]}, {"a": {"b": "c"}}, {"a": "\ud800"}, {"a": "x" * (1 << 20)}):
        with pytest.raises(FormatError, match="metadata"):
            ShardWriter(tmp_path / "set", SCHEMA, metadata=metadata)  # type: ignore[arg-type]
    for size in (0, -1, "0", "many", 1.5, True, None):
        with pytest.raises(ValueError, match="shard_size"):
            ShardWriter(tmp_path / "set", SCHEMA, shard_size=size)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# Two writers.


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", SCHEMA) as first:
        first.write(sample(0))
        for replace in (False, True):
            with pytest.raises(PackError, match="another writer is at work"):
                write(tmp_path / "set", [sample(1)], replace=replace)
        first.write(sample(1))
    found = opened(tmp_path / "set")
    assert found is not None and found[0].num_samples == 2


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("replace", [False, True])
def test_of_writers_at_once_exactly_one_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, locks: bool
) -> None:
    path = tmp_path / "set"
    if not locks:
        monkeypatch.setattr(fcntl, "flock", _no_locks)
    if replace:
        write(path, [sample(99)])
    # A first writer holds the place when the others come, whatever the machine does.
    first = ShardWriter(path, SCHEMA, replace=replace)
    first.write(sample(0))
    outcomes: list[str] = []

    def one(number: int) -> None:
        try:
            write(path, [sample(number)] * number, replace=replace)
            outcomes.append("committed")
        except PackError:
            outcomes.append("refused")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = first.close()
    assert manifest is not None and outcomes == ["refused"] * 4
    found = opened(path)
    assert found is not None and found[0] == manifest and manifest.version == 1 + replace


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOTSUP, "no locks here")


def test_a_commit_that_comes_second_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks the exclusive creation of the manifest decides."""
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    path = tmp_path / "set"
    first = ShardWriter(path, SCHEMA)
    first.write(sample(0))
    # The other is on another machine, in another unit: its shard has another name.
    (path / "manifests").mkdir()
    (path / "manifests/1").write_bytes(b"of the other")
    with pytest.raises(PackError, match="another writer published version 1 first"):
        first.close()
    assert (path / "manifests/1").read_bytes() == b"of the other"


# Failures of the storage.


class Quick(Operations):
    """Leaves the device out: hundreds of runs wait for it longer than they compute."""

    def fsync(self, descriptor: int) -> None:
        os.fstat(descriptor)


class Failing(Quick):
    """Fails at the nth call of an operation, once or from then on."""

    def __init__(self, operation: str, number: int, *, lasting: bool = False, code: int = errno.ENOSPC) -> None:
        self.calls = 0
        self.linked = False
        self._written: set[int] = set()
        self._operation, self._number, self._lasting, self._code = operation, number, lasting, code

    def _count(self, operation: str) -> None:
        if operation == self._operation:
            self.calls += 1
            if self.calls == self._number or (self._lasting and self.calls > self._number):
                raise OSError(self._code, os.strerror(self._code))

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._count("fsync")
        super().fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        self._count("link")
        super().link(source, target)
        self.linked = True

    def replace(self, source: str, target: str) -> None:
        self._count("replace")
        super().replace(source, target)

    def open_new(self, path: str) -> int:
        self._count("open_new")
        descriptor = super().open_new(path)
        self._written.add(descriptor)
        return descriptor

    def mkdir(self, path: str) -> None:
        self._count("mkdir")
        super().mkdir(path)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        if descriptor in self._written:  # as a network file system may tell only then that it is full
            self._written.remove(descriptor)
            self._count("close")


SMALL_RUN = [sample(number, 3000) for number in range(9)]
OPERATIONS = ["write", "fsync", "link", "replace", "open_new", "mkdir", "close"]


def small_run(path: Path, operations: Operations, replace: bool = False) -> Manifest:
    return write(path, SMALL_RUN, shard_size=20_000, operations=operations, replace=replace)


def calls_of(operation: str, path: Path) -> int:
    counting = Failing(operation, 0)
    assert small_run(path, counting).num_shards > 2
    return counting.calls


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_at_every_operation(tmp_path: Path, operation: str, lasting: bool) -> None:
    calls = calls_of(operation, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    assert calls >= 1
    after_the_commit = 0
    for number in range(1, calls + 1):
        path = tmp_path / f"{number}"
        failing = Failing(operation, number, lasting=lasting)
        with pytest.raises(PackError, match="cannot be written") as caught:
            small_run(path, failing)
        message = str(caught.value)
        if not failing.linked:
            assert opened(path) is None if path.exists() else True
            assert "nothing was published" in message and "free)" in message
            if operation != "close":  # where a close fails after the fsync, the whole file stays for the next to remove
                assert not path.exists()
        else:
            after_the_commit += 1
            assert "after the commit: version 1 is there whole" in message
            found = opened(path)
            assert found is not None and found[0].num_samples == len(SMALL_RUN)
            now = tree(path)
            assert {name: now[name] for name in whole if name != "manifest.json"} == {
                name: data for name, data in whole.items() if name != "manifest.json"
            }
            assert set(now) - set(whole) == set() and not (path / ".work").exists()
        # And the next try succeeds.
        manifest = small_run(path, Quick(), replace=path.exists())
        assert manifest.version == 1 + failing.linked
    if operation in ("write", "fsync", "replace", "open_new"):
        assert after_the_commit > 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_while_replacing(tmp_path: Path, operation: str) -> None:
    calls = calls_of(operation, tmp_path / "counted")
    for number in range(1, calls + 1):
        path = tmp_path / f"{number}"
        write(path, [sample(7)])
        before = tree(path)
        failing = Failing(operation, number, lasting=True)
        try:
            small_run(path, failing, replace=True)
        except PackError:
            pass
        else:  # the first version has made the directories
            assert operation in ("mkdir", "fsync", "close") and failing.calls < number
            continue
        now = tree(path)
        kept = {name: now[name] for name in before if name != "manifest.json"}
        assert kept == {name: data for name, data in before.items() if name != "manifest.json"}
        found = opened(path)
        assert found is not None and found[0].version in ((1, 2) if failing.linked else (1,))
        if not failing.linked and operation != "close":
            assert now == before
        assert small_run(path, Quick(), replace=True).version == 2 + failing.linked


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_file_systems_without_hard_links(tmp_path: Path, code: int) -> None:
    small_run(tmp_path / "links", Quick())
    small_run(tmp_path / "none", Failing("link", 1, lasting=True, code=code))
    assert tree(tmp_path / "links") == tree(tmp_path / "none")
    assert not (tmp_path / "none/.work").exists()


def test_a_failure_that_was_swallowed_is_not_taken_for_a_commit(tmp_path: Path) -> None:
    """Who passes over bad samples also catches a full disk: the end of the block must not look like success."""
    refused = 0
    with (
        pytest.raises(PackError, match="since a write failed"),
        ShardWriter(tmp_path / "set", SCHEMA, shard_size=20_000, operations=Failing("fsync", 4)) as writer,
    ):
        for one in SMALL_RUN * 9:
            try:
                writer.write(one)
            except PackError:
                refused += 1
    assert refused > 1 and not (tmp_path / "set").exists()


class Short(Quick):
    """Writes a few bytes at a time, as a pipe or a file system near its end may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def write(self, descriptor: int, data: memoryview) -> int:
        self.limit = self.limit % 4093 + 1
        return super().write(descriptor, data[: self.limit])


def test_short_writes_give_the_same_bytes(tmp_path: Path) -> None:
    small_run(tmp_path / "long", Quick())
    small_run(tmp_path / "short", Short(1))
    assert tree(tmp_path / "long") == tree(tmp_path / "short")


class Recording(Quick):
    """Keeps what happens to which file, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def open_new(self, path: str) -> int:
        descriptor = super().open_new(path)
        self._paths[descriptor] = path
        self.events.append(("create", path))
        return descriptor

    def open_read(self, path: str) -> int:
        descriptor = super().open_read(path)
        self._paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self.events.append(("write", self._paths[descriptor]))
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self.events.append(("fsync", os.path.normpath(self._paths[descriptor])))

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self.events += [("create", target)]

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self.events += [("rename", source), ("create", target)]


def test_order_of_operations(tmp_path: Path) -> None:
    operations = Recording()
    manifest = small_run(tmp_path / "new/set", operations)
    root, events = str(tmp_path / "new/set"), operations.events

    def at(kind: str, name: str, last: bool = False) -> int:
        path = os.path.normpath(os.path.join(root, name))
        places = [place for place, event in enumerate(events) if event == (kind, path)]
        assert places, (kind, name)
        return places[-1] if last else places[0]

    commit = at("create", "manifests/1")
    shards = [shard_name(1, 0, part) for part in range(manifest.num_shards)]
    for name in shards:
        assert at("create", name) < at("write", name) <= at("write", name, last=True) < at("fsync", name) < commit
        assert at("fsync", name) < at("fsync", "shards", last=True) < commit
    assert at("fsync", ".work/table") < at("create", f"tables/{manifest.table}") < at("fsync", "tables") < commit
    assert at("fsync", ".work/manifest") < commit < at("fsync", "manifests", last=True) < at("create", "manifest.json")
    assert at("fsync", ".work/current") < at("create", "manifest.json") < at("fsync", "", last=True)
    # The directories that were made, and their names in their parents.
    for name in ("..", "../.."):
        assert at("fsync", name) < commit
    assert not any("manifest" in path for _, path in events[: at("fsync", shards[-1])])


def test_a_table_that_a_crash_left_without_content_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "set"
    manifest = small_run(tmp_path / "whole", Operations())
    (path / "tables").mkdir(parents=True)
    (path / "tables" / manifest.table).write_bytes(b"")
    (path / "shards").mkdir()
    (path / shard_name(1, 0, 0)).write_bytes(b"")
    (path / ".work").mkdir()
    (path / ".work/manifest").write_bytes(b"cut")
    with pytest.raises(PackError, match="unfinished pack"):
        small_run(path, Quick())
    small_run(path, Quick(), replace=True)
    assert tree(path) == tree(tmp_path / "whole")


def test_die_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies (no clean-up at all) leaves nothing that opens, or after the commit the whole."""
    locks: list[int] = []
    flock = fcntl.flock

    def keeping(descriptor: int, flags: int) -> None:
        locks.append(descriptor)
        flock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", keeping)
    names = ("open_new", "write", "fsync", "link", "replace", "mkdir", "unlink", "rmdir")
    counted = Dying(0, names)
    small_run(tmp_path / "whole", counted)
    for number in range(1, counted.calls + 1):
        path = tmp_path / str(number)
        dying = Dying(number, names)
        with pytest.raises(SystemExit):
            small_run(path, dying)
        with contextlib.suppress(OSError):  # the lock goes with its process
            flock(locks.pop(), fcntl.LOCK_UN)
        committed = (path / "manifests/1").exists()
        found = opened(path)
        assert (found is not None) == committed
        if found is not None:
            assert found[0].num_samples == len(SMALL_RUN)
        assert small_run(path, Quick(), replace=True).version == 1 + committed
        assert opened(path) is not None and not (path / ".work").exists()


class Dying(Quick):
    """Does no more from the nth operation on, clean-up included, like a process that was killed."""

    def __init__(self, number: int, names: Sequence[str]) -> None:
        self.calls = 0
        self._number = number
        for name in names:
            setattr(self, name, self._wrapped(getattr(super(), name)))

    def _wrapped(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self._number and self.calls >= self._number:
                raise SystemExit
            return operation(*arguments)

        return call
