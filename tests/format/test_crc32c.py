"""CRC32C by either library: the same sums, with and without the one that is optional."""

from __future__ import annotations

import sys

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.format.crc32c import LONG_BYTES, _long_sum, crc32c


@given(st.integers(0, 2**32 - 1), st.integers(0, 3 * LONG_BYTES), st.integers(0, 9), st.booleans())
def test_sums_are_those_of_the_other_library(start: int, size: int, skipped: int, as_bytes: bool) -> None:
    data = np.random.default_rng(size).integers(0, 256, skipped + size, dtype=np.uint8)[skipped:]
    assert crc32c(start, data.tobytes() if as_bytes else data) == google_crc32c.extend(start, data.tobytes())


def test_long_ones_come_from_the_library_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(LONG_BYTES).astype(np.uint8)
    expected = google_crc32c.extend(7, data)
    asked: list[int] = []
    checksums = pytest.importorskip("awscrt.checksums")
    real = checksums.crc32c
    monkeypatch.setattr(checksums, "crc32c", lambda data, start: (asked.append(len(data)), real(data, start))[1])
    try:
        _long_sum.cache_clear()
        assert crc32c(7, data) == expected and crc32c(7, data[1:]) == google_crc32c.extend(7, data[1:])
        assert asked == [LONG_BYTES]
        monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
        _long_sum.cache_clear()
        assert crc32c(7, data) == expected and asked == [LONG_BYTES]
    finally:
        _long_sum.cache_clear()
