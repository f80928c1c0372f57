"""Functions that packs in tests map and filter with; the processes of a pack import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

Sample = dict[str, Any]


def clean(sample: Sample) -> Sample | list[Sample] | None:
    """Drops, splits and changes samples by their number."""
    number = sample.pop("number")
    if number % 7 == 0:
        return None
    if number % 7 == 1:
        return [{**sample, "number": number, "part": part, "text": sample["text"] * part} for part in range(3)]
    return {**sample, "number": number, "part": 9}


def many(sample: Sample) -> list[Sample]:
    return [{**sample, "part": part, "text": f"{part} {sample['text']}"} for part in range(5)]


def keep(sample: Sample) -> bool:
    """Drops some of the parts."""
    return bool((sample["number"] + sample["part"]) % 5)


def same(sample: Sample) -> Sample:
    return sample


def typed(sample: Sample) -> Sample:
    """Values of many kinds."""
    import numpy as np  # Here: every process for functions would load it at its start.

    number = sample["number"]
    return {
        "tokens": np.arange(number % 5, dtype=np.uint16),
        "fixed": np.full((2, 3), number, np.float32),
        "small": np.int8(number % 100),
        "text": str(number),
        "bytes": bytes([number % 256]),
        "image": b"\xff\xd8\xff" + bytes(number % 3),
        "flag": number % 2 == 0,
        "tree": {"a": [number]},
        "half": None if number % 2 else 0.5,
    }


def bad(sample: Sample) -> Any:
    """Does everything that a function should not, each to one sample."""
    number = sample["number"]
    if number == 30:
        while True:
            pass
    if number == 40:
        time.sleep(3600)
    if number in (50, 51):
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 60:
        raise ValueError("no good")
    if number == 61:
        return 5
    if number == 62:
        return [sample, "text"]
    if number == 63:
        return {**sample, "number": "sixty"}
    if number == 64:
        return {**sample, "number": lambda: 1}
    if number == 65:
        return {64: sample}
    if number == 66:
        raise SystemExit(2)
    if number == 67:
        os._exit(3)
    if number == 68:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 69:
        return (one for one in [sample])
    if number == 70:
        print("printed")
    return sample


def hang(sample: Sample) -> Sample:
    """Never returns, and says in a file which process does not."""
    Path(os.environ["HANGS"]).write_text(str(os.getpid()))
    while True:
        time.sleep(3600)


def no_bool(sample: Sample) -> str:
    return "yes"


def spin(sample: Sample) -> Sample:
    """Keeps a core busy for as many steps as the sample says."""
    state = sample["number"]
    for _ in range(sample.get("steps", 1000)):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
    return {**sample, "spun": state >> 1}
