"""Waits that end, also in a process that was forked while another thread was about to wait."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from shardload.storage import LocalStorage, RetryingStorage
from shardload.storage.stopping import _never, current_stop

WAIT_SECONDS = 20


@contextlib.contextmanager
def held(*locks: threading.Lock) -> Iterator[None]:
    """Has another thread hold locks."""
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        ready.set()
        done.wait(WAIT_SECONDS)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(WAIT_SECONDS)
    try:
        yield
    finally:
        done.set()
        thread.join(WAIT_SECONDS)


def in_a_child(act: Callable[[], object]) -> int:
    """Returns how a forked child ended that did something, within some seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_waits_though_a_thread_of_its_parent_was_about_to() -> None:
    def wait() -> None:
        with current_stop().calling(lambda: None):
            assert not current_stop().wait(0)

    assert current_stop() is _never
    with held(_never._lock, _never._event._cond):  # type: ignore[attr-defined]
        assert in_a_child(wait) == 0
    wait()


def test_a_child_reads_the_files_of_its_parent_though_a_thread_counted_there(tmp_path: Path) -> None:
    storage = RetryingStorage(LocalStorage(str(tmp_path)))
    (tmp_path / "file").write_bytes(b"content")
    file = storage.open("file", 7)

    def read() -> None:
        assert file.read(0, 7) == b"content"

    with held(storage._retries._lock):
        assert in_a_child(read) == 0
    read()
