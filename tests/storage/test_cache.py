"""A cache of stored files: exact bytes whatever happens to it, no byte fetched twice for nothing, and never more than its limit."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storage.stored import NotedStorage, noise

from shardload.errors import StorageError
from shardload.storage import cache as cache_module
from shardload.storage import cache_index, cache_writes
from shardload.storage.cached import CachedFile, CachedStorage
from shardload.storage.slots import BLOCK_BYTES, CELL_BYTES, MIN_LIMIT_BYTES

brief = settings(max_examples=20, deadline=None)

SIZE = 3_000_123
DATA = noise(SIZE)
LIMIT = 16 << 20
DIGEST = b"d" * 32


@pytest.fixture
def stored() -> NotedStorage:
    return NotedStorage({"shards/a": DATA, "manifest.json": b"{}"})


def cached(stored: NotedStorage, directory: Path, limit: int = LIMIT) -> CachedStorage:
    return CachedStorage(stored, str(directory / "cache"), limit)


def make(stored: NotedStorage, directory: Path, limit: int = LIMIT) -> None:
    """Opens a cache and leaves it."""
    assert not cached(stored, directory, limit).cache.stats.num_failures


def open_file(storage: CachedStorage, digest: bytes = DIGEST) -> CachedFile:
    file = storage.open("shards/a", SIZE, digest)
    assert isinstance(file, CachedFile)
    return file


RANGES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from([1, 130, 5000, 70_000, 400_000])), min_size=1)


@brief
@given(RANGES, st.booleans())
def test_any_ranges_in_any_order_have_their_bytes_and_are_fetched_once(tmp_path_factory, ranges, reopen):
    stored = NotedStorage({"shards/a": DATA})
    storage = cached(stored, tmp_path_factory.mktemp("any"))
    file, origin = open_file(storage), stored.files["shards/a"]
    wanted = np.zeros(-(-SIZE // CELL_BYTES), dtype=np.bool_)
    for start, size in ranges:
        stop = min(start + size, SIZE)
        assert file.read(start, stop) == DATA[start:stop]
        wanted[start // CELL_BYTES : -(-stop // CELL_BYTES)] = True
    # Ranges that are apart by little may be fetched with what is between; no cell is fetched that nobody wanted.
    fetched = np.zeros(len(wanted), dtype=np.int64)
    for start, stop in origin.reads:
        fetched[start // CELL_BYTES : -(-stop // CELL_BYTES)] += 1
    assert ((fetched > 0) == wanted).all()
    if reopen:
        file = open_file(pickle.loads(pickle.dumps(cached(stored, Path(storage.cache_dir).parent))))
    origin.reads.clear()
    for start, size in ranges:
        assert file.read(start, min(start + size, SIZE)) == DATA[start : min(start + size, SIZE)]
    assert not stored.files["shards/a"].reads


def test_records_are_fetched_with_hardly_more_than_their_bytes(stored, tmp_path):
    file, rng = open_file(cached(stored, tmp_path)), np.random.default_rng(1)
    for size in (1000, 4096, 100_000):
        origin = stored.files["shards/a"]
        origin.reads.clear()
        starts = rng.permutation(SIZE // (2 * size))[:20] * 2 * size
        for start in starts.tolist():
            file.read(start, start + size)
        assert len(origin.reads) <= len(starts)
        assert origin.num_read <= max(1.05 * size, size + 2 * CELL_BYTES) * len(starts)


def test_many_ranges_are_read_at_once(stored, tmp_path):
    storage = cached(stored, tmp_path)
    file, rng = open_file(storage), np.random.default_rng(2)
    file.read(0, SIZE // 2)
    starts = rng.integers(0, SIZE - 9000, 3000)
    sizes = rng.integers(1, 9000, 3000)
    targets = [np.zeros(size, dtype=np.uint8) for size in sizes.tolist()]
    missing = storage.cache.read(np.tile(file.key, (3000, 1)), starts, targets)
    assert missing == sorted(missing)
    for number, start, stop in missing:
        assert starts[number] <= start < stop <= starts[number] + sizes[number]
        assert start >= SIZE // 2 // BLOCK_BYTES * BLOCK_BYTES
    lost = {number for number, _, _ in missing}
    assert lost == set(np.flatnonzero(starts + sizes > -(-(SIZE // 2) // CELL_BYTES) * CELL_BYTES).tolist())
    for number, (start, target) in enumerate(zip(starts.tolist(), targets, strict=True)):
        assert number in lost or target.tobytes() == DATA[start : start + len(target)]
    has = storage.cache.will_need(np.tile(file.key, (3000, 1)), starts, starts + sizes)
    assert set(np.flatnonzero(~has).tolist()) == lost


def test_cells_of_one_block_that_come_together_are_all_kept(stored, tmp_path):
    storage = cached(stored, tmp_path)
    file, places = open_file(storage), [(0, 300), (500, 700), (200, 600), (8000, 9000)]
    spans = [(a // CELL_BYTES * CELL_BYTES, -(-b // CELL_BYTES) * CELL_BYTES) for a, b in places]
    pieces = [np.frombuffer(DATA[a:b], dtype=np.uint8) for a, b in spans]
    storage.cache.write(np.tile(file.key, (len(pieces), 1)), np.array([a for a, _ in spans]), pieces)
    for start, stop in [(0, 700), (8000, 9000)]:
        assert file.read(start, stop) == DATA[start:stop]
    assert not stored.files["shards/a"].reads


@brief
@example([(0, 0, 160), (1, 160, 100), (0, 260, 32)])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, SIZE // CELL_BYTES - 1), st.sampled_from([1, 7, 32, 100, 700, 3000])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_parts_that_come_together_are_all_kept(tmp_path_factory, parts):
    stored = NotedStorage({"shards/a": DATA})
    storage = cached(stored, tmp_path_factory.mktemp("any"))
    files = [open_file(storage, digest) for digest in (b"d" * 32, b"e" * 32)]
    spans = [(files[one], cell * CELL_BYTES, min((cell + count) * CELL_BYTES, SIZE)) for one, cell, count in parts]
    pieces = [np.frombuffer(DATA[start:stop], dtype=np.uint8) for _, start, stop in spans]
    storage.cache.write(np.array([file.key for file, _, _ in spans]), np.array([a for _, a, _ in spans]), pieces)
    for file, start, stop in spans:
        assert file.read(start, stop) == DATA[start:stop]
    assert not stored.files["shards/a"].reads


def test_what_several_threads_keep_at_once_is_written_together(stored, tmp_path, monkeypatch):
    """One after another they would each plan, and wait for the interpreter, as long as all of them."""
    storage, written, begun, go_on = cached(stored, tmp_path), [], threading.Event(), threading.Event()
    file, carry_out = open_file(storage), cache_writes.BlockWrites.carry_out

    def noted(self: cache_writes.BlockWrites) -> int:
        written.append(len(self._blocks))
        begun.set()
        assert go_on.wait(20)
        return carry_out(self)

    monkeypatch.setattr(cache_writes.BlockWrites, "carry_out", noted)
    size, count = 100_000, 24
    places = [(i * size * 9 // 10, i * size * 9 // 10 + size) for i in range(count)]
    threads = [threading.Thread(target=file.read, args=place) for place in places]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    end = time.monotonic() + 20
    while len(storage.cache._coming) < count - 1 and time.monotonic() < end:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(20)
    # Neighbours share blocks: these come a second time.
    assert len(written) <= 3 and written[1] > written[0] * (count - 2) // 2
    origin = stored.files["shards/a"]
    origin.reads.clear()
    for start, stop in places:
        assert file.read(start, stop) == DATA[start:stop]
    assert not origin.reads


@pytest.mark.parametrize("how", ["flip", "cut", "zero", "other"])
@pytest.mark.parametrize("while_open", [True, False])
def test_damaged_blocks_are_dropped_and_fetched_once_more(stored, tmp_path, how, while_open):
    storage = cached(stored, tmp_path)
    file, origin = open_file(storage), stored.files["shards/a"]
    other = open_file(storage, b"e" * 32)
    file.read(0, SIZE), other.read(0, SIZE)
    damage(tmp_path / "cache", how)
    origin.reads.clear()
    if not while_open:
        file = open_file(cached(stored, tmp_path))
    with warnings.catch_warnings():
        # A file that was cut ends the use of the cache, with a word.
        warnings.simplefilter("ignore" if how == "cut" else "error")
        assert file.read(0, SIZE) == DATA
        first = origin.num_read
        assert file.read(0, SIZE) == DATA
    stats = file._storage.cache.stats
    if how == "cut":
        assert stats.num_failures == while_open
        return
    assert stats.num_damaged > 0 and first >= BLOCK_BYTES
    assert origin.num_read == first, "what was fetched again is kept"


def damage(directory: Path, how: str) -> None:
    """Damages the blocks of a cache."""
    (path,) = directory.glob("blocks-*")
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "cut":
            file.truncate(size // 2)
        elif how == "flip":
            for place in np.random.default_rng(3).integers(0, size, 2000).tolist():
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 4]))
        elif how == "zero":
            file.seek(size // 4)
            file.write(bytes(size // 2))
        else:
            # All blocks one row further: those of other places, and of the other shard.
            content = file.read()
            file.seek(0)
            file.write(content[16 * BLOCK_BYTES :] + content[: 16 * BLOCK_BYTES])


def test_what_the_reader_found_damaged_is_dropped(stored, tmp_path):
    storage = cached(stored, tmp_path)
    file, origin = open_file(storage), stored.files["shards/a"]
    assert not file.discard(0, 100), "there is no copy yet"
    file.read(0, 50_000)
    origin.reads.clear()
    assert file.discard(5000, 5100)
    assert file.read(0, 50_000) == DATA[:50_000]
    assert origin.reads == [(4096, 8192)]
    assert storage.cache.stats.num_damaged == 1
    origin.has_copies = True
    assert file.discard(200_000, 200_001) and origin.discarded[-1] == (200_000, 200_001)


def test_nothing_is_asked_of_the_origin_for_what_is_there(stored, tmp_path):
    open_file(cached(stored, tmp_path)).read(0, SIZE)
    stored.opened.clear()
    assert open_file(cached(stored, tmp_path)).read(10, SIZE) == DATA[10:]
    assert not stored.opened
    assert open_file(cached(stored, tmp_path), b"another digest of 32 bytes......").read(0, 9) == DATA[:9]
    assert stored.opened == ["shards/a"]


def test_what_has_no_digest_and_what_is_out_of_range_comes_from_the_origin(stored, tmp_path):
    storage = cached(stored, tmp_path)
    assert storage.open("manifest.json") is stored.files["manifest.json"]
    assert storage.read_small("manifest.json", 10) == b"{}"
    assert storage.exists("shards/a") and storage.list("shards") == ["a"] and storage.root == "memory"
    file = open_file(storage)
    assert file.read(5, 5) == b""
    with pytest.raises(StorageError, match="no bytes"):
        file.read(SIZE - 5, SIZE + 5)
    file.will_need(0, 5000)
    file.read(0, 5000)
    file.will_need(0, 5000)
    assert stored.files["shards/a"].announced == [(0, 5000)]


def test_a_small_cache_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path):
    large = noise(30 << 20, 5)
    stored = NotedStorage({"shards/a": large})
    storage = CachedStorage(stored, str(tmp_path / "cache"), MIN_LIMIT_BYTES)
    file = storage.open("shards/a", len(large), DIGEST)
    for start in range(0, len(large), 1 << 20):
        assert file.read(start, start + (1 << 20)) == large[start : start + (1 << 20)]
        assert disk_bytes(tmp_path / "cache") <= MIN_LIMIT_BYTES
    assert storage.cache.stats.num_evicted > 3000
    assert storage.cache.held_bytes > 0.8 * MIN_LIMIT_BYTES - (2 << 20)
    origin = stored.files["shards/a"]
    origin.reads.clear()
    file.read(len(large) - (1 << 20), len(large))
    assert not origin.reads


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def test_a_data_set_of_nearly_the_limit_is_held_as_a_whole(tmp_path):
    limit = 64 << 20
    size = int(limit * 0.93)
    stored = NotedStorage({"shards/a": noise(size, 6)})
    storage = CachedStorage(stored, str(tmp_path / "cache"), limit)
    file, rng = storage.open("shards/a", size, DIGEST), np.random.default_rng(4)
    for start in rng.permutation(size // (1 << 17)).tolist():
        file.read(start << 17, (start + 1) << 17)
    held = 1 - storage.cache.stats.num_evicted / (size / BLOCK_BYTES)
    assert held > 0.99


def test_a_limit_that_is_too_small_is_refused_with_the_least_one(stored, tmp_path):
    with pytest.raises(ValueError, match=r"cache_limit must be at least 8388608 bytes \(8\.0 MiB\), not 8388607"):
        make(stored, tmp_path, MIN_LIMIT_BYTES - 1)
    assert not (tmp_path / "cache").exists()


def test_another_limit_makes_the_cache_anew_unless_it_is_in_use(stored, tmp_path):
    first = cached(stored, tmp_path)
    open_file(first).read(0, SIZE)
    with pytest.raises(StorageError, match=r"is in use with cache_limit=16777216 \(16\.0 MiB\) by another job"):
        make(stored, tmp_path, 2 * LIMIT)
    del first
    second = cached(stored, tmp_path, 2 * LIMIT)
    assert open_file(second).read(0, SIZE) == DATA
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {
        "shardload-cache.json",
        *json.loads((tmp_path / "cache/shardload-cache.json").read_text())["files"],
    }


def test_a_cache_made_anew_under_a_running_job_leaves_it_with_exact_bytes(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda descriptor, how: None)
    first, second = cached(stored, tmp_path), cached(stored, tmp_path, 2 * LIMIT)
    file = open_file(first)
    file.read(0, SIZE)
    assert open_file(second).read(0, SIZE) == DATA
    with pytest.warns(UserWarning, match="going on without it: its files were removed or cut"):
        assert file.read(0, SIZE) == DATA
    assert file.read(5, SIZE) == DATA[5:]


def test_only_its_own_files_are_ever_removed(stored, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/thesis.tex").write_text("x")
    with pytest.raises(StorageError, match=r"holds files that are not a cache's, such as thesis\.tex"):
        make(stored, tmp_path)
    (tmp_path / "cache/thesis.tex").rename(tmp_path / "thesis.tex")
    make(stored, tmp_path)
    (tmp_path / "thesis.tex").rename(tmp_path / "cache/thesis.tex")
    (tmp_path / "cache/blocks-9-9").write_text("not in the ledger")
    make(stored, tmp_path, 2 * LIMIT)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {"thesis.tex", "blocks-9-9"} < names and len(names) == 6


def test_a_directory_is_for_its_owner_alone(stored, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir(mode=0o755)
    make(stored, tmp_path)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "cache").iterdir())
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StorageError, match="belongs to user"):
        make(stored, tmp_path)


def test_links_are_not_followed(stored, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a symbolic link, or no directory"):
        make(stored, tmp_path)
    (tmp_path / "cache").unlink()
    make(stored, tmp_path)
    (blocks,) = (tmp_path / "cache").glob("blocks-*")
    blocks.unlink()
    blocks.symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_bytes(b"precious")
    with pytest.warns(UserWarning, match="going on without it"):
        assert open_file(cached(stored, tmp_path)).read(0, SIZE) == DATA
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("content", [b"", b"{", b'{"shardload_cache": 2}', b'{"shardload_cache": 1, "num_sets": -1}'])
def test_a_ledger_that_is_none_is_told(stored, tmp_path, content):
    make(stored, tmp_path)
    (tmp_path / "cache/shardload-cache.json").write_bytes(content)
    with pytest.raises(
        StorageError, match=r"cache_dir='.*' (has a shardload-cache\.json that is none|is a cache of format 2)"
    ):
        make(stored, tmp_path)


def test_temporary_files_of_the_dead_are_removed_later(stored, tmp_path):
    (tmp_path / "cache").mkdir()
    old, new = (tmp_path / f"cache/shardload-cache.{digit * 16}.tmp" for digit in "ab")
    old.touch(), new.touch()
    os.utime(old, (1, 1))
    make(stored, tmp_path)
    assert not old.exists() and new.exists()


def test_where_warnings_are_errors_who_waits_for_a_write_is_let_go(stored, tmp_path):
    cache, piece = cached(stored, tmp_path).cache, np.zeros(BLOCK_BYTES, dtype=np.uint8)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    key, starts = np.zeros((1, 2), dtype=np.uint64), np.zeros(1, dtype=np.int64)
    # As another thread has it that waits for the lock.
    other = cache_module._Coming(key, starts, [piece])
    cache._coming.append(other)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="going on without it"):
        warnings.simplefilter("error")
        cache.write(key, starts, [piece])
    assert other.written and not cache._coming


def test_a_removed_directory_is_gone_on_without_and_told_once(stored, tmp_path):
    file = open_file(cached(stored, tmp_path))
    file.read(0, SIZE // 2)
    subprocess.run(["rm", "-r", str(tmp_path / "cache")], check=True)
    with pytest.warns(UserWarning, match="cannot be used, going on without it") as told:
        assert file.read(0, SIZE) == DATA
        assert file.read(3, SIZE) == DATA[3:]
        assert not file.discard(0, 10)
        file.will_need(0, 10)
    assert len(told) == 1
    assert file._storage.cache.held_bytes == 0


def test_a_full_disk_is_gone_on_without_and_told_once(stored, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = open_file(cached(stored, tmp_path, 32 << 20))
    file.read(0, 100)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
        with pytest.warns(UserWarning, match="going on without it: File too large") as told:
            for start in range(0, SIZE, 100_000):
                assert file.read(start, min(start + 100_000, SIZE)) == DATA[start : start + 100_000]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1


@pytest.mark.parametrize("call", ["open", "pwrite", "preadv", "fstat"])
def test_a_failing_file_system_is_gone_on_without(stored, tmp_path, monkeypatch, call):
    if call != "open":
        file = open_file(cached(stored, tmp_path))
        file.read(0, SIZE // 2)

    def fail(*arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if call == "open":
        monkeypatch.setattr("shardload.storage.cache_directory.os.open", fail)
        file = open_file(cached(stored, tmp_path))
    else:
        monkeypatch.setattr(cache_index.os, call, fail)
    with pytest.warns(UserWarning, match="going on without it: Read-only file system") as told:
        got = [file.read(0, SIZE) for _ in range(2)]
    monkeypatch.undo()
    assert got == [DATA, DATA] and len(told) == 1


def test_a_sandbox_that_allows_less_has_a_cache_too(stored, tmp_path, monkeypatch):
    def refuse():
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr("shardload.storage.mapping._probe", refuse)
    open_file(cached(stored, tmp_path)).read(0, SIZE)
    stored.files["shards/a"].reads.clear()
    assert open_file(cached(stored, tmp_path)).read(0, SIZE) == DATA
    assert not stored.files["shards/a"].reads


def test_a_forked_process_opens_the_cache_for_itself(stored, tmp_path):
    storage = cached(stored, tmp_path)
    file = open_file(storage)
    file.read(0, SIZE)
    storage._lock.acquire()
    child = os.fork()
    if child == 0:
        own = file.read(0, SIZE) == DATA and storage.cache.process_id == os.getpid()
        os._exit(0 if own and not stored.files["shards/a"].reads[1:] else 1)
    storage._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
