"""What a directory reaches, at small sizes: whether it is right is told by what is there, not by a clock."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.capacity import measure
from shardload.capacity.demand import REQUEST_BYTES
from shardload.capacity.measurement import cut_files, is_limited, place_samples
from shardload.errors import StorageError
from shardload.storage.probe import ALIGNMENT_BYTES, ProbeFile, Room

busy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
"""On a busy machine a test may take any time."""


MIB = 1 << 20


@busy
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=9),
    st.integers(1, 10**6),
    st.integers(1, 3000),
    st.integers(0, 99),
)
def test_samples_lie_whole_within_their_files_each_once(sizes, sample_bytes, most, seed):
    if max(sizes) < sample_bytes:
        return
    chosen, starts = place_samples(sizes, sample_bytes, most, seed)
    assert len(chosen) == min(most, sum(size // sample_bytes for size in sizes))
    assert (starts >= 0).all() and (starts + sample_bytes <= np.array(sizes)[chosen]).all()
    assert (starts % sample_bytes == 0).all()
    assert len(set(zip(chosen.tolist(), starts.tolist()))) == len(chosen)


@busy
@given(st.lists(st.integers(1, 99), min_size=1, max_size=9), st.integers(1, 12))
def test_parts_cover_their_files_once_in_whole_requests(requests, num_parts):
    sizes = [number * REQUEST_BYTES for number in requests]
    parts = cut_files(sizes, num_parts)
    assert len(sizes) <= len(parts) <= max(num_parts, len(sizes))
    for number, size in enumerate(sizes):
        mine = [(start, stop) for file, start, stop in parts if file == number]
        assert mine[0][0] == 0 and mine[-1][1] == size
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(mine))
        assert all(stop > start and start % REQUEST_BYTES == stop % REQUEST_BYTES == 0 for start, stop in mine)


@pytest.mark.parametrize(
    ("user", "system", "cores", "limited"),
    [(0.5, 1.0, 2, False), (8, 0, 64, True), (1, 1, 1, False), (1, 8.5, 1, True), (1, 8.5, 2, False), (1, 18, 2, True)],
)
def test_a_process_that_got_all_the_time_it_could(user, system, cores, limited):
    assert is_limited(user, system, 10, cores) == limited


def test_samples_are_read_in_random_order():
    chosen, starts = place_samples([10**6] * 4, 100, 1000)
    flat = chosen * 10**6 + starts
    assert np.corrcoef(flat, np.arange(1000))[0, 1] < 0.2 and flat.max() > 3.9 * 10**6
    assert (place_samples([10**6] * 4, 100, 1000, seed=1)[1] != starts).any()


@pytest.mark.parametrize(("sample_bytes", "writers", "streams"), [(5000.4, None, 8), (4096, 2, 2), (3 * MIB, None, 2)])
def test_everything_written_is_read_and_nothing_stays(tmp_path, monkeypatch, sample_bytes, writers, streams):
    reads: list[tuple[int, int]] = []
    read_into = ProbeFile.read_into

    def watched(self, buffer, start):
        reads.append((start, len(buffer)))
        read_into(self, buffer, start)

    monkeypatch.setattr(ProbeFile, "read_into", watched)
    phases = []

    def tell(kind):
        phases.append(kind)
        assert os.listdir(tmp_path) == []

    found = measure(
        str(tmp_path), sample_bytes=sample_bytes, num_writers=writers, max_bytes=8 * MIB, max_seconds=60, on_phase=tell
    )
    assert phases == ["sequential write", "sequential read", "random read"] == list(found.speeds)
    write, read, random = (found.speeds[kind] for kind in phases)
    assert write.num_bytes == read.num_bytes == 8 * MIB and write.num_requests == read.num_requests == 8
    assert write.num_at_once == streams and read.num_at_once == 8
    size = round(sample_bytes)
    count = streams * (8 * MIB // streams // size)
    assert (random.num_requests, random.num_bytes, random.request_bytes) == (count, count * size, size)
    # Every read is one that a direct read may be, and the pages around all samples were read: no more.
    assert all(start % ALIGNMENT_BYTES == length % ALIGNMENT_BYTES == 0 for start, length in reads)
    pages = sum(length for _, length in reads) - 8 * MIB
    assert count * size <= pages <= count * (size + 2 * ALIGNMENT_BYTES)
    for speed in found.speeds.values():
        assert 0 < speed.median_seconds <= speed.slow_seconds <= speed.seconds
        assert speed.bytes_per_second == pytest.approx(speed.num_bytes / speed.seconds)
    assert os.listdir(tmp_path) == [] and found.free_bytes > 0 and found.notes
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shardload-plan")]


def test_blocks_that_are_written_all_differ(tmp_path, monkeypatch):
    """Storage that keeps equal blocks once, or compresses, would look faster than it is."""
    blocks: list[bytes] = []
    append = ProbeFile.append

    def kept(self, data):
        blocks.extend(bytes(data[start : start + ALIGNMENT_BYTES]) for start in range(0, len(data), ALIGNMENT_BYTES))
        append(self, data)

    monkeypatch.setattr(ProbeFile, "append", kept)
    measure(str(tmp_path), num_writers=2, max_bytes=4 * MIB)
    assert len(set(blocks)) == len(blocks) == 4 * MIB // ALIGNMENT_BYTES


def test_memory_is_called_memory():
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no file system in memory")
    found = measure("/dev/shm", sample_bytes=4096, num_writers=2, max_bytes=2 * MIB)
    assert found.file_system == "tmpfs" and all(speed.from_memory for speed in found.speeds.values())
    assert "memory" in found.notes[0]


def test_without_direct_reads_files_are_dropped_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ProbeFile, "_go_direct", lambda self: False)
    dropped = []
    drop = ProbeFile.drop
    monkeypatch.setattr(ProbeFile, "drop", lambda self, *, random: dropped.append(random) or drop(self, random=random))
    found = measure(str(tmp_path), sample_bytes=4096, num_writers=1, max_bytes=2 * MIB)
    # After the write, before the reads in order, before the random ones.
    assert not found.direct and dropped == [False, False, True]
    if found.file_system != "tmpfs":
        assert not any(speed.from_memory for speed in found.speeds.values()) and "past the page cache" in found.notes[0]


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_machine_is_told(tmp_path, monkeypatch, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (999.0 if busy else 0.0, 0.0, 0.0))
    found = measure(str(tmp_path), num_writers=1, max_bytes=2 * MIB)
    assert any("busy with other work (load 999.0 on" in note for note in found.notes) == busy


def test_figures_from_pages_that_stay_are_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(ProbeFile, "drop", lambda self, *, random: 0.5)
    found = measure(str(tmp_path), num_writers=1, max_bytes=2 * MIB)
    assert all(speed.from_memory for speed in found.speeds.values())


def test_the_time_limit_ends_each_phase(tmp_path):
    found = measure(str(tmp_path), sample_bytes=512, num_writers=2, max_bytes=64 * MIB, max_seconds=0)
    write, read, random = found.speeds.values()
    # One request of each stream, which is under way when the time is over.
    assert write.num_bytes == 2 * MIB and read.num_bytes == 2 * MIB and random.num_requests == random.num_at_once
    assert any("the time was over after 2.1 MB" in note for note in found.notes)


def test_samples_larger_than_what_is_written_are_not_measured(tmp_path):
    found = measure(str(tmp_path), sample_bytes=1e9, max_bytes=2 * MIB)
    assert "random read" not in found.speeds and any("larger than the files" in note for note in found.notes)


def test_space_is_looked_at_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shardload.capacity.measurement.room_of", lambda path: Room("ext4", 100 * MIB))
    monkeypatch.setattr(ProbeFile, "append", None)
    with pytest.raises(StorageError, match=r"105 MB are free there, too few to write 99.6 MB"):
        measure(str(tmp_path), max_bytes=95 * MIB)
    monkeypatch.undo()
    monkeypatch.setattr("shardload.capacity.measurement.room_of", lambda path: Room("ext4", 40 * MIB))
    # Unless asked for, a tenth of what is free.
    assert measure(str(tmp_path)).speeds["sequential write"].num_bytes == 4 * MIB
    with pytest.raises(ValueError, match="max_bytes must be at least"):
        measure(str(tmp_path), max_bytes=1000)


@pytest.mark.parametrize("operation", ["pwrite", "preadv", "fsync"])
def test_a_failure_in_a_thread_ends_all_and_is_told(tmp_path, monkeypatch, operation):
    real, calls = getattr(os, operation), []

    def fails(*arguments):
        calls.append(1)
        # Not at once: trying direct writes and reads comes before the threads.
        if len(calls) > 20 or operation == "fsync":
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, operation, fails)
    with pytest.raises(StorageError, match="cannot be measured: Input/output error"):
        measure(str(tmp_path), sample_bytes=4096, num_writers=4, max_bytes=64 * MIB)
    assert os.listdir(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shardload-plan")]
