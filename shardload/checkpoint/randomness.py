"""The global generators of random numbers of a process, as text."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from shardload.errors import FormatError

GENERATORS = ("python", "numpy", "torch", "cuda")


def capture_random() -> dict[str, str]:
    """Returns the state of each generator as text: `python`, `numpy`, `torch`, and where it is used `cuda`, all visible devices."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = [_text(state) for state in torch.cuda.get_rng_state_all()]
    return {name: json.dumps(state, sort_keys=True) for name, state in states.items()}


def restore_random(states: Mapping[str, str]) -> None:
    """Puts the generators into states that `capture_random` returned; what is not there on this machine is left out.

    Raises:
        FormatError: they are no such states.
    """
    try:
        found = {name: json.loads(state) for name, state in states.items()}
        version, internal, gauss = found["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(_arrays(found["numpy"]))
        torch.set_rng_state(_tensor(found["torch"]))
        if "cuda" in found and torch.cuda.is_available():
            for number, state in enumerate(found["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(_tensor(state), number)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the checkpoint's random state cannot be taken up: {error}") from error


def seed_new_rank(states: Mapping[str, str], equal: Collection[str], rank: int) -> None:
    """Gives a rank that the checkpoint does not have its generators.

    Those that were equal on all ranks go on so, since control flow may depend on it. The others are seeded from the state of
    rank 0 and the number of the rank: other numbers on each, and the same ones whenever it is done again.

    Args:
        states: of rank 0, as of `capture_random`.
        equal: names of the generators that were equal on all ranks.
        rank: this rank.
    """
    restore_random(states)
    for name in states.keys() - set(equal):
        digest = hashlib.sha256(f"{states[name]}:{rank}".encode()).digest()
        seed = int.from_bytes(digest[:8], "little")
        if name == "python":
            random.seed(seed)
        elif name == "numpy":
            np.random.seed(np.frombuffer(digest, dtype="<u4"))
        elif name == "torch":
            torch.default_generator.manual_seed(seed)
        elif torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)


def _text(state: torch.Tensor) -> str:
    return base64.b85encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b85decode(text)), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    """Returns the state of a bit generator with arrays as lists that name their dtype."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"dtype", "values"}:
        return np.array(value["values"], dtype=value["dtype"])
    return {name: _arrays(item) for name, item in value.items()} if isinstance(value, dict) else value
