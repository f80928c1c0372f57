"""The run log: a file with one JSON line for each start of a run's batches, from which its exact history follows.

A line says what the order is, where in it batches begin, how they are split, and where the run had come to before. No clock and no
machine is in it. Version 1.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from typing import Any, get_args

from shardload.errors import FormatError
from shardload.order.cursor import Partition, Tail
from shardload.order.epoch import EpochOrders, Reseed
from shardload.order.exclusion import Exclude, Excluding, left_out
from shardload.order.shuffle import orders_named
from shardload.order.steps import Begun, History, Start, Stretch
from shardload.version import VERSION

LOG_VERSION = 1
_MOST = 1 << 63
_MOST_SEED = 1 << 64
_MOST_RANKS = 1 << 32


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line."""

    fingerprint: str
    """Of the dataset."""
    recipe: int
    """Version of the permutation."""
    begun: Begun


def append_start(path: str | os.PathLike[str], recorded: Recorded) -> None:
    """Appends a line, by one write and flushed to the disk.

    Raises:
        OSError: it cannot be written.
    """
    begun, orders = recorded.begun, recorded.begun.orders
    left = orders if isinstance(orders, Excluding) else None
    facts = {
        "run_log": LOG_VERSION,
        "shardload": VERSION,
        "fingerprint": recorded.fingerprint,
        "num_samples": orders.num_places,
        "shuffle": orders.name if left is None else left.whole.name,
        "exclude": [] if left is None else [part.facts() for part in left.parts],
        "exclude_seed": 0 if left is None else left.seed,
        "recipe": recorded.recipe,
        "seed": begun.seed,
        "reseeds": [list(one) for one in begun.reseeds],
        "epoch": begun.start.epoch,
        "position": begun.start.position,
        "after": None if begun.after is None else list(begun.after),
        "batch_size": begun.start.partition.batch_size,
        "num_replicas": begun.start.partition.num_replicas,
        "tail": begun.start.partition.tail,
    }
    if orders.segment is not None:
        # No version of `locate` reads it yet, but without the weights nothing could tell what a mixture gave.
        facts["mixture"] = orders.segment._asdict()
    line = json.dumps(facts).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # What is left of a line that a crash cut off is to spoil itself only.
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{os.fspath(path)}: the disk took only a part of a line of the run log")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_run(path: str | os.PathLike[str]) -> tuple[Recorded, list[Stretch]]:
    """Returns the newest start of a run log, and the stretches of its run in the order of their steps.

    A line that is not whole, as a crash leaves one, is passed over with a warning.

    Raises:
        OSError: it cannot be read.
        FormatError: a line is of another kind, or does not go with those before it; names the file and the line.
    """
    name = os.fspath(path)
    lines: list[tuple[str, dict[str, Any]]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file.read().split(b"\n"), 1):
            where = f"{name}: line {number}"
            try:
                facts = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                # Where it is not the last one, the run went on after a crash in the midst of it.
                warnings.warn(f"{where} is not whole and is passed over", UserWarning, stacklevel=2)
                continue
            if facts is not None:
                lines.append((where, _of_a_log(facts, where)))
    if not lines:
        raise FormatError(f"{name}: there is no start in it: is it a run log?")
    first = max((i for i, (_, facts) in enumerate(lines) if facts.get("after") is None), default=0)
    return _run(lines[first:])


def _of_a_log(facts: Any, where: str) -> dict[str, Any]:
    if not isinstance(facts, dict) or "run_log" not in facts:
        raise FormatError(f"{where} is no line of a run log")
    if facts["run_log"] != LOG_VERSION:
        raise FormatError(
            f"{where} is of version {facts['run_log']!r:.60}; this version of shardload reads {LOG_VERSION}"
        )
    return facts


def _run(lines: list[tuple[str, dict[str, Any]]]) -> tuple[Recorded, list[Stretch]]:
    """Returns the last start and the stretches of the one run that lines are of."""
    run = History()
    known: dict[str, EpochOrders] = {}
    for where, facts in lines:
        for what in ("fingerprint", "shuffle", "recipe"):
            before, now = lines[0][1].get(what), facts.get(what)
            if before != now:
                raise FormatError(
                    f"{where} goes on with {what} {now!r:.80}, and those before it had {before!r:.80}: do two runs share this file?"
                )
        try:
            recorded = _recorded(facts, known)
        except (KeyError, TypeError, ValueError) as error:
            told = error if type(error) is ValueError else repr(error)
            raise FormatError(f"{where} does not say what a start says: {told!s:.300}") from None
        try:
            run.add(recorded.begun)
        except ValueError as error:
            raise FormatError(f"{where}: {error}: are lines missing before it?") from None
    return recorded, run.stretches()


def _recorded(facts: dict[str, Any], known: dict[str, EpochOrders]) -> Recorded:
    """Returns what a line says.

    Args:
        facts: the line.
        known: orders of lines before it, by what they are told by; those of this one are added.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another kind.
        ValueError: something cannot be.
    """
    told = [facts[name] for name in ("shuffle", "num_samples", "exclude", "exclude_seed")]
    orders = known.get(repr(told))
    if orders is None:
        whole = orders_named(told[0], _whole(told[1], 1))
        parts = [Exclude.from_facts(part) for part in told[2]]
        orders = known[repr(told)] = left_out(whole, parts, _whole(told[3], 0, _MOST_SEED))
    if facts["tail"] not in get_args(Tail):
        raise ValueError(f"tail {facts['tail']!r}")
    batch_size, num_replicas = (_whole(facts[name], 1, _MOST_RANKS) for name in ("batch_size", "num_replicas"))
    partition = Partition(orders.num_positions, batch_size, num_replicas, facts["tail"])
    partition.check()
    carried = partition.num_samples if partition.tail == "carry" else 0
    start = Start(partition, _whole(facts["epoch"]), _whole(facts["position"], -carried, partition.num_samples + 1))
    reseeds = tuple(Reseed(_whole(e), _whole(p), _whole(s, 0, _MOST_SEED)) for e, p, s in facts["reseeds"])
    after = None
    if facts["after"] is not None:
        epoch, position = facts["after"]
        after = _whole(epoch), _whole(position, -carried)
    begun = Begun(orders, start, _whole(facts["seed"], 0, _MOST_SEED), reseeds, after)
    if not isinstance(facts["fingerprint"], str):
        raise TypeError("the fingerprint is a text")
    return Recorded(facts["fingerprint"], _whole(facts["recipe"], 1), begun)


def _whole(value: Any, least: int = 0, stop: int = _MOST) -> int:
    if type(value) is not int or not least <= value < stop:
        raise ValueError(f"{value!r:.60} is no whole number from {least} below {stop}")
    return value
