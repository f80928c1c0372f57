"""Which run a command is about: one that a saved state, a run log, or seed and shuffle tell of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardload.cli.shuffle_report import parse_shuffle
from shardload.cli.text import counted, printable
from shardload.errors import StateMismatchError
from shardload.order.cursor import Partition, Tail
from shardload.order.epoch import EpochOrders
from shardload.order.exclusion import LEFT_OUT, Exclude, left_out
from shardload.order.permutation import RECIPE
from shardload.order.shuffle import orders_named
from shardload.order.steps import Start, Stretch
from shardload.run_log import read_run

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset

_STATE_BYTES = 1 << 20
_LOGGED = ("--epoch", "--position", "--exclude", "--batch-size", "--num-replicas", "--tail")
"""Options for what a run log has."""


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    recipe: int
    stretches: list[Stretch]


def known_run(opened: ShardDataset, state: str | None, run_log: str | None, counts: bool, said: dict[str, Any]) -> Run:
    """Returns the run that was asked for."""
    given = {f"--{name.replace('_', '-')}": value for name, value in said.items() if value is not None}
    if state is not None and run_log is not None:
        raise click.UsageError("--state and --run-log both tell the order: leave one out")
    own = {"--state": state, "--run-log": run_log}
    for option, file in own.items():
        wrong = ["--seed", "--shuffle", *(_LOGGED if option == "--run-log" else [])]
        if file is not None and (twice := [name for name in wrong if name in given]):
            raise click.UsageError(f"{option} tells what {twice[0]} tells: leave one out")
    if run_log is not None:
        return _logged_run(opened, run_log)
    if counts and "--batch-size" not in given:
        raise click.UsageError("--step counts batches: say --batch-size too")
    if state is not None:
        return _run_of_state(opened, state, said)
    seed = said["seed"] or 0
    orders = left_out(opened.orders(parse_shuffle(said["shuffle"] or "full")), _excludes(said), seed)
    start = Start(_partition(orders, said), said["epoch"] or 0, said["position"] or 0)
    return Run(RECIPE, [Stretch(orders, start, seed)])


def _logged_run(opened: ShardDataset, path: str) -> Run:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        newest, stretches = read_run(path)
    for warning in caught:
        click.echo(f"shardload: warning: {printable(str(warning.message))}", err=True)
    _check_fingerprint(opened, newest.fingerprint, path)
    if newest.begun.orders.num_places != len(opened):
        raise StateMismatchError(
            f"{path} is of {newest.begun.orders.num_places} samples, and {opened.location} has {len(opened)}"
        )
    return Run(newest.recipe, stretches)


def _run_of_state(opened: ShardDataset, path: str, said: dict[str, Any]) -> Run:
    # It brings torch, which a seed or a run log does not need.
    from shardload.loader.state import read_state

    key, saved = read_state(_state_in(path))
    _check_fingerprint(opened, key.fingerprint, path)
    orders = _orders_of(key.shuffle, opened, path, _excludes(said), saved.seed)
    if key.num_samples != len(opened) or key.recipe != RECIPE or saved.place.position > len(opened):
        raise StateMismatchError(f"{path}: the state's place does not exist in the order of {opened.location}")
    epoch, position = saved.place.epoch, saved.place.position
    position = orders.restored(epoch, position, saved.seed, saved.reseeds, key.recipe)
    if said["epoch"] is not None:
        epoch, position = said["epoch"], 0
    if said["position"] is not None:
        position = said["position"]
    start = Start(_partition(orders, said), epoch, position)
    return Run(key.recipe, [Stretch(orders, start, saved.seed, saved.reseeds)])


def _state_in(path: str) -> dict[str, str]:
    """Returns the one state in a file: JSON, itself or anywhere in a document; or what torch.save wrote."""
    if Path(path).stat().st_size > _STATE_BYTES:
        raise ValueError(
            f"{path} is larger than any state: give a file with the state alone, json.dump(loader.state_dict(), file)"
        )
    data = Path(path).read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path} is no JSON: of a checkpoint, save the state alone, json.dump(loader.state_dict(), file)"
        ) from None
    states = set(_states(document))
    if len(states) != 1:
        raise ValueError(f"{path} has {len(states) or 'no'} states of shardload in it: give a file with exactly one")
    return {"shardload": states.pop()}


def _states(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and isinstance(text := one.get("shardload"), str) and text.startswith("{"):
            yield text
        elif isinstance(one, dict | list):
            waiting.extend(one.values() if isinstance(one, dict) else one)


def _check_fingerprint(opened: ShardDataset, fingerprint: str, path: str) -> None:
    if fingerprint != opened.fingerprint:
        raise StateMismatchError(
            f"{path} belongs to samples with the fingerprint {fingerprint!r:.80}, and {opened.location} has {opened.fingerprint}: "
            "is it of another dataset, another version of it (--version), or a view?"
        )


def _orders_of(name: object, opened: ShardDataset, path: str, excludes: list[Exclude], seed: int) -> EpochOrders:
    """Returns the orders of a run that goes on from a state, which may be from before it left samples out."""
    whole, without, _ = str(name).partition(LEFT_OUT)
    plain = {"full": True, "none": False}.get(whole, whole) if without else name
    try:
        orders = left_out(orders_named(plain, len(opened)), excludes, seed)
    except ValueError as error:
        raise StateMismatchError(f"{path}: {error}") from None
    if all(form.name != name for form in orders.forms()):
        raise StateMismatchError(
            f"{path}: the state is of a run that left samples out ({name!r:.120}): say with --exclude which"
        )
    return orders


def _excludes(said: dict[str, Any]) -> list[Exclude]:
    path = said["exclude"]
    if path is None:
        return []
    try:
        told = json.loads(Path(path).read_bytes())
        return [Exclude.from_facts(one) for one in (told if isinstance(told, list) else [told])]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{path}: {error}: it is to be {{"ids": [7, [20, 30]], "positions": [[0, 500, 600]]}}, or a list of such'
        ) from None


def _partition(orders: EpochOrders, said: dict[str, Any]) -> Partition:
    num_replicas: int = said["num_replicas"] or 1
    tail: Tail | None = said["tail"]
    if tail is None and orders.name is False and num_replicas > 1:
        raise click.UsageError("without shuffling, several ranks have a tail that must be named: say --tail")
    tail = tail or ("short" if orders.name is False else "drop")
    partition = Partition(orders.num_positions, said["batch_size"] or 1, num_replicas, tail)
    partition.check()
    if (said["position"] or 0) >= partition.num_samples:
        raise click.UsageError(
            f"--position {said['position']} is not in an epoch of {counted(partition.num_samples, 'sample')}"
        )
    return partition
