"""Processes of the loader without the seconds that each takes to import torch, and a dataset that several files read."""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from documents import write_documents
from quick import PRELOADED

from shardload.loader import processes


class Forked(ForkServerContext):
    """As the loader's own, but from a process that has imported torch already. What a process is given is pickled as well."""

    def Queue(self, maxsize: int = 0) -> Queue[Any]:
        return processes._JoinedQueue(maxsize, ctx=self.get_context())


def begin(worker: int) -> None:
    # All but that it ends with the process that has started it: that is another one here.
    atexit.register(processes._leave)


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests of what comes from processes. How they start and end is tested with those that users have."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    monkeypatch.setattr(processes, "_Context", Forked)
    monkeypatch.setattr(processes, "_begin", begin)
    yield


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents of varying length. Read only."""
    return write_documents(tmp_path_factory.mktemp("documents") / "dataset")
