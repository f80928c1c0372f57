"""Loaders end when the program wants them to, whatever they are doing, and leave nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.queues
import multiprocessing.synchronize
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from programs import Program
from threads import loader_threads
from transforms import SENDS, as_slow_ones

import shardload
from shardload.loader.iteration import Iteration
from shardload.loader.prefetch import Prefetcher

TESTS = str(Path(__file__).parent.parent)
PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import shardload, torch, transforms

if __name__ == "__main__":
    loader = shardload.ShardLoader(shardload.open(sys.argv[1]), 100, shuffle=True, transform=transforms.{transform},
                                   num_processes=int(sys.argv[2]), tail="short")
    batches = iter(loader)
    next(batches)
    print("running", flush=True)
    {ending}
"""


def start(numbers: Path, num_processes: int, ending: str, transform: str = "draws_own") -> Program:
    """Starts a program in a process group of its own; returns when its loader has given a batch."""
    program = PROGRAM.format(tests=TESTS, ending=ending, transform=transform)
    # Spawned processes read the program again: it must be a file.
    path = numbers.parent / f"program-{os.getpid()}-{abs(hash(program))}.py"
    path.write_text(program)
    process = Program(path, numbers, num_processes)
    assert process.readline() == "running\n", process.communicate(timeout=60)
    return process


def wait_for_group(group: int) -> None:
    """Returns when no process of a group is alive; the test's own limit ends the wait."""
    while True:
        alive = False
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            alive = alive or (int(stat[2]) == group and stat[0] != "Z")
        if not alive:
            return
        select.select([], [], [], 0.05)


@pytest.mark.parametrize("num_processes", [0, 1])
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("os._exit(4)", 4),
        ("raise KeyError('mine')", 1),
        ("batches = None; loader = None", 0),
        ("loader.close()", 0),
    ],
)
def test_the_program_ends_as_it_wants(numbers: Path, num_processes: int, ending: str, status: int) -> None:
    process = start(numbers, num_processes, ending)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (status, ""), errors
    if status == 1:
        assert errors.rstrip().endswith("KeyError: 'mine'")
    elif not (num_processes and status == 4):
        # Who leaves by os._exit lets Python's resource tracker say that it has tidied up.
        assert errors == ""
    wait_for_group(process.pid)


# The limits of what is waited for at the end, a third of what they are: here the wait is always for all of it.
WAITS_LESS = "shardload.loader.prefetch._JOIN_SECONDS, torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 3, 1.5; "


@pytest.mark.parametrize(("num_processes", "group"), [(0, False), (1, False), (1, True)])
def test_ctrl_c_while_the_loop_waits(numbers: Path, num_processes: int, group: bool) -> None:
    """The transform never returns; a terminal sends the signal to the whole group."""
    process = start(numbers, num_processes, WAITS_LESS + "list(batches)", "stops_after_a_batch")
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors and "Fatal" not in errors
    wait_for_group(process.pid)


def test_processes_end_with_a_parent_that_was_killed(numbers: Path) -> None:
    process = start(numbers, 2, "time.sleep(60)")
    process.kill()
    wait_for_group(process.pid)
    process.communicate(timeout=30)


ORPHAN = """
import multiprocessing, os, sys, time
from pathlib import Path
from shardload.loader.processes import _end_with_parent

def child(path):
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    _end_with_parent()
    Path(path).touch()

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1],))
    process.start()
    os._exit(0)
"""


def test_a_process_whose_parent_died_before_it_could_ask_ends_too(tmp_path: Path) -> None:
    """Seen once under load: it waited for room in a pipe that nobody read, for ever."""
    program, alive = tmp_path / "program.py", tmp_path / "alive"
    program.write_text(ORPHAN)
    process = subprocess.Popen([sys.executable, str(program), str(alive)], start_new_session=True)
    process.wait(60)
    wait_for_group(process.pid)
    assert not alive.exists()


def make(numbers: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"shuffle": True, "num_replicas": 1, "rank": 0}
    return shardload.ShardLoader(shardload.open(numbers), **{"batch_size": 16} | settings | options)


def test_what_is_dropped_is_gone_at_once(numbers: Path) -> None:
    """By its last reference, without the garbage collector: a thread must not keep its loader alive."""
    gc.disable()
    try:
        loader = make(numbers)
        batches = iter(loader)
        next(batches)
        gone = weakref.ref(loader), weakref.ref(batches)
        del loader, batches
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
    assert not loader_threads()


@pytest.mark.usefixtures("quick_processes")
def test_nothing_is_kept_for_the_interpreters_end(numbers: Path) -> None:
    """Of iterations with processes, which are ended first there."""
    loader = make(numbers, num_processes=1, batch_size=500)
    for _ in loader:
        break
    list(loader)
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Prefetcher)]


def test_a_thread_that_feeds_a_process_ends_before_the_iteration(
    numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it takes the queue's semaphores down, maybe while the interpreter ends: seen once, as a leak that was none."""
    names: list[str] = []
    closed = threading.Event()
    feed, take_down = multiprocessing.queues.Queue._feed, multiprocessing.synchronize.SemLock._cleanup

    def feeds_and_stays(*arguments: Any) -> None:
        feed(*arguments)
        closed.wait(0.3)

    def noted(name: str) -> None:
        names.append(threading.current_thread().name)
        take_down(name)

    monkeypatch.setattr(multiprocessing.queues.Queue, "_feed", staticmethod(feeds_and_stays))
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "_cleanup", staticmethod(noted))
    loader = make(numbers, num_processes=1)
    next(iter(loader))
    loader.close()
    closed.set()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(30)
    assert names and "QueueFeederThread" not in names


def test_a_process_that_is_sending_a_batch_ends_well(
    numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen once under load, as "terminate called": of a thread in torch for which there was no interpreter any more."""
    monkeypatch.setenv(SENDS, str(tmp_path / "sends"))
    others = multiprocessing.active_children()
    # One batch is taken, two wait, one waits for room; the fifth and sixth are asked for.
    loader = make(numbers, num_processes=1, shuffle=False, prefetch_batches=2, collate_fn=as_slow_ones)
    batches = iter(loader)
    next(batches)
    [process] = set(multiprocessing.active_children()) - set(others)
    while not (tmp_path / "sends").exists():
        select.select([], [], [], 0.05)
    loader.close()
    process.join(30)
    assert process.exitcode == 0


def test_closed_by_another_thread_while_the_loop_waits(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is waited for in vain.
    monkeypatch.setattr("shardload.loader.prefetch._JOIN_SECONDS", 0.2)
    entered, go = threading.Event(), threading.Event()

    def blocks(sample: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        go.wait(30)
        return sample

    loader = make(numbers, transform=blocks)
    errors: list[BaseException] = []

    def loop() -> None:
        try:
            next(iter(loader))
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=loop)
    waiting.start()
    assert entered.wait(30)
    loader.close()
    waiting.join(30)
    go.set()
    assert not waiting.is_alive() and isinstance(errors[0], shardload.LoaderClosedError)


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_closed_by_another_thread_while_it_begins(
    numbers: Path, monkeypatch: pytest.MonkeyPatch, prefetch_batches: int
) -> None:
    """Seen under load: the loop would wait for its batch, and get it."""
    begin = Iteration._begin

    def closed_meanwhile(iteration: Iteration) -> Any:
        begun = begin(iteration)
        # As if that had been in between: before there was anything to end.
        finalizer, iteration._finalizer = iteration._finalizer, None
        closing = threading.Thread(target=loader.close)
        closing.start()
        closing.join(30)
        iteration._finalizer = finalizer
        return begun

    monkeypatch.setattr(Iteration, "_begin", closed_meanwhile)
    loader = make(numbers, prefetch_batches=prefetch_batches)
    with pytest.raises(shardload.LoaderClosedError):
        next(iter(loader))
    assert not loader_threads()


@pytest.mark.parametrize("leave", ["break", "error", "new iterator", "close", "state"])
def test_leaving_while_the_queue_is_full(numbers: Path, leave: str) -> None:
    """The thread waits for room then."""
    loader = make(numbers, prefetch_batches=1)
    thread = None
    try:
        for _ in loader:
            thread = loader_threads()[0]
            if leave == "break":
                break
            if leave == "error":
                raise KeyError("mine")
            {"new iterator": lambda: next(iter(loader)), "close": loader.close, "state": lambda: loader.load_state_dict(
                loader.state_dict())}[leave]()  # fmt: skip
    except (KeyError, shardload.LoaderClosedError) as error:
        assert (leave == "error") == isinstance(error, KeyError)
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()
    loader.close()


def test_nothing_is_started_by_making_things(numbers: Path) -> None:
    gc.collect()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    dataset = shardload.open(numbers)
    loader = shardload.ShardLoader(dataset, 16, shuffle=True, num_processes=2, pin_memory=False)
    sampler = shardload.ShardSampler(dataset, 1, 0)
    batches = sampler.batch_sampler(16)
    assert len(loader) and len(batches) and loader.state_dict() and batches.state_dict()
    iter(loader)
    assert threading.active_count() <= threads and len(os.listdir("/proc/self/fd")) <= descriptors
