"""Both ways of reading give the same, also of files that fail; the mapped one never ends the process."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from uncompiled import leave_out_compiled_part

import shardload
from shardload.errors import StorageError
from shardload.reader import engine_choice, map_engine
from shardload.reader.in_memory import InMemory
from shardload.storage import MappedFiles, mapping
from shardload.storage.residency import resident_fraction

NUM_SAMPLES = 300
compiled = pytest.mark.skipif(not map_engine.COPIES_UNLOCKED, reason="shardload was installed without a C compiler")


def write(path: Path, *, num_samples: int = NUM_SAMPLES, shard_size: str = "64KiB", compression: str = "none") -> Path:
    """Writes a dataset whose samples tell their number in every field; a few records are large."""
    rng = np.random.default_rng(0)
    schema = {"number": "int64", "wide": "int32[256]", "name": "str", "image": "bytes"}
    with shardload.ShardWriter(path, schema, shard_size=shard_size, compression=compression) as writer:
        for i in range(num_samples):
            image = rng.bytes(40_000 if i % 50 == 7 else int(rng.integers(0, 700)))
            wide = np.full(256, i, np.int32)
            writer.write({"number": i, "wide": wide, "name": f"sample {i} " * (i % 9), "image": image})
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("engines") / "d", compression="zstd:3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lone field of large values, which takes a way of its own."""
    path = tmp_path_factory.mktemp("engines") / "images"
    rng = np.random.default_rng(1)
    with shardload.ShardWriter(path, {"image": "bytes"}, shard_size="1MiB") as writer:
        for i in range(60):
            writer.write({"image": i.to_bytes(4, "little") + rng.bytes(int(rng.integers(20_000, 90_000)))})
    return path


def read(dataset: shardload.ShardDataset, ids: list[int]) -> list[dict[str, Any]]:
    return [{name: np.asarray(value).tolist() for name, value in s.items()} for s in dataset.__getitems__(ids)]


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=40),
    verify=st.sampled_from(["always", "once", "off"]),
    fields=st.sampled_from([None, ["wide"], ["image"], ["name", "number"], ["wide", "name"]]),
)
def test_engines_agree(content: Path, ids: list[int], verify: Any, fields: list[str] | None) -> None:
    found = [
        read(shardload.open(content, engine=engine, verify=verify, fields=fields), ids)
        for engine in ("map", "pread", "ranges")
    ]
    assert found[0] == found[1] == found[2]
    for sample, number in zip(found[0], ids, strict=True):
        assert sample.get("number", number) == number
        assert sample.get("wide", [number] * 256) == [number] * 256
        assert sample.get("name", f"sample {number} " * (number % 9)) == f"sample {number} " * (number % 9)


@pytest.mark.parametrize("verify", ["always", "once", "off"])
@pytest.mark.parametrize("engine", ["map", "pread", "ranges"])
def test_large_values(images: Path, engine: Any, verify: Any) -> None:
    dataset = shardload.open(images, engine=engine, verify=verify)
    ids = np.random.default_rng(2).permutation(60)
    plain = [one["image"] for one in shardload.open(images, engine="pread", verify="always")]
    for _ in range(2):
        got = [one["image"] for one in dataset.__getitems__(ids)]
        assert [int.from_bytes(data[:4], "little") for data in got] == ids.tolist()
        assert got == [plain[i] for i in ids.tolist()]
        assert all(type(data) is bytes and hash(data) == hash(bytes(bytearray(data))) for data in got)


@pytest.mark.parametrize("verify", ["always", "off"])
@pytest.mark.parametrize("engine", ["map", "pread", "ranges"])
def test_an_empty_value_before_large_ones(tmp_path: Path, engine: Any, verify: Any) -> None:
    """It is read together with those behind it, and is the first of what comes."""
    values = [b"", b"", *(bytes([i]) * 50_000 for i in range(6)), b""]
    with shardload.ShardWriter(tmp_path / "d", {"image": "bytes"}) as writer:
        for value in values:
            writer.write({"image": value})
    batch = shardload.open(tmp_path / "d", engine=engine, verify=verify).__getitems__(list(range(len(values))))
    assert batch.values_of("image") == values


def test_several_batches_by_one_plan(content: Path) -> None:
    dataset = shardload.open(content)
    rng = np.random.default_rng(3)
    batches = [rng.integers(0, NUM_SAMPLES, size) for size in (7, 0, 1, 120, 64)]
    buffers = [{"wide": np.full((len(ids), 256), -1, np.int32)} for ids in batches]
    for ids, lent, batch in zip(
        batches, buffers, dataset.read_batches(batches, buffers, dataset.field_list), strict=True
    ):
        assert batch.columns["wide"].values is lent["wide"]
        assert lent["wide"][:, 5].tolist() == ids.tolist()
        assert [one["number"] for one in batch] == ids.tolist()
        assert [one["name"] for one in batch] == [f"sample {i} " * (i % 9) for i in ids.tolist()]


def test_more_ranges_than_a_call_takes(content: Path) -> None:
    ids = np.random.default_rng(4).integers(0, NUM_SAMPLES, 3 * mapping.MAX_RANGES + 5)
    batch = shardload.open(content, engine="map", fields=["wide"]).read_batch(ids)
    assert (batch.columns["wide"].values == ids[:, None]).all()


def write_odd(path: Path) -> Path:
    """Values of a size that no gather of aligned units takes."""
    with shardload.ShardWriter(path, {"odd": "uint8[997]"}, shard_size="16KiB") as writer:
        for i in range(90):
            writer.write({"odd": np.full(997, i, np.uint8)})
    return path


def test_values_of_any_size_are_gathered_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled part never many with the interpreter's lock held, or while a thread is computing, or what might have to
    be fetched."""
    leave_out_compiled_part(monkeypatch)
    dataset = shardload.open(write_odd(tmp_path / "d"), engine="map", verify="off")
    engine = dataset._process_access().engine
    gathered: list[int] = []
    real = MappedFiles.gather_anywhere
    monkeypatch.setattr(
        MappedFiles, "gather_anywhere", lambda self, *read: gathered.append(read[1]) or real(self, *read)
    )
    ids = np.random.default_rng(0).permutation(90)

    def read_all() -> int:
        gathered.clear()
        assert (dataset.read_batch(ids).columns["odd"].values == ids[:, None]).all()
        return len(gathered)

    read_all()
    engine._asked = float("inf")
    assert read_all() == 1 and gathered == [997]
    monkeypatch.setattr(map_engine, "_MAX_HELD_BYTES", 90 * 997 - 1)
    assert read_all() == 0
    monkeypatch.undo()
    leave_out_compiled_part(monkeypatch)
    monkeypatch.setattr(MappedFiles, "gather_anywhere", lambda *read: pytest.fail("with the lock held"))
    engine._busy = True
    read_all()
    engine._busy, engine._mapped.residency[-1] = False, 0.5
    read_all()


@compiled
@pytest.mark.parametrize("kind", ["text", "packed"])
def test_what_waits_for_nothing_is_taken_where_it_lies(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of shards that are not in memory as a whole; until a read has waited."""
    texts = [f"{number} " * 300 for number in range(4000)]
    with shardload.ShardWriter(
        tmp_path / "d", {"text": "str"}, compression="zstd:1" if kind == "packed" else "none"
    ) as writer:
        for text in texts:
            writer.write({"text": text + str(np.random.default_rng(len(text)).bytes(300))})
    monkeypatch.setattr(MappedFiles, "look", lambda self, number, descriptor: None)
    waits, ways = [0], list[str]()
    monkeypatch.setattr(map_engine, "_num_waits", lambda: waits[0])
    monkeypatch.setattr(map_engine, "_QUIET_BYTES", 1 << 20)
    for way in ("read", "in_memory"):
        real = getattr(MappedFiles, way)
        monkeypatch.setattr(MappedFiles, way, lambda *given, real=real, way=way: ways.append(way) or real(*given))
    dataset = shardload.open(tmp_path / "d", engine="map", verify="once")
    ids = np.random.default_rng(0).permutation(4000)

    def ways_of(some: Any) -> set[str]:
        ways.clear()
        found = dataset.__getitems__(some).values_of("text")
        assert [text.split()[0] for text in found] == [str(i) for i in some]
        return set(ways)

    seen = [ways_of(ids) for _ in range(12)]
    first = seen.index({"in_memory"})
    assert first and seen == [{"read"}] * first + [{"in_memory"}] * (12 - first)
    assert ways_of(ids[:50]) == {"in_memory"}
    assert ways_of(ids) == {"in_memory"}
    monkeypatch.setattr(map_engine, "_num_waits", lambda: waits.append(waits[-1] + 1) or waits[-1])
    # What was read is right; what follows is not taken there any more.
    assert "in_memory" in ways_of(ids)
    assert ways_of(ids) == {"read"}


def test_a_wait_for_the_device_is_noticed(tmp_path: Path) -> None:
    """Of a real file, whose pages come from the device the first time, and from memory the second."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if resident_fraction(file.fileno(), 1 << 20):
            pytest.skip("this file system keeps its pages")
        counts = [map_engine._num_waits()]
        for _ in range(2):
            # Mapped anew, each page is a fault, though not one that waits.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                assert sum(view[::4096]) == 0
            counts.append(map_engine._num_waits())
    assert counts[0] < counts[1] == counts[2]


def test_what_cannot_be_mapped_is_taken_from_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are reserved for all shards, and nothing lies at those of one that the system had no room for."""
    path, real = write(tmp_path / "d"), MappedFiles.map

    def full(self: MappedFiles, number: int, descriptor: int) -> None:
        if number % 2:
            raise OSError("no room")
        real(self, number, descriptor)

    monkeypatch.setattr(MappedFiles, "map", full)
    monkeypatch.setattr(map_engine, "_QUIET_BYTES", 0)
    dataset = shardload.open(path, engine="map")
    assert len(dataset.table) > 2
    for _ in range(2):
        for ids in ([0, NUM_SAMPLES - 1], np.arange(NUM_SAMPLES)):
            assert [one["number"] for one in dataset.__getitems__(ids)] == list(ids)
            assert [len(one["image"]) > 10_000 for one in dataset.__getitems__(ids)] == [i % 50 == 7 for i in ids]


def test_records_to_be_checked_are_not_joined_from_memory_while_a_thread_is_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait: they are joined with the interpreter's lock held, whether there is a compiled part or not."""
    with shardload.ShardWriter(tmp_path / "d", {"a": "bytes", "b": "bytes"}) as writer:
        for i in range(50):
            writer.write({"a": bytes([i]) * 9000, "b": b"b"})
    dataset = shardload.open(tmp_path / "d", engine="map", verify="always")
    engine, joined, real = dataset._process_access().engine, [], InMemory.joined
    monkeypatch.setattr(InMemory, "joined", lambda self: joined.append(len(self.starts)) or real(self))
    monkeypatch.setattr(engine, "_asked", float("inf"))
    ids = list(range(50))
    for busy, times in ((False, 1), (True, 0)):
        engine._busy = busy
        engine._mapped.residency[:] = 1
        joined.clear()
        assert dataset.__getitems__(ids).values_of("a") == [bytes([i]) * 9000 for i in ids]
        assert len(joined) == times


def test_files_may_be_added_while_others_are_read(content: Path) -> None:
    """In the midst of it there is a place for the last word of the new one, and no word yet."""
    dataset = shardload.open(content, engine="map")
    values = read(dataset, [5, 250])
    engine = dataset._process_access().engine
    engine._ends = np.append(engine._ends, engine._ends[:1])
    assert read(dataset, [5, 250]) == values


CUT = """
import sys
import numpy as np
import shardload
path, how, verify = sys.argv[1:4]
fields = ("number", "wide", "name", "image")
datasets = [shardload.open(path, engine="map", verify=verify, fields=[field]) for field in fields]
before = [[np.asarray(one[field]).tolist() for one in dataset] for dataset, field in zip(datasets, fields)]
entry = datasets[0].table[0]
last, size = entry.num_samples, entry.num_bytes
at = {"quarter": size // 4 + 100, "half": size // 2 + 100, "most": size * 3 // 4 + 100, "page": size // 2 // 4096 * 4096,
      "end": size - 1, "empty": 0}[how]
with open(f"{path}/{entry.name}", "r+b") as file:
    file.truncate(at)
named = right = 0
for dataset, field, values in zip(datasets, fields, before):
    for number, value in enumerate(values):
        try:
            sample = dataset[number]
        except shardload.ShardloadError as error:
            assert number < last and entry.name in str(error), error
            named += 1
        else:
            assert np.asarray(sample[field]).tolist() == value, (field, number)
            right += number < last
assert named + right == 4 * last
print(named, last)
"""


@pytest.mark.parametrize("verify", ["once", "off"])
@pytest.mark.parametrize("how", ["quarter", "half", "most", "page", "end", "empty"])
def test_a_file_cut_under_the_mapping_is_an_error(
    tmp_path: Path, how: str, verify: str, program: Callable[..., str]
) -> None:
    """Not a signal, and no zeros from the rest of the last page, though all was read and checked before."""
    path = write(tmp_path / "d")
    named, last = map(int, program(CUT, path, how, verify).split())
    # Rows are held in memory; where only the footer is gone, positioned reads find every sample whole.
    assert (named == 3 * last) if how == "empty" else (named == 0) if how == "end" else (0 < named <= 3 * last)


IN_MEMORY = """
import sys
import numpy as np
import shardload
from shardload.memory import ranges
from shardload.reader import map_engine, records, sums
from shardload.storage import MappedFiles
path, field, where, way, compiled = sys.argv[1:6]
if compiled == "no":
    ranges._ranges, records.SUMS, sums.SUMS, map_engine.SUMS = None, False, False, False
    map_engine.COPIES_UNLOCKED = False
calls, real = [], getattr(MappedFiles, way)
setattr(MappedFiles, way, lambda self, *ranges: calls.append(len(ranges[0])) or real(self, *ranges))
dataset = shardload.open(path, engine="map", verify="once", fields=[field])
ids = np.random.default_rng(0).permutation(len(dataset))
whole = [np.asarray(one[field]).tolist() for one in dataset.__getitems__(ids)]
# Tells the engine that the shards are in memory; the samples have been checked by now.
dataset._process_access()._fits = False
dataset.will_need(ids)
calls.clear()
assert [np.asarray(one[field]).tolist() for one in dataset.__getitems__(ids)] == whole and calls == [len(ids)]
# And one that has seen them there, but read and checked nothing.
other = shardload.open(path, engine="map", verify="once", fields=[field])
other.will_need(ids)
entry = dataset.table[0]
with open(f"{path}/{entry.name}", "r+b") as file:
    file.truncate(entry.num_bytes // 2 + int(where))
try:
    dataset.__getitems__(ids)
except shardload.StorageError as error:
    # It was found in the way that was used before, not because another was taken.
    assert entry.name in str(error) and len(calls) > 1, (error, calls)
    print("named")
calls.clear()
try:
    other.__getitems__(ids)
except shardload.StorageError as error:
    assert entry.name in str(error) and (calls or way == "in_memory" and not records.SUMS), (error, calls)
    print("named")
"""


@pytest.mark.parametrize("compiled", ["yes", "no"])
@pytest.mark.parametrize("where", [0, 100])
@pytest.mark.parametrize("kind", ["images", "names", "two", "packed", "both", "numbers"])
def test_a_file_cut_after_it_was_seen_in_memory_is_an_error(
    tmp_path: Path, kind: str, where: int, compiled: str, program: Callable[..., str]
) -> None:
    """Values are then taken out of the mapped file: none may come as zeros, and no signal may come."""
    path, numbers = tmp_path / "d", kind == "numbers"
    more = {"two": {"more": "bytes"}, "both": {"more": "jpeg"}}
    schema = {"value": "uint8[1999]" if numbers else "bytes", **more.get(kind, {})}
    rng = np.random.default_rng(2)
    compression = "zstd:3" if kind in ("packed", "both") else "none"
    with shardload.ShardWriter(path, schema, compression=compression) as writer:
        for _ in range(60):
            if numbers:
                writer.write({"value": rng.integers(0, 256, 1999, np.uint8)})
                continue
            value = rng.bytes(40_000 if kind == "images" else 700)
            others = {"more": b"\xff\xd8\xff" + rng.bytes(300)} if len(schema) > 1 else {}
            writer.write({"value": value * 3, **others})
    way = "gather_anywhere" if numbers and compiled == "no" else "in_memory"
    assert program(IN_MEMORY, path, "value", where, way, compiled) == "named\nnamed\n"


def test_texts_are_read_without_objects_that_the_collector_counts(tmp_path: Path) -> None:
    """Python's cyclic collector is set off by their number, and looks through all objects of a training program."""
    with shardload.ShardWriter(tmp_path / "d", {"text": "str", "more": "bytes"}) as writer:
        for number in range(4000):
            writer.write({"text": f"{number} " * 100, "more": b"more"})
    dataset = shardload.open(tmp_path / "d", engine="map")
    ids, began = np.random.default_rng(0).permutation(4000), []
    for _ in range(3):
        # Looked at and checked once, and not looked at again too soon.
        dataset.will_need(ids)
        batch = dataset.__getitems__(ids)
        gc.collect()
        gc.callbacks.append(count := lambda phase, info: began.append(info))
        try:
            texts = dataset.__getitems__(ids).values_of("text")
        finally:
            gc.callbacks.remove(count)
        assert texts == batch.values_of("text") and texts[5] == f"{ids[5]} " * 100
    assert not began


@pytest.fixture
def program() -> Callable[..., str]:
    """Runs a program in a process of its own, which must end by itself."""

    def run(code: str, *arguments: object) -> str:
        started = Program(code, *arguments, torch=False)
        output, errors = started.communicate(timeout=120)
        assert started.returncode == 0, errors
        return output

    return run


MANY = """
import sys
import numpy as np
import shardload
dataset = shardload.open(sys.argv[1], engine=sys.argv[2])
ids = np.random.default_rng(0).permutation(len(dataset))
for start in range(0, len(ids), 256):
    part = ids[start : start + 256]
    assert [s["number"] for s in dataset.__getitems__(part)] == part.tolist()
print(dataset.engine_name, len(dataset.table))
"""


@pytest.mark.parametrize("engine", ["map", "pread", "ranges"])
def test_many_shards_with_few_descriptors(tmp_path: Path, engine: str, program: Callable[..., str]) -> None:
    path = write(tmp_path / "d", num_samples=400, shard_size="4KiB")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n" + MANY
    name, shards = program(limited, path, engine).split()
    assert name == shardload.open(path, engine=engine).engine
    assert int(shards) == 400


def test_no_room_for_addresses_means_positioned_reads(content: Path, program: Callable[..., str]) -> None:
    code = MANY.replace("dataset =", "import shardload.storage.mapping as m\nm._max_maps = lambda: 3\ndataset =", 1)
    assert program(code, content, "auto").split()[0] == "pread"


def test_a_system_that_forbids_the_call(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("process_vm_readv is refused: Operation not permitted")

    monkeypatch.setattr(mapping, "_probe", refuse)
    dataset = shardload.open(content)
    assert dataset[3]["number"] == 3
    assert dataset.engine_name == "pread"
    with pytest.raises(StorageError, match=r"engine='map' does not work here: process_vm_readv is refused.*'pread'"):
        shardload.open(content, engine="map")[3]


def test_a_call_that_comes_back_short_is_made_up_for(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MappedFiles, "read", lambda self, starts, lengths, targets: 17)
    dataset = shardload.open(content, engine="map")
    assert [s["number"] for s in dataset.__getitems__([5, 1, 260])] == [5, 1, 260]


def test_a_shard_that_cannot_be_mapped_is_read_by_position(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MappedFiles, number: int, descriptor: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(MappedFiles, "map", refuse)
    dataset = shardload.open(content)
    dataset.will_need(np.arange(50))
    assert [s["number"] for s in dataset.__getitems__([5, 1, 260])] == [5, 1, 260]


def test_page_tables_are_dropped_and_made_again(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_MAX_TABLE_BYTES", 0)
    dataset = shardload.open(content, engine="map")
    for _ in range(3):
        assert [s["number"] for s in dataset] == list(range(NUM_SAMPLES))


def test_network_file_systems_are_read_by_position(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "file_system", lambda path: "nfs4")
    dataset = shardload.open(content)
    assert dataset.engine_name == "pread"
    assert dataset[9]["number"] == 9


def test_the_file_system_is_found() -> None:
    assert engine_choice.file_system("/proc") == "proc"
    assert engine_choice.file_system("/proc/self") == "proc"
    assert engine_choice.file_system(os.getcwd()) not in ("", "proc")


def test_the_engine_is_named(content: Path) -> None:
    with pytest.raises(ValueError, match="engine must be one of auto, map, pread, ranges, not 'mmap'"):
        shardload.open(content, engine="mmap")
    loader = shardload.ShardLoader(shardload.open(content, engine="pread"), 8, shuffle=True)
    assert loader.stats().engine == ""
    next(iter(loader))
    assert loader.stats().engine == "pread"


def test_a_child_maps_for_itself(content: Path) -> None:
    dataset = shardload.open(content, engine="map")
    assert dataset[1]["number"] == 1
    child = os.fork()
    if child == 0:
        right = [s["number"] for s in dataset] == list(range(NUM_SAMPLES))
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert dataset[2]["number"] == 2
