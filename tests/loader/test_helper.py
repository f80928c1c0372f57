"""A child process that reads: same order, same batches, and whatever happens to it, the training goes on."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_dataset import EVERY_TYPE, value_of
from loader.test_decode import encoded, pixels_of
from programs import Program
from samples import EVERY_SAMPLES, write_everything

import shardload
from shardload.loader import aside as aside_module
from shardload.loader.aside import work_of
from shardload.loader.reader_process import ReaderProcess
from shardload.loader.recipe import make_recipe
from shardload.memory import BufferPool, SharedArena
from shardload.reader.busy import interpreter_busy

TESTS = str(Path(__file__).parent.parent)
NUM_ANY = 37


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations of nullable, ragged, listed, streamed and compressed fields. Read only."""
    return write_everything(tmp_path_factory.mktemp("everything") / "set")


@pytest.fixture(scope="module")
def any_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type there is, each with and without missing values. Read only."""
    path, rng = tmp_path_factory.mktemp("types") / "set", np.random.default_rng(5)
    types = EVERY_TYPE | {f"{name} or not": f"{one}?" for name, one in EVERY_TYPE.items()}
    with shardload.ShardWriter(path, types, shard_size="1MiB", compression="zstd:1") as writer:
        for _ in range(NUM_ANY):
            missing = {name: one.endswith("?") and rng.integers(2) for name, one in types.items()}
            writer.write({name: None if missing[name] else value_of(one, rng) for name, one in types.items()})
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, some missing. Read only."""
    path = tmp_path_factory.mktemp("images") / "set"
    with shardload.ShardWriter(path, {"image": "png?", "label": "int64"}) as writer:
        for i in range(40):
            image = None if i % 7 == 3 else encoded(pixels_of(i % 25, 40 + i % 2, 60))
            writer.write({"image": image, "label": i})
    return path


def make(path: Path, helper: bool | None, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 5, "shuffle": True, "seed": 3, "tail": "short", "num_threads": 2}
    settings |= {"num_replicas": 1, "rank": 0}
    loader = shardload.ShardLoader(shardload.open(path), helper_process=helper, **settings | options)
    # A test that fails must not leave a process behind either.
    LOADERS.append(loader)
    return loader


LOADERS: list[shardload.ShardLoader] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while LOADERS:
        LOADERS.pop().close()


def flat(value: Any) -> Any:
    """A value such that equal ones compare equal: tensors as their dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        own = torch.empty(value.numel(), dtype=value.dtype).copy_(value.reshape(-1))
        return str(value.dtype), tuple(value.shape), own.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: flat(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [flat(part) for part in value]
    return type(value).__name__, repr(value) if isinstance(value, float) else value


def as_list(samples: Any) -> list[Any]:
    return list(samples)


def as_it_is(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def drawing(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"drawn": rng.integers(1 << 30)}


UNSIGNED = [name for name in [*EVERY_TYPE, *(f"{one} or not" for one in EVERY_TYPE)] if name.startswith("uint64")]
DECODE = {"image": shardload.ImageDecode(16, crop="random", flip=0.5)}


@pytest.mark.parametrize(
    "name, options",
    [
        ("everything", {"with_ids": True}),
        ("everything", {"collate_fn": as_list}),
        ("everything", {"transform": as_it_is, "collate_fn": as_list}),
        ("everything", {"transform": drawing}),
        ("everything", {"on_error": "mask", "batch_size": 9, "tail": "mask"}),
        ("everything", {"fields": ["label", "facts"], "reuse": True, "batch_transform": flat}),
        ("everything", {"num_threads": 0}),
        ("everything", {"num_replicas": 3, "rank": 1, "tail": "carry"}),
        ("everything", {"shuffle": False, "batch_size": 100}),
        ("any_types", {"dtypes": dict.fromkeys(UNSIGNED, torch.uint64)}),
        ("any_types", {"transform": as_it_is, "collate_fn": as_list}),
        ("images", {"decode": DECODE, "tail": "carry", "batch_size": 6}),
        ("images", {"decode": DECODE, "transform": as_it_is, "collate_fn": as_list}),
        ("images", {"decode": {"image": shardload.ImageDecode()}}),
        ("images", {"decode": {"image": shardload.ImageDecode(8, crop=None)}, "on_error": "substitute"}),
        ("mixed", {"batch_size": 64, "dtypes": {"big": torch.float64}}),
        ("numbers", {"batch_size": 3}),
    ],
    ids=lambda one: one if isinstance(one, str) else "-".join(one),
)
def test_same_batches_whoever_reads(name: str, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    path, found = request.getfixturevalue(name), {}
    for helper in (False, True):
        loader = make(path, helper, **options)
        found[helper] = [flat(batch) for _ in range(2) for batch in loader]
        assert loader.stats().num_helper_batches == (len(found[True]) if helper else 0)
        loader.close()
    assert len(found[True]) >= 2
    assert found[True] == found[False]


def test_large_byte_strings_and_texts_beyond_ascii(tmp_path: Path) -> None:
    """Those are copied by the kernel, a thousand a call, and those are cut by characters."""
    schema = {"data": "bytes", "text": "str", "other": "str", "none": "bytes"}
    with shardload.ShardWriter(tmp_path / "set", schema, shard_size="4MiB") as writer:
        for i in range(2200):
            letters = "aé中\U0001f600"[i % 4] * (i % 50)
            data = bytes([i % 251]) * (5000 + i if i % 9 else 0)
            writer.write({"data": data, "text": letters, "other": f"{i}" * (i % 3), "none": b""})
    found = {}
    for helper in (False, True):
        loader = make(tmp_path / "set", helper, batch_size=1100)
        found[helper] = [flat(batch) for batch in loader]
        assert loader.stats().num_helper_batches == (2 if helper else 0)
    assert found[True] == found[False]


def test_resume_at_every_batch(everything: Path) -> None:
    options = {"with_ids": True, "batch_size": 3}
    whole = [flat(batch) for loader in [make(everything, False, **options)] for _ in range(2) for batch in loader]
    # Two processes for all stops: each takes time to start.
    loader, later = make(everything, True, **options), make(everything, True, **options)
    begin = loader.state_dict()
    for stop in range(-(-EVERY_SAMPLES // 3)):
        loader.load_state_dict(begin)
        batches = iter(loader)
        rows = [flat(next(batches)) for _ in range(stop)]
        later.load_state_dict(loader.state_dict())
        batches.close()
        rows += [flat(batch) for _ in range(2) for batch in later]
        assert rows[: len(whole)] == whole
    assert later.stats().num_helper_batches >= len(whole)


def test_kept_batches_stay_as_they_were(everything: Path) -> None:
    loader = make(everything, True, batch_size=2, prefetch_batches=2)
    kept, were = [], []
    for _ in range(4):
        for batch in loader:
            kept.append(batch)
            were.append(flat(batch))
    loader.close()
    gc.collect()
    assert [flat(batch) for batch in kept] == were
    assert len({tensor["label"].data_ptr() for tensor in kept}) == len(kept)


def test_an_iteration_that_was_left(mixed: Path) -> None:
    """What it had asked for is waited for, and its memory and its answers are not those of the next one."""
    loader = make(mixed, True, batch_size=8, with_ids=True)
    expected = make(mixed, False, batch_size=8, with_ids=True)
    for epoch in range(12):
        loader.set_epoch(epoch)
        expected.set_epoch(epoch)
        for number, (batch, other) in enumerate(zip(loader, expected, strict=True)):
            assert flat(batch) == flat(other)
            if number == epoch:
                break
    assert loader.stats().num_helper_batches >= 12


def test_memory_is_used_again_and_given_back(numbers: Path) -> None:
    loader = make(numbers, True, batch_size=100)
    for _ in range(5):
        for _ in loader:
            pass
    stats = loader.stats()
    assert stats.num_buffers_reused > 3 * stats.num_buffers_new
    process = loader._course.aside.process
    arena = process._arena
    loader.close()
    assert shared_bytes(arena) <= 8 * 64 * 1024, "only slots that were written may hold pages"


def shared_bytes(arena: SharedArena) -> int:
    return os.fstat(arena.descriptor).st_blocks * 512


def test_a_piece_that_is_given_back_takes_no_memory() -> None:
    arena = SharedArena(1 << 30)
    pool = BufferPool(1 << 20, arena=arena)
    arrays = [pool.lease((1 << 20,), np.dtype(np.uint8)) for _ in range(5)]
    for array in arrays:
        array[:] = 7
    assert shared_bytes(arena) == 5 << 20
    del array, arrays
    assert (pool.idle_bytes, shared_bytes(arena)) == (1 << 20, 1 << 20)
    pool.close()
    assert shared_bytes(arena) == 0
    again = [pool.lease((1 << 20,), np.dtype(np.uint8)) for _ in range(6)]
    assert len({one.ctypes.data for one in again}) == 6
    with pytest.raises(MemoryError):
        pool.lease((1 << 30,), np.dtype(np.uint8))
    assert pool.leased_bytes == 6 << 20


def test_a_forked_child_keeps_what_it_was_born_with() -> None:
    """The memory is shared with it: nobody may write there again, for as long as it may look."""
    arena = SharedArena(1 << 30)
    pool = BufferPool(1 << 20, arena=arena)
    held, other = (pool.lease((4096,), np.dtype(np.uint8)) for _ in range(2))
    held[:], other[:] = 5, 6
    del other
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # In the child: it drops one of its own as well, which must not touch the parent's.
        with contextlib.suppress(BaseException):
            select.select([reader], [], [], 30)
            fine = bool((held == 5).all())
            del held
            pool.close()
            os._exit(0 if fine else 1)
        os._exit(2)
    del held
    new = [pool.lease((4096,), np.dtype(np.uint8)) for _ in range(4)]
    for array in new:
        array[:] = 9
    os.write(writer, b"x")
    status = os.waitpid(child, 0)[1]
    os.close(reader), os.close(writer)
    assert status == 0
    assert all((array == 9).all() for array in new)


def child_of(loader: shardload.ShardLoader) -> int:
    return loader._course.aside.process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    """The test's own limit ends the wait."""
    while alive(pid):
        select.select([], [], [], 0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_in_mid_epoch(numbers: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    expected = [flat(batch) for loader in [make(numbers, False)] for _ in range(2) for batch in loader]
    loader, found = make(numbers, True, prefetch_batches=2), []
    with caplog.at_level(logging.WARNING, "shardload"):
        for batch in loader:
            found.append(flat(batch))
            if len(found) == 20:
                os.kill(child_of(loader), number)
        found += [flat(batch) for batch in loader]
    assert found == expected
    assert 20 <= loader.stats().num_helper_batches < len(expected)
    assert [record.message.count(f"status {-number}") for record in caplog.records] == [1]
    assert not Path(f"/proc/{child_of(loader)}").exists(), "not even a zombie"


def test_a_process_that_cannot_start(
    numbers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    loader = make(numbers, True)
    with caplog.at_level(logging.WARNING, "shardload"):
        assert len(list(loader)) == len(list(loader)) == 201
    assert loader.stats().num_helper_batches == 0 and len(caplog.records) == 1


def test_one_that_does_not_answer_is_ended_with_the_iteration(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardload.loader.reader_process._SETTLE_SECONDS", 1.0)
    monkeypatch.setattr("shardload.loader.prefetch._JOIN_SECONDS", 0.2)
    loader = make(numbers, True, prefetch_batches=2)
    batches = iter(loader)
    next(batches)
    pid = child_of(loader)
    os.kill(pid, signal.SIGSTOP)
    loader.close()
    wait_until_gone(pid)


def damage(path: Path, shard: int) -> None:
    """Changes a byte in the midst of a shard's texts."""
    file = sorted((path / "shards").iterdir())[shard]
    data = bytearray(file.read_bytes())
    place = data.index(b"text of ")
    data[place] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    with shardload.ShardWriter(tmp_path / "set", {"number": "int64", "text": "str"}, shard_size="8KiB") as writer:
        for i in range(400):
            writer.write({"number": i, "text": f"text of {i} " * 9})
    damage(tmp_path / "set", 3)
    return tmp_path / "set"


def test_the_error_of_a_damaged_sample_is_the_same(damaged: Path) -> None:
    errors = {}
    for helper in (False, True):
        loader, found = make(damaged, helper), []
        with pytest.raises(shardload.ChecksumError) as raised:
            for batch in loader:
                found.append(flat(batch))
        errors[helper] = type(raised.value), vars(raised.value), found
    assert errors[True] == errors[False] and errors[True][2]
    assert errors[True][1]["sample_id"] is not None


@pytest.mark.parametrize("policy", ["mask", "substitute"])
def test_stand_ins_are_the_same(damaged: Path, policy: str) -> None:
    found = {}
    for helper in (False, True):
        loader = make(damaged, helper, on_error=policy, with_ids=True)
        found[helper] = [flat(batch) for batch in loader], loader.stats().num_faults
        assert not helper or 0 < loader.stats().num_helper_batches < 80
    assert found[True] == found[False] and found[True][1] == 1


def test_a_missing_file_is_the_same_error(damaged: Path) -> None:
    sorted((damaged / "shards").iterdir())[5].unlink()
    errors = {}
    for helper in (False, True):
        with pytest.raises((shardload.StorageError, shardload.ChecksumError)) as raised:
            list(make(damaged, helper, shuffle=False, batch_size=400))
        errors[helper] = type(raised.value), vars(raised.value)
    assert errors[True] == errors[False]


def test_what_does_not_fit_is_read_here(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst larger than its piece of memory, and a request with no room for its arrays."""
    expected = [flat(batch) for batch in make(everything, False)]
    monkeypatch.setattr("shardload.loader.reader_process._SLOT_BYTES", 16 << 10)
    loader = make(everything, True)
    assert [flat(batch) for batch in loader] == expected
    assert loader.stats().num_helper_batches < len(expected)
    loader = make(everything, True)
    monkeypatch.setattr(BufferPool, "lease", refusing(BufferPool.lease))
    assert [flat(batch) for batch in loader] == expected


def refusing(lease: Any) -> Any:
    def refuses(pool: BufferPool, *arguments: Any) -> Any:
        if pool._arena is not None:
            raise MemoryError
        return lease(pool, *arguments)

    return refuses


def test_functions_that_cannot_be_pickled_stay_here(numbers: Path) -> None:
    dataset = shardload.open(numbers, transform=lambda sample: {"twice": 2 * sample["number"]})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(dataset)
    loader = shardload.ShardLoader(dataset, 100, shuffle=False, tail="short", helper_process=True)
    LOADERS.append(loader)
    assert torch.cat([batch["twice"] for batch in loader]).tolist() == list(range(0, 2006, 2))
    assert loader.stats().num_helper_batches == 11


def test_reseeded_epochs_are_decoded_by_the_new_seed(images: Path) -> None:
    found = {}
    for helper in (False, True):
        loader = make(images, helper, decode=DECODE)
        batches = [flat(next(iter(loader)))]
        loader.load_state_dict(loader.state_dict(), reseed=77)
        found[helper] = batches + [flat(batch) for _ in range(2) for batch in loader]
    assert found[True] == found[False]


def test_settings_that_contradict_each_other(numbers: Path) -> None:
    for options in ({"num_processes": 1}, {"prefetch_batches": 0}, {"pin_memory": True}):
        with pytest.raises(ValueError, match="helper_process=True"):
            make(numbers, True, **options)


def test_a_busy_training_thread_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By two answers in a row, and an idle one by three; every eighth burst is asked for once the process reads."""
    monkeypatch.setattr(aside_module, "_ASK_SECONDS", 0.0)
    aside = aside_module.Aside(None, make_bare(), 2, 0, False, False)  # type: ignore[arg-type]
    answers: list[bool] = []
    monkeypatch.setattr(aside_module, "interpreter_busy", lambda: answers.pop(0))
    answers[:] = [False, True, False, True, True]
    assert [aside._wanted() for _ in range(5)] == [False] * 4 + [True] and not answers
    answers[:] = [False, False, True, False, False, False]
    assert [aside._wanted() for _ in range(43)] == [True] * 42 + [False] and not answers


def test_threads_that_fetch_for_us_are_no_busy_training_thread() -> None:
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    threads = [threading.Thread(target=spin, name="shardload-fetch") for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert not any(interpreter_busy() for _ in range(10))
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_an_idle_training_thread_is_not_asked_about_at_each_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    aside = aside_module.Aside(None, make_bare(), 2, 0, False, False)  # type: ignore[arg-type]
    now, answers = [100.0], [False, True, True]
    monkeypatch.setattr(aside_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(aside_module, "interpreter_busy", lambda: answers.pop(0))
    assert [aside._wanted() for _ in range(5)] == [False] * 5 and len(answers) == 2
    for expected in (False, True):
        now[0] += aside_module._ASK_SECONDS
        assert aside._wanted() is expected
    assert not answers


def make_bare() -> Any:
    class Bare:
        transform = collate_fn = None

    return Bare()


def test_what_the_process_is_given_is_small_and_holds_no_function(everything: Path) -> None:
    dataset = shardload.open(everything, transform=lambda sample: sample)
    recipe = make_recipe(dataset, None, None, None, None, None, None)
    work = work_of(dataset, recipe, True)
    assert work.dataset.transform is None and dataset.transform is not None
    assert len(pickle.dumps(work)) < 64 << 10


def test_the_process_loads_no_torch() -> None:
    code = "import sys, shardload.reader.serve; sys.exit('torch' in sys.modules or 'multiprocessing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


PROGRAM = """
import sys, time, os
sys.path.insert(0, {tests!r})
import shardload, torch

loader = shardload.ShardLoader(shardload.open(sys.argv[1]), 10, shuffle=True, tail="short", helper_process={helper})
batches = iter(loader)
next(batches)
pid = loader._course.aside.process.pid if {helper} else 0
print(pid, flush=True)
{ending}
"""


def start(numbers: Path, ending: str, helper: bool | None = True) -> tuple[Program, int]:
    """Starts a program without a `__main__` guard; returns it and its helper's process id once a batch came."""
    program = PROGRAM.format(tests=TESTS, ending=ending, helper=helper)
    process = Program(program, numbers, strict=True)
    line = process.readline()
    assert line.strip().isdecimal(), process.communicate(timeout=60)
    return process, int(line)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("os._exit(4)", 4),
        ("raise KeyError('mine')", 1),
        ("batches = None; loader = None", 0),
        ("loader.close()", 0),
        ("sys.exit(os.fork() and os.wait()[1])", 0),
        ("loader2 = loader; del loader; list(batches); list(loader2)", 0),
    ],
)
def test_the_program_ends_as_it_wants(numbers: Path, ending: str, status: int) -> None:
    before = set(os.listdir("/dev/shm"))
    process, pid = start(numbers, ending)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (status, ""), errors
    assert errors.rstrip().endswith("KeyError: 'mine'") if status == 1 else errors == ""
    wait_until_gone(pid)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "shardload" in name]


@pytest.mark.parametrize("group", [True, False])
def test_ctrl_c(numbers: Path, group: bool) -> None:
    process, pid = start(numbers, "time.sleep(60)")
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and errors.count("KeyboardInterrupt") == 1 and "Fatal" not in errors
    wait_until_gone(pid)


@pytest.mark.parametrize("held", [False, True])
def test_a_parent_that_is_killed_leaves_no_process(numbers: Path, held: bool) -> None:
    """Also where a forked child of it lives on, which holds the other end of the socket open."""
    ending = "os.fork() or (time.sleep(50), os._exit(0)); print('forked', flush=True)\n" if held else ""
    process, pid = start(numbers, ending + "time.sleep(60)")
    assert not held or process.readline() == "forked\n"
    process.kill()
    wait_until_gone(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


SPINS = """
limit, value = time.monotonic() + 80, 1
while time.monotonic() < limit and not loader.stats().num_helper_batches:
    for batch in loader:
        # For longer than the interpreter's lock may be held: at the end of a batch it is given up in any case.
        for i in range(200_000):
            value = (value * 31 + i) & 0xFFFFF
        if loader.stats().num_helper_batches:
            break
print(loader.stats().num_helper_batches, flush=True)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core no process is started by itself")
def test_it_starts_by_itself_beside_a_busy_training_thread(numbers: Path) -> None:
    process, _ = start(numbers, SPINS, None)
    output, errors = process.communicate(timeout=110)
    assert process.returncode == 0 and errors == ""
    assert int(output) > 0


def test_an_idle_loop_starts_none(numbers: Path) -> None:
    loader = make(numbers, None)
    for _ in loader:
        select.select([], [], [], 0.001)
    assert loader.stats().num_helper_batches == 0


def test_dropped_without_a_word(numbers: Path) -> None:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    loader = shardload.ShardLoader(shardload.open(numbers), 16, shuffle=True, helper_process=True)
    batches = iter(loader)
    kept = next(batches)
    pid, were = child_of(loader), flat(kept)
    gc.disable()
    try:
        del loader, batches
        wait_until_gone(pid)
    finally:
        gc.enable()
    assert not Path(f"/proc/{pid}").exists(), "not even a zombie"
    assert flat(kept) == were
    del kept
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_forked_child_starts_anew(numbers: Path) -> None:
    loader = make(numbers, True, batch_size=100)
    expected = [flat(batch) for batch in make(numbers, False, batch_size=100)]
    assert [flat(batch) for batch in loader] == expected
    loader.set_epoch(0)
    child = os.fork()
    if child == 0:
        status = 3
        with contextlib.suppress(BaseException):
            same = [flat(batch) for batch in loader] == expected
            status = 0 if same and loader.stats().num_helper_batches == 11 else 1
            loader.close()
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert alive(child_of(loader))
    loader.set_epoch(0)
    assert [flat(batch) for batch in loader] == expected
    assert loader.stats().num_helper_batches == 22


def test_a_second_loader_of_the_same_dataset_has_its_own(numbers: Path) -> None:
    dataset = shardload.open(numbers)
    loaders = [shardload.ShardLoader(dataset, 50, shuffle=True, helper_process=True) for _ in range(2)]
    LOADERS.extend(loaders)
    for one, two in zip(*loaders, strict=True):
        assert torch.equal(one["number"], two["number"])
    assert child_of(loaders[0]) != child_of(loaders[1])


def test_loaders_with_a_process_are_pickled_without_it(numbers: Path) -> None:
    loader = make(numbers, True, batch_size=100)
    next(iter(loader))
    copy = pickle.loads(pickle.dumps(loader))
    LOADERS.append(copy)
    assert copy._course.aside is None and len(list(copy)) == 11


def test_a_process_alone(numbers: Path) -> None:
    """What it has no answer for is None, and what is asked beyond its slots is refused."""
    dataset = shardload.open(numbers)
    recipe = make_recipe(dataset, None, None, None, None, None, None)
    process = ReaderProcess(work_of(dataset, recipe, True), 1, 2, 1 << 20, False)
    try:
        assert process.ready(True)
        ids = np.arange(10)
        first, second = (process.ask([ids + n], (0, 0), [0], ()) for n in range(2))
        with pytest.raises(MemoryError):
            process.ask([ids], (0, 0), [0], ())
        wrong = process.take(second), process.take(first)
        assert [batches[0].columns["number"].values.tolist() for batches in wrong] == [
            list(range(1, 11)),
            list(range(10)),
        ]
        bad = process.ask([np.array([5000])], (0, 0), [0], ())
        assert process.take(bad) is None
        process.ask([ids], (0, 0), [0], ())
        process.settle()
        # Answers to what nobody wanted any more are not taken for those to what is asked now.
        for n in range(20):
            asked = process.ask([ids + n], (0, 0), [0], ())
            batches = process.take(asked)
            assert batches is not None and batches[0].columns["number"].values.tolist() == (ids + n).tolist()
            del asked, batches
        assert process.pool.leased_bytes <= 3 * 4096
    finally:
        process.close()
