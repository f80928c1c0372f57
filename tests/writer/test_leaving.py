"""What a writer leaves behind: after clean-ups that fail, forks, crashes after the commit, and writers that are dropped."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from faults import in_child

import shardload
from shardload.errors import PackError
from shardload.reader.verify import verify_dataset
from shardload.storage import OPERATIONS, Operations
from shardload.writer import ShardWriter
from shardload.writer.describe import make_recipe
from shardload.writer.target import Target

SCHEMA = {"data": "bytes", "x": "int64"}


def put(path: Path, count: int, **options: Any) -> None:
    with ShardWriter(path, SCHEMA, shard_size=16_384, **options) as writer:
        for number in range(count):
            writer.write(sample(number))


def sample(number: int, size: int = 3000) -> dict[str, Any]:
    return {"data": bytes([number % 256]) * size, "x": number}


def numbers(path: Path) -> list[int]:
    """What a dataset holds, every byte of it checked on the way."""
    return [one["x"] for one in shardload.open(path, verify="always")]


def locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# Clean-ups that fail.


class Sick(Operations):
    """From a moment on writes fail, and so do the operations of the clean-up."""

    def __init__(self, *cleaning: str) -> None:
        self.sick = False
        self._cleaning = cleaning

    def _may_fail(self, operation: str, code: int) -> None:
        if self.sick and operation in ("write", *self._cleaning):
            raise OSError(code, os.strerror(code))

    def write(self, descriptor: int, data: memoryview) -> int:
        self._may_fail("write", errno.EIO)
        return super().write(descriptor, data)

    def unlink(self, path: str) -> None:
        self._may_fail("unlink", errno.EROFS)
        super().unlink(path)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._may_fail("close", errno.EDQUOT)

    def rmdir(self, path: str) -> None:
        self._may_fail("rmdir", errno.EROFS)
        super().rmdir(path)

    def listdir(self, path: str) -> list[str]:
        self._may_fail("listdir", errno.EIO)
        return super().listdir(path)


@pytest.mark.parametrize("cleaning", [("unlink",), ("close",), ("rmdir",), ("listdir",), ("unlink", "close", "rmdir")])
@pytest.mark.parametrize("step", ["write", "close"])
def test_a_failing_clean_up_does_not_hide_a_failed_write(tmp_path: Path, cleaning: tuple[str, ...], step: str) -> None:
    path, operations = tmp_path / "set", Sick(*cleaning)
    writer = ShardWriter(path, SCHEMA, operations=operations)
    writer.write(sample(0))
    operations.sick = True
    with pytest.raises(PackError, match="cannot be written: Input/output error; nothing was published"):
        if step == "write":
            writer.write(sample(1, 3 << 20))
        else:
            writer.close()
    if step == "write":
        with pytest.raises(PackError, match="since a write failed"):
            writer.close()
        with pytest.raises(PackError, match="since a write failed"):
            writer.write(sample(1))
    assert not path.exists() or not locked(path)
    operations.sick = False
    put(path, 2, replace=True)
    assert numbers(path) == [0, 1] and not (path / ".work").exists()


def test_the_end_of_the_block_does_not_look_like_success(tmp_path: Path) -> None:
    operations = Sick("unlink")
    with (
        pytest.raises(PackError, match="since a write failed"),
        ShardWriter(tmp_path / "set", SCHEMA, operations=operations) as writer,
    ):
        writer.write(sample(0))
        operations.sick = True
        with pytest.raises(PackError):
            writer.write(sample(1, 3 << 20))


def test_a_clean_up_goes_on_after_a_step_that_failed(tmp_path: Path) -> None:
    """Where closing tells of an error, the file and the directories go all the same."""
    operations = Sick("close")
    writer = ShardWriter(tmp_path / "set", SCHEMA, operations=operations)
    writer.write(sample(0))
    operations.sick = True
    writer.abandon()
    assert not (tmp_path / "set").exists()


def test_an_interrupt_of_the_clean_up_releases_the_lock(tmp_path: Path) -> None:
    class Interrupted(Operations):
        def unlink(self, path: str) -> None:
            raise KeyboardInterrupt

    writer = ShardWriter(tmp_path / "set", SCHEMA, operations=Interrupted())
    writer.write(sample(0))
    with pytest.raises(KeyboardInterrupt):
        writer.abandon()
    assert (tmp_path / "set").exists() and not locked(tmp_path / "set")


# Forks.


@pytest.mark.parametrize("replace", [False, True])
def test_a_forked_child_that_unwinds_leaves_the_parents_work(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "set"
    if replace:
        put(path, 1)
    with ShardWriter(path, SCHEMA, shard_size=16_384, replace=replace) as writer:
        for number in range(20):
            writer.write(sample(number))
        before = sorted(os.listdir(path / "shards"))
        assert in_child(lambda: writer.__exit__(SystemExit, SystemExit(0), None)) == 0
        assert sorted(os.listdir(path / "shards")) == before and locked(path)
        writer.write(sample(20))
    assert numbers(path) == list(range(21)) and not verify_dataset(path)


def test_a_forked_child_may_not_write(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "set", SCHEMA)
    writer.write(sample(0))
    place = writer._place
    assert place is not None

    described = make_recipe(place, writer.schema, "none", b"", {}, 1, 1).description

    def tried() -> None:
        commit = lambda: place.commit(described, [])  # noqa: E731
        for attempt in (lambda: writer.write(sample(1)), writer.close, commit):
            with pytest.raises(PackError, match=f"belongs to process {os.getppid()}"):
                attempt()

    assert in_child(tried) == 0
    assert in_child(writer.abandon) == 0
    writer.close()
    assert numbers(tmp_path / "set") == [0]


def test_a_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As workers of a DataLoader do that were forked while the writer was open."""
    path = tmp_path / "set"
    writer = ShardWriter(path, SCHEMA)
    writer.write(sample(0))
    wake, waken = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(waken)
        os.read(wake, 1)
        os._exit(0)
    writer.close()
    free = not locked(path)
    os.close(waken)
    os.close(wake)
    os.waitpid(pid, 0)
    assert free


# Manifests that are there before.


def test_a_version_that_only_manifest_json_tells_of_stays(tmp_path: Path) -> None:
    path = tmp_path / "set"
    put(path, 10)
    shutil.rmtree(path / "manifests")
    with pytest.raises(KeyError), ShardWriter(path, SCHEMA, replace=True) as writer:
        writer.write(sample(0))
        raise KeyError
    assert numbers(path) == list(range(10))
    put(path, 3, replace=True)
    assert numbers(path) == [0, 1, 2]
    manifest = shardload.open(path).manifest
    assert (manifest.version, manifest.generations[0].generation) == (2, 2)


@pytest.mark.parametrize("data", [b'{"name":"my web app"}', b"", b"\0" * 100, b"x" * (2 << 20)])
def test_a_foreign_manifest_json_is_never_overwritten(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(PackError, match=r"manifest\.json is not a manifest of shardload"):
        put(tmp_path, 1, replace=True)
    assert os.listdir(tmp_path) == ["manifest.json"] and (tmp_path / "manifest.json").read_bytes() == data


def test_a_directory_in_the_place_of_manifest_json(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(PackError, match=r"manifest\.json is not a regular file"):
        put(tmp_path, 1, replace=True)
    assert os.listdir(tmp_path) == ["manifest.json"]


# Between the commit and the copy of the manifest.


class FailsAtTheCopy(Operations):
    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def replace(self, source: str, target: str) -> None:
        if target.endswith("manifest.json"):
            raise self._error(errno.EIO, "Input/output error")
        super().replace(source, target)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_an_error_after_the_commit_tells_what_opens(tmp_path: Path) -> None:
    path = tmp_path / "set"
    put(path, 10)
    with pytest.raises(PackError, match=r"version 2 is there whole, but manifest\.json is still version 1: open gives"):
        put(path, 20, replace=True, operations=FailsAtTheCopy(OSError))
    assert len(shardload.open(path)) == 10 and len(shardload.open(path, version=2)) == 20


def test_an_error_after_the_first_commit_opens_it(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="version 1 is there whole, but may not survive a power loss"):
        put(tmp_path / "set", 5, operations=FailsAtTheCopy(OSError))
    assert len(shardload.open(tmp_path / "set")) == 5 and not verify_dataset(tmp_path / "set")


def test_a_kill_between_commit_and_copy(tmp_path: Path) -> None:
    path = tmp_path / "set"
    put(path, 10)
    assert in_child(lambda: put(path, 20, replace=True, operations=KilledAt("replace", "manifest.json"))) == 9
    assert numbers(path) == list(range(10))
    (damage,) = verify_dataset(path)
    assert damage.file == "manifest.json" and not damage.sample_ids
    assert "manifest.json is version 1, but version 2 was committed after it" in damage.message
    assert sorted(os.listdir(path / "manifests")) == ["1", "2"]
    put(path, 30, replace=True)
    assert numbers(path) == list(range(30)) and shardload.open(path).manifest.version == 3
    assert len(shardload.open(path, version=2)) == 20 and not verify_dataset(path)


def test_the_copy_made_by_hand(tmp_path: Path) -> None:
    """What the message of verify says."""
    path = tmp_path / "set"
    put(path, 10)
    with pytest.raises(PackError):
        put(path, 20, replace=True, operations=FailsAtTheCopy(OSError))
    shutil.copy(path / "manifests/2", path / "manifest.json")
    assert numbers(path) == list(range(20)) and not verify_dataset(path)


# File systems without hard links.


class KilledAt(Operations):
    """Ends the process at an operation on a path, after half of a write."""

    def __init__(self, operation: str, name: str, links: bool = True) -> None:
        self._operation, self._name, self._links = operation, name, links

    def link(self, source: str, target: str) -> None:
        if not self._links:
            raise OSError(errno.EPERM, "no links here")
        super().link(source, target)

    def replace(self, source: str, target: str) -> None:
        if self._operation == "replace" and target.endswith(self._name):
            os._exit(9)
        super().replace(source, target)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._operation == "write" and self._name in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.write(descriptor, data[: len(data) // 2])
            os._exit(9)
        return super().write(descriptor, data)


@pytest.mark.parametrize("there", [0, 1, 2])
def test_a_manifest_cut_off_half_way_was_not_committed(tmp_path: Path, there: int) -> None:
    path = tmp_path / "set"
    for number in range(there):
        put(path, 10 + number, replace=True)
    half = path / f"manifests/{there + 1}"
    assert in_child(lambda: put(path, 20, replace=True, operations=KilledAt("write", "/manifests/", links=False))) == 9
    assert half.stat().st_size > 0
    if there:
        assert len(numbers(path)) == 9 + there
        (damage,) = verify_dataset(path)
        assert damage.file == f"manifests/{there + 1}" and "was not finished" in damage.message
    with pytest.raises(PackError, match="choose another target, or replace it"):
        put(path, 20)
    assert half.exists()
    put(path, 30, replace=True)
    assert numbers(path) == list(range(30)) and not verify_dataset(path)
    assert shardload.open(path).manifest.version == there + 1


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("version", [1, 2])
def test_a_damaged_manifest_that_was_committed_stays(tmp_path: Path, version: int) -> None:
    """An older one, or the one that manifest.json is a copy of."""
    path = tmp_path / "set"
    put(path, 10)
    put(path, 20, replace=True)
    damaged(path / f"manifests/{version}")
    before = (path / f"manifests/{version}").read_bytes()
    with pytest.raises(shardload.FormatError, match=f"manifests/{version}"):
        put(path, 30, replace=True)
    assert (path / f"manifests/{version}").read_bytes() == before and numbers(path) == list(range(20))


def test_a_manifest_of_a_later_format_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "set"
    put(path, 10)
    later = b'{"manifest":{"draft":99,"format":"shardload"}}'
    (path / "manifests/2").write_bytes(later)
    with pytest.raises(shardload.UnsupportedVersionError, match=r"later version of the format .*99"):
        put(path, 30, replace=True)
    assert (path / "manifests/2").read_bytes() == later


def test_without_locks_nobody_takes_a_manifest_for_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    put(tmp_path, 10)
    (tmp_path / "manifests/2").write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(shardload.FormatError, match="manifests/2"):
        put(tmp_path, 30, replace=True)
    assert (tmp_path / "manifests/2").read_bytes() == b"half"


# Writers that are dropped.


def test_a_writer_that_is_dropped_says_so_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "set"
    writer = ShardWriter(path, SCHEMA)
    writer.write(sample(0))
    with pytest.warns(ResourceWarning, match=r"set: a ShardWriter was dropped without close\(\) or abandon\(\)"):
        del writer
        gc.collect()
    assert not path.exists()
    put(path, 3)
    assert numbers(path) == [0, 1, 2]


@pytest.mark.parametrize("end", ["close", "abandon", "never begun", "refused"])
def test_a_writer_that_has_ended_says_nothing_when_dropped(tmp_path: Path, end: str) -> None:
    path = tmp_path / "set"
    writer = ShardWriter(path, SCHEMA)
    if end == "refused":
        put(path, 1)
        with pytest.raises(PackError, match="holds a dataset"):
            writer.write(sample(0))
    elif end != "never begun":
        writer.write(sample(0))
        getattr(writer, end)()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del writer
        with pytest.raises(ValueError, match="shard_size"):
            ShardWriter(path, SCHEMA, shard_size=0)
        gc.collect()


def test_a_writer_dropped_by_a_forked_child_stays_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "set"
    writers = [ShardWriter(path, SCHEMA)]
    writers[0].write(sample(0))

    def dropped() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            writers.clear()
            gc.collect()

    assert in_child(dropped) == 0
    assert locked(path)
    writers[0].close()
    assert numbers(path) == [0]


def test_a_target_that_is_dropped_releases_the_lock(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    target = Target(str(tmp_path), "create", OPERATIONS)
    assert locked(tmp_path)
    del target
    gc.collect()
    assert not locked(tmp_path) and len(os.listdir("/proc/self/fd")) <= before
