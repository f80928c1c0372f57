"""The state of an order: a handful of numbers, as one JSON string under one key.

Versions: 1 had no `reseeds`, and is read as a state without any; 2 is written; 3 has since when a mixture has had its weights, and
is written for mixtures only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shardload.errors import StateMismatchError
from shardload.order import RECIPE
from shardload.order.blend import Blend
from shardload.order.epoch import EpochOrders, Reseed, Segment, seed_at
from shardload.order.exclusion import LEFT_OUT

STATE_KEY = "shardload"
STATE_VERSION, MIXTURE_VERSION = 2, 3
MAX_RESEEDS = 8
"""More would not fit a kilobyte."""
_MIXTURE = {"parts", "epoch", "position", "drawn", "used"}
"""What is told of a mixture; the samples of an epoch are told already."""


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
    num_samples: int
    """Positions of an epoch there."""
    segment: Segment | None = None
    """Since when a mixture has had its weights."""


def encode_state(
    key: OrderKey, place: Place, reseeds: Sequence[Reseed] = (), segment: Segment | None = None
) -> dict[str, str]:
    """Returns the state as one key with JSON in it: that survives whatever a framework does to a dictionary."""
    content = {"version": STATE_VERSION, **asdict(key), **asdict(place), "reseeds": [list(one) for one in reseeds]}
    if segment is not None:
        content |= {
            "version": MIXTURE_VERSION,
            "mixture": {n: v for n, v in segment._asdict().items() if n in _MIXTURE},
        }
    return {STATE_KEY: json.dumps({**content, "checksum": _checksum(content)}, sort_keys=True)}


def decode_state(
    state: Mapping[str, Any],
    key: OrderKey,
    reseed: int | None = None,
    segment: Segment | None = None,
    reweigh: bool = False,
) -> Saved:
    """Returns what a state made by `encode_state` holds.

    Args:
        state: the state.
        key: what the loader was made with. Its seed may be the first one of the state, the one in force at its place, or
            the one that it goes on with.
        reseed: the seed to go on with; None for no other.
        segment: what the loader's own mixture says of its weights; None for no mixture.
        reweigh: whether to go on with those where the state has others.

    Raises:
        StateMismatchError: not such a state, changed since, or of another dataset, seed or order.
    """
    content = _content(state)
    # Of other sources other weights are the least that is wrong.
    if (
        content["fingerprint"] == key.fingerprint
        and segment is not None
        and _weights(content) not in (None, segment[:2])
    ):
        if not reweigh:
            raise StateMismatchError(_other_weights(content, segment))
        key = replace(key, num_samples=content["num_samples"])
    for name, mine in asdict(key).items():
        if name != "seed" and content[name] != mine:
            raise StateMismatchError(
                f"the state was saved with {name} {content[name]!r:.200}, this loader has {mine!r}"
            )
    saved = _saved(content)
    if saved is None or saved.place.position > key.num_samples or (segment is None) != (saved.segment is None):
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


def read_state(state: Mapping[str, Any]) -> tuple[OrderKey, Saved]:
    """Returns what the order of a state is made from, and what else it holds, whatever it is to be loaded into.

    Raises:
        StateMismatchError: not such a state, or changed since.
    """
    content = _content(state)
    key = OrderKey(**{name: content[name] for name in OrderKey.__slots__})
    saved = _saved(content)
    if saved is None:
        raise StateMismatchError(
            f"the state's place {content['epoch']!r:.60}, {content['position']!r:.60} does not exist"
        )
    return key, saved


def form_of(state: Mapping[str, Any], orders: EpochOrders) -> EpochOrders:
    """Returns those of the forms of orders that a state is of; the orders themselves if it is of none.

    Raises:
        StateMismatchError: not such a state, or of a run that left out samples which these orders have.
    """
    name = _content(state)["shuffle"]
    form = next((form for form in orders.forms() if form.name == name), None)
    if form is None and isinstance(name, str) and LEFT_OUT in name:
        raise StateMismatchError(
            f"the state was saved by a run that left samples out ({name!r:.120}), and this loader has {orders.name!r}: give "
            "exclude= as that run had it; what is to be left out beside that goes behind it, as another Exclude in a list"
        )
    return orders if form is None else form


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
    try:
        segment = None if content["mixture"] is None else _segment(content)
    except (ValueError, TypeError, AttributeError):
        return None
    # Seeds have their places in each source, which are known only since the weights are what they are.
    if segment is not None and not all(
        segment[2:4] <= one <= (place.epoch, place.position) for one in [*(tuple(r[:2]) for r in reseeds), segment[2:4]]
    ):
        return None
    return Saved(place, content["seed"], tuple(Reseed(*one) for one in reseeds), content["num_samples"], segment)


def _segment(content: dict[str, Any]) -> Segment:
    """Returns what a state says of a mixture's weights.

    Raises:
        ValueError: it cannot be; or TypeError or AttributeError.
    """
    told = content["mixture"]
    if told.keys() != _MIXTURE:
        raise ValueError("other fields")
    parts, drawn, used = (tuple(told[name]) for name in ("parts", "drawn", "used"))
    numbers = [*parts, *drawn, *used, told["epoch"], told["position"], content["num_samples"]]
    if not len(parts) == len(drawn) == len(used) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError("no whole numbers for each source")
    Blend(parts)
    return Segment(parts, content["num_samples"], told["epoch"], told["position"], drawn, used)


def _weights(content: dict[str, Any]) -> tuple[Any, Any] | None:
    told = content["mixture"]
    parts = told.get("parts") if isinstance(told, dict) else None
    return (tuple(parts), content["num_samples"]) if isinstance(parts, list) else None


def _other_weights(content: dict[str, Any], segment: Segment) -> str:
    parts, num_positions = _weights(content) or ((), 0)
    return (
        f"the state was saved with a mixture of weights {list(parts)!r:.200} and {num_positions!r:.30} samples an epoch, this "
        f"loader's has {list(segment.parts)!r:.200} and {segment.num_positions}; to go on from its place with these say "
        "load_state_dict(state, reweigh=True)"
    )


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
    if version not in (1, STATE_VERSION, MIXTURE_VERSION) or type(version) is not int:
        raise StateMismatchError(
            f"the state is of version {version!r:.60}; this version of shardload reads 1 to {MIXTURE_VERSION}"
        )
    if checksum != computed:
        raise StateMismatchError("the state was changed after it was saved: its checksum does not fit")
    added = ["reseeds", "mixture"][: version - 1]
    if content.keys() != {*OrderKey.__slots__, *Place.__slots__, *added}:
        raise StateMismatchError(f"the state has other fields than version {version} has")
    return {"reseeds": [], "mixture": None, **content}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
