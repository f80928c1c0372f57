"""The threads of this process that are shardload's."""

from __future__ import annotations

import threading

_ASKING = ("shardload-fetch", "shardload-announce")


def loader_threads() -> list[threading.Thread]:
    """Returns those that run, but for those that ask a store, which wait a while for more to do."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("shardload")]
    return [thread for thread in threads if thread.name not in _ASKING]
