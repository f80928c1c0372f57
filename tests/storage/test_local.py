from __future__ import annotations

import copy
import errno
import gc
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError, StorageError
from shardload.storage import FileWriter, LocalStorage, Operations, local, mapping

DATA = np.random.default_rng(0).bytes(10_000)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "file").write_bytes(DATA)
    return LocalStorage(str(tmp_path))


def path_of(storage: LocalStorage, name: str) -> Path:
    return Path(storage.path(name))


def test_reads_at_offsets(storage: LocalStorage) -> None:
    reader = storage.open("file", len(DATA))
    assert reader.num_bytes == len(DATA)
    for start, stop in ((0, 10_000), (0, 1), (9_999, 10_000), (17, 4242), (5, 5), (10_000, 10_000)):
        buffer = np.full(stop - start + 2, 7, np.uint8)
        reader.read_into(buffer[1:-1].data, start)
        assert buffer[1:-1].tobytes() == DATA[start:stop] == reader.read(start, stop)
        assert buffer[0] == buffer[-1] == 7
    rows = np.zeros((4, 25), np.uint8)
    reader.read_into(rows.data.cast("B"), 100)
    assert rows.tobytes() == DATA[100:200]
    reader.will_need(0, 10)


def test_reads_in_several_pieces(tmp_path: Path) -> None:
    class Short(Operations):
        def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            return super().preadv(descriptor, [buffers[0][:777]], offset)

    (tmp_path / "file").write_bytes(DATA)
    assert LocalStorage(str(tmp_path), Short()).open("file").read(3, 9_000) == DATA[3:9_000]


@given(st.lists(st.integers(0, 300), max_size=8))
def test_writes_begin_and_end_on_large_pages(sizes: list[int]) -> None:
    """Then the page cache has them in pieces that are mapped by one entry. Whatever sizes come, the file is what was given."""
    assert local._WRITE_BYTES == mapping._LARGE_PAGE_BYTES
    large, calls = 64, []

    class Noted(Operations):
        def write(self, descriptor: int, data: memoryview) -> int:
            calls.append(len(data))
            return super().write(descriptor, data)

    rng = np.random.default_rng(len(sizes))
    pieces = [rng.bytes(size) for size in sizes]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(local, "_WRITE_BYTES", large):
        with FileWriter(f"{folder}/new", Noted()) as writer:
            for piece in pieces:
                writer.write(piece)
            assert writer.num_bytes == sum(sizes)
            digest = writer.finish()
        content = Path(folder, "new").read_bytes()
    assert content == b"".join(pieces) and digest == hashlib.sha256(content).digest()
    assert not [size for size in calls[:-1] if size % large or not size]


def test_reads_from_several_threads(storage: LocalStorage) -> None:
    reader = storage.open("file")
    wrong: list[int] = []

    def read(number: int) -> None:
        for start in range(number, 9_000, 97):
            if reader.read(start, start + 500) != DATA[start : start + 500]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cut_under_the_reader(storage: LocalStorage) -> None:
    reader = storage.open("file", len(DATA))
    os.truncate(path_of(storage, "file"), 5_000)
    assert reader.read(4_000, 5_000) == DATA[4_000:5_000]
    for start, stop in ((4_000, 5_001), (5_000, 5_001), (9_000, 10_000)):
        with pytest.raises(StorageError, match=f"ended at byte 5000 .* {start} to {stop}|ended at byte 9000") as caught:
            reader.read(start, stop)
        error = caught.value
        assert (error.dataset, error.shard, error.start, error.stop) == (storage.root, "file", start, stop)


def test_replaced_under_the_reader(storage: LocalStorage) -> None:
    reader = storage.open("file")
    path_of(storage, "other").write_bytes(bytes(10_000))
    os.replace(path_of(storage, "other"), path_of(storage, "file"))
    assert reader.read(0, 10_000) == DATA
    path_of(storage, "file").unlink()
    assert reader.read(0, 10_000) == DATA


def test_missing(storage: LocalStorage) -> None:
    for name in ("nothing", "nothing/file", "dangling"):
        if name == "dangling":
            os.symlink("nowhere", path_of(storage, name))
        with pytest.raises(StorageError, match="is missing") as caught:
            storage.open(name)
        assert (caught.value.dataset, caught.value.shard) == (storage.root, name)
    with pytest.raises(StorageError, match="cannot be read"):
        storage.open("file/inner")


def test_what_is_no_regular_file(storage: LocalStorage) -> None:
    path_of(storage, "directory").mkdir()
    os.mkfifo(path_of(storage, "fifo"))  # waits for its writer, if opened without care
    for name in ("directory", "fifo"):
        with pytest.raises(StorageError, match="not a regular file"):
            storage.open(name)
        with pytest.raises(StorageError, match="not a regular file"):
            storage.read_small(name, 10)
    with pytest.raises(StorageError, match="not a regular file"):
        LocalStorage("/dev").open("null")


def test_another_size(storage: LocalStorage) -> None:
    for size in (0, 9_999, 10_001, 1 << 48):
        with pytest.raises(FormatError, match=f"10000 bytes instead of {size}"):
            storage.open("file", size)


def test_small_files(storage: LocalStorage) -> None:
    assert storage.read_small("file", 10_000) == DATA
    with pytest.raises(FormatError, match="at most 9999"):
        storage.read_small("file", 9_999)
    with path_of(storage, "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="1099511627776 bytes"):
        storage.read_small("sparse", 1 << 20)


def test_failing_device(tmp_path: Path) -> None:
    class Broken(Operations):
        def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").write_bytes(DATA)
    with pytest.raises(StorageError, match="file cannot be read at bytes 3 to 7: Input/output error") as caught:
        LocalStorage(str(tmp_path), Broken()).open("file").read(3, 7)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.start, again.stop) == (str(caught.value), 3, 7) and type(again) is StorageError


def test_descriptors_are_closed(storage: LocalStorage) -> None:
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    readers = [storage.open("file") for _ in range(5)]
    assert count() == before + 5
    readers.clear()
    assert count() == before
    path_of(storage, "directory").mkdir()
    for name, size in (("file", 3), ("directory", None), ("nothing", None)):
        with pytest.raises((StorageError, FormatError)):
            storage.open(name, size)
    assert count() == before


def test_storage_is_a_value(storage: LocalStorage) -> None:
    for other in (pickle.loads(pickle.dumps(storage)), copy.copy(storage)):
        assert other.open("file").read(0, 9) == DATA[:9]


# Writing.


@pytest.mark.parametrize("sizes", [[], [0], [1], [1 << 20], [(1 << 20) - 1, 1, 1], [3 << 20], [700_000] * 5])
def test_writes(tmp_path: Path, sizes: list[int]) -> None:
    parts = [np.random.default_rng(number).bytes(size) for number, size in enumerate(sizes)]
    with FileWriter(str(tmp_path / "new")) as writer:
        for part in parts:
            writer.write(part)
        writer.pad_to(sum(sizes) + 100)
        assert writer.num_bytes == sum(sizes) + 100
        digest = writer.finish()
    data = b"".join(parts) + bytes(100)
    assert (tmp_path / "new").read_bytes() == data and digest == hashlib.sha256(data).digest()


def test_what_is_not_finished_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), FileWriter(str(tmp_path / "new")) as writer:
        writer.write(DATA)
        raise KeyError
    assert not list(tmp_path.iterdir())
    writer.abandon()


def test_a_file_that_is_there_is_not_written_over(storage: LocalStorage) -> None:
    with pytest.raises(FileExistsError):
        FileWriter(storage.path("file"))
    with pytest.raises(FileExistsError):
        storage.write("file", b"x")
    os.symlink("elsewhere", path_of(storage, "link"))
    with pytest.raises(FileExistsError):
        storage.write("link", b"x")
    assert storage.read_small("file", 1 << 20) == DATA and not path_of(storage, "elsewhere").exists()


def test_exclusive_creation(storage: LocalStorage) -> None:
    storage.write("one", b"1")
    storage.write("two", b"2")
    storage.make_directory("inner")
    assert storage.create_exclusively("inner/name", "one")
    assert not storage.create_exclusively("inner/name", "two")
    assert storage.read_small("inner/name", 9) == b"1"


def test_exclusive_creation_by_many(storage: LocalStorage) -> None:
    won: list[int] = []
    for number in range(8):
        storage.write(str(number), str(number).encode())

    def create(number: int) -> None:
        if storage.create_exclusively("name", str(number)):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and storage.read_small("name", 9) == str(won[0]).encode()


def test_exclusive_creation_without_hard_links(tmp_path: Path) -> None:
    class NoLinks(Operations):
        def link(self, source: str, target: str) -> None:
            raise OSError(errno.EPERM, "no links here")

    storage = LocalStorage(str(tmp_path), NoLinks())
    storage.write("one", b"1")
    storage.write("two", b"2")
    assert storage.create_exclusively("name", "one") and not storage.create_exclusively("name", "two")
    assert storage.read_small("name", 9) == b"1"


def test_directories(storage: LocalStorage) -> None:
    assert storage.list("") == ["file"] and storage.list("nothing") == [] and storage.list("file") == []
    storage.make_directory("inner")
    storage.make_directory("inner")
    storage.write("inner/b", b"")
    storage.write("inner/a", b"")
    assert storage.list("inner") == ["a", "b"]
    os.symlink("nowhere", path_of(storage, "dangling"))
    assert storage.exists("inner") and storage.exists("dangling") and not storage.exists("nothing")


def test_a_reader_that_outlives_everything_goes_without_a_word(storage: LocalStorage) -> None:
    """As those do that hang on a cache of some module: this one's globals are gone before theirs."""
    program = (
        "import functools, sys; from shardload.storage import LocalStorage\n"
        "functools.kept = LocalStorage(sys.argv[1]).open('file', None)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, storage.root], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stderr == ""
