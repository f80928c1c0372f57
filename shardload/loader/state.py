"""The state of an order: a handful of numbers, as one JSON string under one key.

Versions: 1 had no `reseeds`, and is read as a state without any; 2 is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardload.errors import StateMismatchError
from shardload.order import RECIPE
from shardload.order.epoch import Reseed, seed_at

STATE_KEY = "shardload"
STATE_VERSION = 2
MAX_RESEEDS = 8
"""More would not fit a kilobyte."""


@dataclass(frozen=True, slots=True)
class OrderKey:
    """What an order is made from; states of other keys are refused."""

    fingerprint: str
    """Fingerprint of what samples are read from."""
    num_samples: int
    """Positions of an epoch."""
    seed: int
    """Seed of the permutations, from the first epoch on."""
    shuffle: bool | str
    """Name of the orders: whether they are permutations of all samples, or another way to mix them."""
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


@dataclass(frozen=True, slots=True)
class Saved:
    """What a state holds beside what it must share with the loader."""

    place: Place
    seed: int
    """The first seed of the order."""
    reseeds: tuple[Reseed, ...]
    """The seeds that were given later, in their order."""


def encode_state(key: OrderKey, place: Place, reseeds: Sequence[Reseed] = ()) -> dict[str, str]:
    """Returns the state as one key with JSON in it: that survives whatever a framework does to a dictionary."""
    content = {"version": STATE_VERSION, **asdict(key), **asdict(place), "reseeds": [list(one) for one in reseeds]}
    return {STATE_KEY: json.dumps({**content, "checksum": _checksum(content)}, sort_keys=True)}


def decode_state(state: Mapping[str, Any], key: OrderKey, reseed: int | None = None) -> Saved:
    """Returns what a state made by `encode_state` holds.

    Args:
        state: the state.
        key: what the loader was made with. Its seed may be the first one of the state, the one in force at its place, or
            the one that it goes on with.
        reseed: the seed to go on with; None for no other.

    Raises:
        StateMismatchError: not such a state, changed since, or of another dataset, seed or order.
    """
    content = _content(state)
    for name, mine in asdict(key).items():
        if name != "seed" and content[name] != mine:
            raise StateMismatchError(f"the state was saved with {name} {content[name]!r:.80}, this loader has {mine!r}")
    saved = _saved(content)
    if saved is None or saved.place.position > key.num_samples:
        told = {name: content[name] for name in (*Place.__slots__, "seed", "reseeds")}
        raise StateMismatchError(f"the state's place {told!s:.200} does not exist in {key.num_samples} samples")
    place = saved.place
    current = seed_at(saved.seed, saved.reseeds, place.epoch, place.position)
    # The last one may be in force only a little later.
    last = saved.reseeds[-1].seed if saved.reseeds else current
    if key.seed not in (saved.seed, current, last, reseed):
        now = "" if current == saved.seed else f" (and {current} since)"
        raise StateMismatchError(
            f"the state was saved with seed {saved.seed!r:.80}{now}, this loader has {key.seed!r}; to go on from its place with "
            "another seed say load_state_dict(state, reseed=...)"
        )
    return saved


def _saved(content: dict[str, Any]) -> Saved | None:
    """Returns what the content of a state says, or None if it cannot be."""
    place, reseeds = Place(content["epoch"], content["position"], content["batches"]), content["reseeds"]
    if not isinstance(reseeds, list) or len(reseeds) > MAX_RESEEDS:
        return None
    if not all(isinstance(one, list) and len(one) == 3 for one in reseeds):
        return None
    places = [*asdict(place).values(), *(number for one in reseeds for number in one[:2])]
    seeds = [content["seed"], *(one[2] for one in reseeds)]
    limits = [1 << 63] * len(places) + [1 << 64] * len(seeds)
    if not all(type(n) is int and 0 <= n < limit for n, limit in zip(places + seeds, limits, strict=True)):
        return None
    return Saved(place, content["seed"], tuple(Reseed(*one) for one in reseeds))


def _content(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the JSON of a state says, as of the newest version."""
    text = state.get(STATE_KEY) if isinstance(state, Mapping) else None
    if not isinstance(text, str):
        raise StateMismatchError(f"not a state of shardload: there is no text under {STATE_KEY!r}")
    try:
        content: dict[str, Any] = json.loads(text)
        checksum = content.pop("checksum")
        version = content.pop("version")
        # Python writes JSON by recursion too, and from a little deeper.
        computed = _checksum({"version": version, **content})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise StateMismatchError(f"not a state of shardload: {text[:60]!r} is not its JSON") from None
    if version not in (1, STATE_VERSION) or type(version) is not int:
        raise StateMismatchError(
            f"the state is of version {version!r:.60}; this version of shardload reads 1 to {STATE_VERSION}"
        )
    if checksum != computed:
        raise StateMismatchError("the state was changed after it was saved: its checksum does not fit")
    if content.keys() != {*OrderKey.__slots__, *Place.__slots__, *(["reseeds"] if version > 1 else [])}:
        raise StateMismatchError(f"the state has other fields than version {version} has")
    return {"reseeds": [], **content}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
