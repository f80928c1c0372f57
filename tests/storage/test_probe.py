"""Files to measure with: unnamed, past the page cache where that goes, and honest where it does not."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from shardload.errors import StorageError
from shardload.storage.probe import ALIGNMENT_BYTES, ProbeFile, aligned_buffer, room_of
from shardload.storage.residency import resident_fraction

PAGE = ALIGNMENT_BYTES


def filled(file: ProbeFile, num_pages: int) -> mmap.mmap:
    buffer = aligned_buffer(num_pages * PAGE)
    buffer.write(os.urandom(len(buffer)))
    file.append(memoryview(buffer))
    return buffer


@pytest.mark.parametrize("direct", [True, False])
def test_what_was_written_is_read_at_any_page(tmp_path, direct):
    with ProbeFile(str(tmp_path), direct=direct) as file:
        first, second = filled(file, 3), filled(file, 2)
        file.sync()
        assert file.num_bytes == 5 * PAGE
        back = aligned_buffer(4 * PAGE)
        file.read_into(memoryview(back), PAGE)
        assert back[:] == first[PAGE:] + second[:]
        with pytest.raises(StorageError, match="a read of 16384 bytes returned 8192"):
            file.read_into(memoryview(back), 3 * PAGE)
        assert os.listdir(tmp_path) == []


def test_a_file_is_gone_when_it_is_closed(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with ProbeFile(str(tmp_path)) as file:
        filled(file, 1)
    file.close()
    assert set(os.listdir("/proc/self/fd")) == before and os.listdir(tmp_path) == []


def test_pages_in_memory_are_seen_and_dropped(tmp_path):
    with ProbeFile(str(tmp_path), direct=False) as file:
        filled(file, 64)
        file.sync()
        descriptor = file._file.fileno()
        assert resident_fraction(descriptor, file.num_bytes) == 1
        if room_of(str(tmp_path)).file_system != "tmpfs":
            assert file.drop(random=True) == 0
            file.read_into(memoryview(aligned_buffer(PAGE)), 0)
            assert 0 < resident_fraction(descriptor, file.num_bytes) < 1


def test_direct_reads_leave_nothing_in_memory(tmp_path):
    with ProbeFile(str(tmp_path)) as file:
        if not file.direct or room_of(str(tmp_path)).file_system == "tmpfs":
            pytest.skip("the file system of the temporary folder has no direct reads")
        buffer = filled(file, 64)
        file.read_into(memoryview(buffer), 0)
        assert resident_fraction(file._file.fileno(), file.num_bytes) == 0


def test_files_in_memory_cannot_be_dropped():
    if not Path("/dev/shm").is_dir() or room_of("/dev/shm").file_system != "tmpfs":
        pytest.skip("there is no file system in memory")
    with ProbeFile("/dev/shm") as file:
        filled(file, 4)
        assert file.drop(random=False) == 1


@pytest.mark.parametrize("refused", ["flag", "write"])
def test_without_direct_reads_it_goes_through_the_page_cache(tmp_path, monkeypatch, refused):
    if refused == "flag":
        real = fcntl.fcntl

        def control(descriptor, command, *arguments):
            if command == fcntl.F_SETFL and arguments[0] & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(descriptor, command, *arguments)

        monkeypatch.setattr(fcntl, "fcntl", control)
    else:
        write = os.pwrite

        def pwrite(descriptor, data, offset):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return write(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
    with ProbeFile(str(tmp_path)) as file:
        assert not file.direct
        buffer = filled(file, 2)
        back = aligned_buffer(2 * PAGE)
        file.read_into(memoryview(back), 0)
        assert back[:] == buffer[:]


def test_a_full_disk_and_a_missing_directory_are_named(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"nothing: cannot be measured: No such file or directory"):
        ProbeFile(str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match=r"nothing: cannot be measured"):
        room_of(str(tmp_path / "nothing"))
    file = ProbeFile(str(tmp_path), direct=False)

    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with file, pytest.raises(StorageError, match="cannot be measured: No space left on device"):
        filled(file, 1)


def test_the_room_is_that_of_the_directory(tmp_path):
    room, facts = room_of(str(tmp_path)), os.statvfs(tmp_path)
    assert room.free_bytes == pytest.approx(facts.f_bavail * facts.f_frsize, rel=0.1)
    names = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert room.file_system in names
    assert room_of("/proc").file_system == "proc"
