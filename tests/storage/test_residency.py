"""What part of a file is in memory: the same whether the system counts it or each page is visited."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardload.storage import residency
from shardload.storage.residency import resident_fraction

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("counted", [True, False])
def test_the_pages_of_a_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool) -> None:
    if not counted:
        monkeypatch.setattr(residency, "_num_cached", lambda descriptor, num_bytes: 0)
    path = tmp_path / "file"
    # The last page is not full.
    path.write_bytes(bytes(63 * PAGE + 100))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert resident_fraction(descriptor, 63 * PAGE + 100) == 1
        assert resident_fraction(descriptor, 5) == 1
        assert resident_fraction(descriptor, 0) == 0
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if resident_fraction(descriptor, 64 * PAGE):
            pytest.skip("the file system of the temporary folder keeps files in memory")
        os.pread(descriptor, 10, 5 * PAGE)
        assert 0 < resident_fraction(descriptor, 64 * PAGE) < 0.5
    finally:
        os.close(descriptor)


def test_of_a_descriptor_that_is_none_nothing_is_told() -> None:
    read, write = os.pipe()
    os.close(write)
    assert resident_fraction(read, PAGE) is None
    os.close(read)
    assert resident_fraction(read, PAGE) is None
