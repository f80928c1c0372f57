"""Transforms and other functions of users, where child processes can import them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def draws_globally(sample: dict[str, Any]) -> dict[str, Any]:
    drawn = [random.random(), float(np.random.random()), float(torch.rand(()))]
    return {"number": sample["number"], "drawn": torch.tensor(drawn, dtype=torch.float64)}


def draws_both(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**draws_globally(sample), "own": rng.random()}


def draws_own(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"number": sample["number"], "own": rng.random()}


class SampleError(Exception):
    pass


def fails(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["number"] == 777:
        raise SampleError("no such picture")
    return sample


def refuses(sample: dict[str, Any]) -> dict[str, Any] | None:
    """Fails on a tenth of the numbers, and returns None for another one."""
    if sample["number"] % 10 == 3:
        raise SampleError(f"no such picture: {sample['number']}")
    return None if sample["number"] % 10 == 6 else {"number": sample["number"], "drawn": random.random()}


class Awkward(Exception):
    """Cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.lock = os.scandir(".")


def fails_awkwardly(sample: dict[str, Any]) -> dict[str, Any]:
    raise Awkward("one", "two")


def dies(sample: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return sample


def as_list(samples: Any) -> Any:
    return {"number": [sample["number"] for sample in samples], "process": os.getpid()}


SENDS = "SHARDLOAD_TEST_SENDS"
"""Names the file that tells of a process that is sending a batch."""


class Slow:
    """Takes a minute to pickle, in calls of torch."""

    def __reduce__(self) -> tuple[Any, ...]:
        Path(os.environ[SENDS]).touch()
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            torch.ones(100, 100) @ torch.ones(100, 100)
        return Slow, ()


def as_slow_ones(samples: Any) -> Any:
    """From number 64 on."""
    return {"number": [sample["number"] for sample in samples], "slow": Slow() if samples[0]["number"] >= 64 else None}


def draws_for_a_batch(samples: Any) -> Any:
    return {"number": [sample["number"] for sample in samples], "drawn": [random.random(), float(np.random.random())]}


def add_noise(batch: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**batch, "noise": rng.random()}


def anonymous(batch: Any) -> Any:
    return batch


_num_seen = 0


def stops_after_a_batch(sample: dict[str, Any]) -> dict[str, Any]:
    """Waits for ever at the 101st sample of a process."""
    global _num_seen
    _num_seen += 1
    if _num_seen > 100:
        threading.Event().wait()
    return sample
