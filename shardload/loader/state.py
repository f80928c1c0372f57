"""The state of an order: a handful of numbers, as one JSON string under one key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shardload.errors import StateMismatchError
from shardload.order import RECIPE

STATE_KEY = "shardload"
STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class OrderKey:
    """What an order is made from; states of other keys are refused."""

    fingerprint: str
    """Fingerprint of the dataset."""
    num_samples: int
    """Samples in it."""
    seed: int
    """Seed of the permutations."""
    shuffle: bool
    """Whether the order is a permutation or the order of the dataset."""
    recipe: int = RECIPE
    """Version of the permutation."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands in its order."""

    epoch: int = 0
    """The epoch, from 0."""
    position: int = 0
    """The next position to deliver: the cursor."""
    batches: int = 0
    """Batches delivered in this epoch."""


def encode_state(key: OrderKey, place: Place) -> dict[str, str]:
    """Returns the state as one key with JSON in it: that survives whatever a framework does to a dictionary."""
    content = {"version": STATE_VERSION, **asdict(key), **asdict(place)}
    return {STATE_KEY: json.dumps({**content, "checksum": _checksum(content)}, sort_keys=True)}


def decode_state(state: Mapping[str, Any], key: OrderKey) -> Place:
    """Returns the place in a state made by `encode_state` for the same key.

    Raises:
        StateMismatchError: not such a state, changed since, or of another dataset, seed or order.
    """
    text = state.get(STATE_KEY) if isinstance(state, Mapping) else None
    if not isinstance(text, str):
        raise StateMismatchError(f"not a state of shardload: there is no text under {STATE_KEY!r}")
    try:
        content = json.loads(text)
        checksum = content.pop("checksum")
        version = content.pop("version")
        # Python writes JSON by recursion too, and from a little deeper.
        computed = _checksum({"version": version, **content})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise StateMismatchError(f"not a state of shardload: {text[:60]!r} is not its JSON") from None
    if version != STATE_VERSION:
        raise StateMismatchError(
            f"the state is of version {version!r:.60}; this version of shardload reads {STATE_VERSION}"
        )
    if checksum != computed:
        raise StateMismatchError("the state was changed after it was saved: its checksum does not fit")
    if content.keys() != {*OrderKey.__slots__, *Place.__slots__}:
        raise StateMismatchError(f"the state has other fields than version {STATE_VERSION} has")
    for name, mine in asdict(key).items():
        if content[name] != mine:
            raise StateMismatchError(f"the state was saved with {name} {content[name]!r:.80}, this loader has {mine!r}")
    place = Place(content["epoch"], content["position"], content["batches"])
    numbers = asdict(place).values()
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) or place.position > key.num_samples:
        raise StateMismatchError(f"the state's place {place!s:.200} does not exist in {key.num_samples} samples")
    return place


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
