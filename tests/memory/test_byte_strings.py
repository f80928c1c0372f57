"""Many slices by one call: the same with the compiled part and without it, and nothing outside what they are taken of."""

from __future__ import annotations

import ctypes
import shutil
import sysconfig
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.memory import byte_strings
from shardload.memory.byte_strings import slices

DATA = np.random.default_rng(0).bytes(40_000)
SPANS = st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 40_000)).map(sorted), max_size=20)
compiled = pytest.mark.skipif(byte_strings._slices is None, reason="shardload was installed without a C compiler")


def test_the_compiled_part_is_there_where_it_can_be_made() -> None:
    """Else all would pass without it."""
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if shutil.which("cc") is None or not headers:
        pytest.skip("no C compiler, or no headers of this Python")
    assert byte_strings.COPIES_UNLOCKED


@pytest.mark.parametrize("how", ["compiled", "plain"])
@given(spans=SPANS)
def test_slices_are_those_of_python(how: str, spans: list[list[int]]) -> None:
    """Short ones and those past the caches, at any alignment, of bytes and of memory at an address; columns of a table, too."""
    table = np.array(spans, dtype=np.int64).reshape(-1, 2)
    wanted = [DATA[start:stop] for start, stop in spans]
    memory = (ctypes.c_char * len(DATA)).from_buffer_copy(DATA)
    with pytest.MonkeyPatch.context() as patch:
        if how == "plain":
            patch.setattr(byte_strings, "_slices", None)
        for source in (DATA, memory):
            found = slices(source, table[:, 0], table[:, 1])
            assert found == wanted and all(type(one) is bytes for one in found)


@compiled
@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 40_001), (2**62, 2**63 - 1), (-(2**63), 0)])
def test_nothing_outside_is_read(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"bytes {start} to {stop} are not within 40000"):
        slices(DATA, np.array([0, start]), np.array([9, stop]))


@compiled
@pytest.mark.parametrize("bad", [(np.array([0, 1]), np.array([1])), (np.zeros(1, np.int8), np.ones(1, np.int8))])
def test_other_arrays_are_refused(bad: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="starts and stops must be int64 and equally many"):
        slices(DATA, *bad)


@compiled
def test_several_threads_copy_much_at_once() -> None:
    """More than is copied with the interpreter's lock held."""
    data = np.random.default_rng(1).bytes(3 << 20)
    starts = np.arange(0, 3 << 20, 10_007)
    stops = np.minimum(starts + 30_000, len(data))
    wanted, wrong = [data[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)], []

    def work() -> None:
        for _ in range(5):
            wrong.extend([1] * (slices(data, starts, stops) != wanted))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
