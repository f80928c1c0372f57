"""Threads of this process: those that are shardload's, and some that do the same at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

_ASKING = ("shardload-fetch", "shardload-announce")


def loader_threads() -> list[threading.Thread]:
    """Returns those that run, but for those that ask a store, which wait a while for more to do."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("shardload")]
    return [thread for thread in threads if thread.name not in _ASKING]


def at_once(work: Callable[[], None], count: int = 4) -> None:
    """Runs something in several threads, and waits for their end."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
