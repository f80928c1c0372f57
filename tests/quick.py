"""What processes begin with that are forked, in place of started anew, where a test is about what comes from them."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext

PRELOADED = ["torch.utils.data", "shardload.loader.processes", "shardload.packing.processes"]


class Multiprocessing:
    """Stands for the module of that name where `shardload.packing.processes` starts its workers."""

    def __init__(self) -> None:
        multiprocessing.set_forkserver_preload(PRELOADED)
        self._pid = os.getpid()

    def get_context(self, method: str) -> BaseContext:
        # A child that a test forks is killed with all its group: its workers are its own.
        return multiprocessing.get_context("forkserver" if os.getpid() == self._pid else method)
