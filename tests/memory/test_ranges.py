"""Many ranges by one call: the same with the compiled part and without it, and nothing outside the memory is read."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import extend
from hypothesis import given
from hypothesis import strategies as st
from threads import at_once

from shardload.memory import ranges
from shardload.memory.ranges import add_up, copied_and_added_up, gather, slices, texts

DATA = np.random.default_rng(0).bytes(40_000)
# Runs of ASCII between characters of two to four bytes, which ranges may cut.
TEXT = "".join("plain " * (i % 400) + "äß€😀"[i % 4] for i in range(200)).encode()
SPANS = st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 40_000)).map(sorted), max_size=20)
compiled = pytest.mark.skipif(ranges._ranges is None, reason="shardload was installed without a C compiler")
summing = pytest.mark.skipif(not ranges.SUMS, reason="there is no C compiler, or no instruction for CRC32C")


BUILDS = ["compiled", "narrow"]


@functools.cache
def narrow() -> Any:
    """Returns the compiled part as it is on processors without wide registers."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source, include = Path(ranges.__file__).parent / "_ranges.c", sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "_ranges.so"
        options = ["-O1", "-DNARROW", "-fPIC", "-shared", f"-I{include}", "-o", made]
        subprocess.run(["cc", source, *options], check=True, timeout=120)
        spec = importlib.util.spec_from_file_location("_ranges", made)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def use(patch: pytest.MonkeyPatch, how: str) -> None:
    if how != "compiled":
        patch.setattr(ranges, "_ranges", narrow() if how == "narrow" else None)


def table_of(spans: list[list[int]]) -> tuple[Any, Any]:
    """Returns columns of a table, which do not lie end to end."""
    table = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def in_memory(data: bytes) -> Any:
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def outcome(read: Any) -> Any:
    try:
        return read()
    except UnicodeDecodeError:
        return "no text"


def test_the_compiled_part_is_there_where_it_can_be_made() -> None:
    """Else all would pass without it."""
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if shutil.which("cc") is None or not headers:
        pytest.skip("no C compiler, or no headers of this Python")
    assert ranges.COPIES_UNLOCKED


@pytest.mark.parametrize("how", [*BUILDS, "plain"])
@given(spans=SPANS)
def test_slices_are_those_of_python(how: str, spans: list[list[int]]) -> None:
    """Short ones and those past the caches, at any alignment, of bytes and of memory at an address."""
    wanted = [DATA[start:stop] for start, stop in spans]
    with pytest.MonkeyPatch.context() as patch:
        use(patch, how)
        for source in (DATA, in_memory(DATA)):
            found = slices(source, *table_of(spans))
            assert found == wanted and all(type(one) is bytes for one in found)


@pytest.mark.parametrize("how", [*BUILDS, "plain"])
@given(spans=SPANS, ascii_only=st.booleans())
def test_texts_are_those_of_python(how: str, spans: list[list[int]], ascii_only: bool) -> None:
    """Of any width, also where a range ends in the midst of a character: then it is no text."""
    data = TEXT.decode().encode("ascii", "replace") if ascii_only else TEXT
    spans = [[min(start, len(data)), min(stop, len(data))] for start, stop in spans]
    with pytest.MonkeyPatch.context() as patch:
        use(patch, how)
        for source in (data, in_memory(data)):
            whole = [spans, *([span] for span in spans)]
            for some in whole:
                wanted = outcome(lambda some=some: [data[start:stop].decode() for start, stop in some])
                found = outcome(lambda source=source, some=some: texts(source, *table_of(some)))
                assert found == wanted and (found == "no text" or all(type(one) is str for one in found))


@compiled
@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("place", [*range(0, 140, 7), 63, 64, 126, 127])
def test_one_character_in_much_ascii_is_seen_wherever_it_is(
    how: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of strings that are copied by pieces of 64 bytes or looked at by words."""
    use(monkeypatch, how)
    data = b"a" * place + "é".encode() + b"b" * (140 - place)
    assert texts(data, np.array([0, 0]), np.array([len(data), place])) == [data.decode(), "a" * place]
    assert texts(b"\xff" + data, np.array([1]), np.array([1 + len(data)])) == [data.decode()]


@compiled
def test_single_characters_and_nothing_are_the_interpreter_s_own() -> None:
    found = texts(b"abc", np.array([0, 1, 2, 3]), np.array([0, 2, 3, 3]))
    assert found == ["", "b", "c", ""] and found[1] is chr(98) and found[0] is found[3]


@summing
@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("size", [4079, 4080, 4081, 4096, 8159, 8160, 8161, 20_000, 39_990])
def test_the_sum_of_one_long_range_is_that_of_the_library(how: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none beside it: stripes of it are summed side by side."""
    use(monkeypatch, how)
    for start in (0, 1, 7):
        starts, before = np.array([start]), np.array([0xDEADBEEF], dtype=np.uint32)
        wanted = extend(0xDEADBEEF, DATA[start : start + size])
        assert add_up(DATA, starts, starts + size, before).tolist() == [wanted]
        values, sums = copied_and_added_up(DATA, starts, starts + size, 0, before, as_text=False)
        assert values == [DATA[start : start + size]] and sums.tolist() == [wanted]


@compiled
def test_ranges_of_more_bytes_than_can_be_counted_are_refused() -> None:
    """Their number of bytes would start anew from below nothing."""
    memory = (ctypes.c_char * (1 << 45)).from_address(1 << 12)
    starts, stops = np.zeros(1 << 19, dtype=np.int64), np.full(1 << 19, 1 << 45, dtype=np.int64)
    for count in (1 << 18, 1 << 19):
        with pytest.raises(ValueError, match="too many bytes"):
            gather(memory, starts[:count], stops[:count], np.empty(0, dtype=np.uint8))


@summing
@pytest.mark.parametrize("how", BUILDS)
@given(spans=SPANS, head=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_sums_are_those_of_the_library(how: str, spans: list[list[int]], head: int, seed: int) -> None:
    """Continued from others, of ranges of any lengths side by side; what was copied meanwhile is the same."""
    spans = [[max(head, start), max(head, stop)] for start, stop in spans]
    before = (np.arange(len(spans), dtype=np.uint32) * np.uint32(2_654_435_761)) ^ np.uint32(seed)
    kept = before.copy()
    memory, (starts, stops) = in_memory(DATA), table_of(spans)
    wanted = [extend(int(b), DATA[start:stop]) for b, (start, stop) in zip(before, spans, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        use(patch, how)
        assert add_up(memory, starts, stops, before).tolist() == wanted
        values, sums = copied_and_added_up(memory, starts, stops, head, before, as_text=False)
    assert values == [DATA[start:stop] for start, stop in spans]
    assert sums.tolist() == [
        extend(int(b), DATA[start - head : stop]) for b, (start, stop) in zip(before, spans, strict=True)
    ]
    assert before.tolist() == kept.tolist()


@summing
@pytest.mark.parametrize("how", BUILDS)
@given(spans=SPANS)
def test_text_is_decoded_as_it_is_summed(how: str, spans: list[list[int]]) -> None:
    spans = [[min(start, len(TEXT)), min(stop, len(TEXT))] for start, stop in spans]
    before = np.arange(len(spans), dtype=np.uint32)
    wanted = outcome(
        lambda: (
            [TEXT[start:stop].decode() for start, stop in spans],
            [extend(i, TEXT[start:stop]) for i, (start, stop) in enumerate(spans)],
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        use(patch, how)
        found = outcome(lambda: copied_and_added_up(in_memory(TEXT), *table_of(spans), 0, before, as_text=True))
    assert found == "no text" if wanted == "no text" else (found[0], found[1].tolist()) == wanted


def gathered(memory: Any, starts: Any, stops: Any, skip: int, summed: bool) -> tuple[bytes, list[int] | None]:
    """Returns what lies in the target, whose bytes beside it must stay as they are."""
    size = int((stops - starts).sum())
    lines = np.full(size + 256, 7, dtype=np.uint8)
    first = -lines.ctypes.data % 64 + skip
    target, sums = lines[first : first + size], np.full(len(starts), 9, np.uint32) if summed else None
    gather(memory, starts, stops, target, sums)
    assert (lines[:first] == 7).all() and (lines[first + size :] == 7).all()
    return target.tobytes(), None if sums is None else sums.tolist()


@compiled
@pytest.mark.parametrize("how", BUILDS)
@given(spans=SPANS, skip=st.integers(0, 80), summed=st.booleans())
def test_ranges_are_gathered_one_behind_the_other(how: str, spans: list[list[int]], skip: int, summed: bool) -> None:
    """To any alignment, and nowhere else."""
    values, summed = [DATA[start:stop] for start, stop in spans], summed and ranges.SUMS
    with pytest.MonkeyPatch.context() as patch:
        use(patch, how)
        found = gathered(in_memory(DATA), *table_of(spans), skip, summed)
    assert found == (b"".join(values), [extend(0, value) for value in values] if summed else None)


@compiled
@pytest.mark.parametrize("skip", [0, 16])
@pytest.mark.parametrize("size", [64, 512, 1024, 4096, 4160])
def test_more_than_stays_in_caches_is_gathered(size: int, skip: int) -> None:
    """Which goes past them, if the rows are whole lines that lie on lines."""
    rng, count = np.random.default_rng(size), (9 << 20) // size
    data = rng.integers(0, 256, 1 << 20, np.uint8)
    starts = rng.integers(0, len(data) - size, count)
    wanted = data[starts[:, None] + np.arange(size)].tobytes()
    assert gathered(data, starts, starts + size, skip, False)[0] == wanted
    if ranges.SUMS:
        assert gathered(data, starts, starts + size, skip, True) == (
            wanted,
            [extend(0, wanted[i : i + size]) for i in range(0, len(wanted), size)],
        )


@compiled
def test_other_targets_and_ranges_outside_are_refused() -> None:
    starts, stops, sums = np.array([0, 10]), np.array([4, 20]), np.zeros(2, np.uint32)
    target = np.zeros(14, np.uint8)
    for size in (13, 15):
        with pytest.raises(ValueError, match=f"the ranges have 14 bytes, and the target has {size}"):
            gather(DATA, starts, stops, np.zeros(size, np.uint8))
    with pytest.raises(ValueError, match="bytes 10 to 40020 are not within 40000"):
        gather(DATA, starts, np.array([4, 40_020]), target)
    with pytest.raises((BufferError, ValueError), match=r"writable|read-only|not.*write"):
        gather(DATA, starts, stops, np.frombuffer(bytes(14), np.uint8))
    if ranges.SUMS:
        with pytest.raises(ValueError, match="sums must be uint32, one a range"):
            gather(DATA, starts, stops, target, sums[:1])
    assert not target.any()


@compiled
@pytest.mark.parametrize("how", [slices, texts])
@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 40_001), (2**62, 2**63 - 1), (-(2**63), 0)])
def test_nothing_outside_is_read(how: Any, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"bytes {start} to {stop} are not within 40000"):
        how(DATA, np.array([0, start]), np.array([9, stop]))


@summing
@pytest.mark.parametrize(
    ("heads", "sums", "message"),
    [
        ([0, 4], np.zeros(2, np.uint32), "there are no 4 bytes before byte 3"),
        ([0, -1], np.zeros(2, np.uint32), "there are no -1 bytes before byte 3"),
        ([0], np.zeros(2, np.uint32), "heads must be int64, one a range"),
        ([0, 0], np.zeros(3, np.uint32), "sums must be uint32, one a range"),
        ([0, 0], np.zeros(1, np.uint32), "sums must be uint32, one a range"),
    ],
)
def test_other_sums_are_refused(heads: list[int], sums: Any, message: str) -> None:
    starts, stops = np.array([9, 3]), np.array([20, 30])
    with pytest.raises(ValueError, match=message):
        ranges._ranges.slices(DATA, starts, stops, np.array(heads, dtype=np.int64), sums)
    with pytest.raises(ValueError, match="sums must be uint32, one a range"):
        ranges._ranges.add_up(DATA, starts, stops, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="not within"):
        ranges._ranges.add_up(DATA, starts, stops + 40_000, np.zeros(2, np.uint32))


@compiled
@pytest.mark.parametrize("bad", [(np.array([0, 1]), np.array([1])), (np.zeros(1, np.int8), np.ones(1, np.int8))])
def test_other_arrays_are_refused(bad: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="starts and stops must be int64 and equally many"):
        slices(DATA, *bad)


@compiled
@pytest.mark.parametrize("how", ["bytes", "text", "summed"])
def test_several_threads_copy_much_at_once(how: str) -> None:
    """More than is copied with the interpreter's lock held."""
    if how == "summed" and not ranges.SUMS:
        pytest.skip("no instruction for CRC32C")
    data = bytes(np.random.default_rng(1).integers(32, 127, 3 << 20, dtype=np.uint8))
    starts = np.arange(0, 3 << 20, 10_007)
    stops = np.minimum(starts + 30_000, len(data))
    spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
    wanted: Any = [data[a:b].decode() if how == "text" else data[a:b] for a, b in spans]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            if how == "summed":
                found, sums = copied_and_added_up(data, starts, stops, 0, np.zeros(len(spans), np.uint32), False)
                wrong.extend([1] * (sums.tolist() != [extend(0, value) for value in wanted]))
            else:
                found = texts(data, starts, stops) if how == "text" else slices(data, starts, stops)
            wrong.extend([1] * (found != wanted))

    at_once(work)
    assert not wrong
