"""A dataset in a forked child, at the worst moment of its parent."""

from __future__ import annotations

import contextlib
import os
import signal

import shardload


def test_locks_held_at_the_fork_do_not_hold_the_child(mixed):
    """A child starts anew: a lock that another thread of the parent held would never be given back in it."""
    dataset = shardload.open(mixed)
    dataset[0]
    access = dataset._process_access()
    files, arrivals = access._shards._files, contextlib.nullcontext()
    if dataset.far:
        files, arrivals = files._files, access.engine._arrivals._changed
    with access._shards._lock, files._lock, access._shards._cache._lock, arrivals:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if dataset[499]["number"] == 499 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert dataset[499]["number"] == 499
