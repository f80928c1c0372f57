"""`shardload locate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

import click
import numpy as np
from numpy.typing import NDArray

from shardload.cli.runs import Run, known_run
from shardload.cli.storage import storage_option
from shardload.cli.text import counted, cut, echo, echo_json, printable
from shardload.errors import ShardloadError
from shardload.order.cursor import Tail
from shardload.order.steps import Stretch

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset
    from shardload.reader.places import ByteRange

Int64 = NDArray[np.int64]

MAX_SAMPLES = 1_000_000
_MAX_EPOCHS = 16
_SHOWN_KEY = 40


@dataclass(frozen=True)
class Found:
    """Samples at steps of a run: arrays of shape (samples,)."""

    steps: Int64
    epochs: Int64
    positions: Int64
    ranks: Int64
    slots: Int64
    sample_ids: Int64


@click.command(short_help="Tell which samples a step has, or when a sample comes.")
@click.argument("dataset")
@click.option("--state", type=click.Path(dir_okay=False), help="A saved state: JSON, alone or in a document.")
@click.option("--run-log", type=click.Path(dir_okay=False), help="A run log, of ShardLoader.log_to.")
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), help="Seed of the order.  [default: 0]")
@click.option("--shuffle", help="full, block, BLOCK_SAMPLESxWINDOW_BLOCKS or none.  [default: full]")
@click.option("--exclude", type=click.Path(dir_okay=False), help="What the run left out: JSON, as of the run log.")
@click.option("--epoch", type=click.IntRange(0, 1 << 60), help="Epoch of the position.  [default: the state's, or 0]")
@click.option("--position", type=click.IntRange(0), help="Where steps are counted from.  [default: the state's, or 0]")
@click.option("--batch-size", type=click.IntRange(1, 1 << 30), help="Samples a batch and rank.  [default: 1]")
@click.option("--num-replicas", type=click.IntRange(1, 1 << 20), help="Ranks that share the order.  [default: 1]")
@click.option("--tail", type=click.Choice(get_args(Tail)), help="What becomes of an epoch's end, as in ShardLoader.")
@click.option("--step", help="A step from there on, counted from 0, or START:STOP.")
@click.option("--sample", type=click.IntRange(0), help="When the sample with this id is seen, instead.")
@click.option("--key", help="When the sample with this key is seen, instead.")
@click.option("--version", type=click.IntRange(1), help="Version of the dataset.  [default: the current one]")
@click.option("--rank", type=click.IntRange(0), help="Only what this rank gets.")
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def locate(
    dataset: str,
    storage_options: dict[str, Any],
    state: str | None,
    run_log: str | None,
    step: str | None,
    sample: int | None,
    key: str | None,
    version: int | None,
    rank: int | None,
    as_json: bool,
    **said: Any,
) -> int:
    """Tell which samples of DATASET a step of a run has, with their shards and bytes; or when a sample is seen.

    The order follows from --state, from --run-log, or from --seed and --shuffle. A step is one batch of all ranks. Steps are
    counted from the state, from the start of the epoch, or with a run log from the start of the run, over all its resumes.
    """
    from shardload.reader import open_dataset

    if sum(one is not None for one in (step, sample, key)) > 1:
        raise click.UsageError(
            "--step asks what a step has, --sample or --key when a sample comes: leave all but one out"
        )
    steps = _steps(step)
    opened = open_dataset(dataset, storage_options=storage_options, version=version)
    run = known_run(opened, state, run_log, step is not None, said)
    if key is not None:
        sample = _sample_with(opened, key)
    if sample is not None and sample >= len(opened):
        raise click.UsageError(f"there is no sample {sample}: {opened.location} has {counted(len(opened), 'sample')}")
    found = _at_steps(run, steps, rank) if sample is None else _at_sample(run, sample, rank, run_log is None)
    facts = _facts(opened, run, found)
    if as_json:
        echo_json(facts)
    else:
        _echo(opened, facts, sample, run_log)
    return 0


def _steps(text: str | None) -> range:
    parts = ("0" if text is None else text).split(":")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
        raise click.UsageError(f"--step must be a number from 0, or START:STOP, not {text!r}")
    first, stop = int(parts[0]), int(parts[-1]) + (len(parts) == 1)
    if first >= stop:
        raise click.UsageError(f"--step {text} has no step: START must be less than STOP")
    return range(first, stop)


def _sample_with(opened: ShardDataset, key: str) -> int:
    """Returns the id of the sample with a key."""
    if not opened.schema.key:
        raise click.UsageError(f"{opened.location} was written without a key: say --sample, the id")
    kind = opened.schema[opened.schema.key].kind
    try:
        found = int(opened.find_many([key if kind == "str" else key.encode() if kind == "bytes" else int(key)])[0])
    except (TypeError, ValueError) as error:
        if isinstance(error, ShardloadError):
            raise
        raise click.UsageError(f"--key {key!r:.60} is no key: the field {opened.schema.key} is {kind}") from None
    if found < 0:
        raise click.UsageError(f"there is no sample with the key {key!r} in {opened.location}")
    return found


def _at_steps(run: Run, steps: range, rank: int | None) -> Found:
    """Returns the samples of some steps."""
    asked, num_samples = [], 0
    for step in steps:
        stretch = next((one for one in reversed(run.stretches) if one.has(step)), None)
        if stretch is None:
            raise click.UsageError(
                f"--step {step} comes before the first step that is known, {run.stretches[0].first_step}"
            )
        _check_rank(stretch, rank)
        asked.append((step, stretch))
        num_samples += stretch.start.partition.global_batch
        if num_samples > MAX_SAMPLES:
            raise click.UsageError(f"--step has more than {MAX_SAMPLES:,} samples: ask for fewer steps at once")
    parts = []
    for step, stretch in asked:
        places = stretch.places(step)
        ids = np.empty_like(places.positions)
        for epoch in np.unique(places.epochs).tolist():
            mine = places.epochs == epoch
            ids[mine] = stretch.orders.order(epoch, stretch.seed, stretch.reseeds, run.recipe)(places.positions[mine])
        kept = slice(None) if rank is None else places.ranks == rank
        columns = places.epochs, places.positions, places.ranks, places.slots, ids
        parts.append([np.full(len(ids), step, dtype=np.int64)[kept], *(column[kept] for column in columns)])
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _at_sample(run: Run, sample_id: int, rank: int | None, once: bool) -> Found:
    """Returns at which steps a sample is seen.

    Args:
        run: the run.
        sample_id: the sample.
        rank: the rank that must have it; None for any.
        once: whether to end with the first epoch that has it; else all that the run has begun are looked at.
    """
    rows: list[tuple[int, ...]] = []
    for stretch in run.stretches:
        _check_rank(stretch, rank)
        first = stretch.epochs.start
        for epoch in range(first, first + _MAX_EPOCHS) if once else stretch.epochs:
            inverse = stretch.orders.inverse(epoch, stretch.seed, stretch.reseeds, run.recipe)
            position = int(inverse(np.array([sample_id]))[0])
            # One that is left out stands nowhere.
            all_seats = stretch.seen(epoch, position) if position >= 0 else []
            seats = [seat for seat in all_seats if rank in (None, seat.rank)]
            rows += [(seat.step, epoch, position, seat.rank, seat.slot, sample_id) for seat in seats]
            if rows and once:
                break
    return Found(*np.array(sorted(rows), dtype=np.int64).reshape(-1, 6).T)


def _check_rank(stretch: Stretch, rank: int | None) -> None:
    num_replicas = stretch.start.partition.num_replicas
    if rank is not None and rank >= num_replicas:
        raise click.UsageError(f"there is no rank {rank} of {counted(num_replicas, 'rank')}")


def _facts(opened: ShardDataset, run: Run, found: Found) -> dict[str, Any]:
    places = {place.sample_id: place for place in opened.places(np.unique(found.sample_ids))}
    keys = _keys(opened, list(places))
    names = ("step", "epoch", "position", "rank", "slot", "sample_id")
    columns = found.steps, found.epochs, found.positions, found.ranks, found.slots, found.sample_ids
    samples = []
    for row in zip(*(column.tolist() for column in columns), strict=True):
        place = places[row[-1]]
        key = {"key": keys[row[-1]]} if opened.schema.key else {}
        where = {"shard": place.shard, "local_id": place.local_id, "ranges": [_told_range(one) for one in place.ranges]}
        samples.append({**dict(zip(names, row, strict=True)), **key, **where})
    return {
        "dataset": opened.location,
        "fingerprint": opened.fingerprint,
        "stretches": [_told(one) for one in run.stretches],
        "samples": samples,
    }


def _told_range(one: ByteRange) -> dict[str, Any]:
    facts = asdict(one)
    return facts if one.file else {name: fact for name, fact in facts.items() if name != "file"}


def _told(stretch: Stretch) -> dict[str, Any]:
    epoch, position = stretch.start.batch(0)
    name = stretch.orders.name
    return {
        "first_step": stretch.first_step,
        "num_steps": stretch.num_steps,
        "shuffle": name if isinstance(name, str) else "full" if name else "none",
        "epoch": epoch,
        "position": position,
        "seed": stretch.seed,
        "reseeds": [one._asdict() for one in stretch.reseeds],
        **asdict(stretch.start.partition),
    }


def _keys(opened: ShardDataset, sample_ids: list[int]) -> dict[int, Any]:
    """Returns the key of each sample, None where it cannot be read: damaged samples are looked for too."""
    if not opened.schema.key or not sample_ids:
        return {}
    field = opened.schema[opened.schema.key]

    def read(ids: list[int]) -> dict[int, Any]:
        batch = opened.bare().read_batch(np.array(ids, dtype=np.int64), fields=[field])
        return {sample_id: _plain(batch[i][field.name]) for i, sample_id in enumerate(ids)}

    try:
        return read(sample_ids)
    except (ShardloadError, OSError):
        keys: dict[int, Any] = dict.fromkeys(sample_ids)
        for sample_id in sample_ids:
            try:
                keys |= read([sample_id])
            except (ShardloadError, OSError):
                continue
        return keys


def _plain(key: Any) -> Any:
    if isinstance(key, bytes):
        return key.decode("utf-8", errors="backslashreplace")
    return key.item() if isinstance(key, np.generic | np.ndarray) else key


def _echo(opened: ShardDataset, facts: dict[str, Any], sample: int | None, run_log: str | None) -> None:
    echo(f"{printable(opened.location)}: {counted(len(opened), 'sample')}")
    for stretch in facts["stretches"]:
        num_steps = stretch["num_steps"]
        until = (
            "on" if num_steps is None else f"to {stretch['first_step'] + num_steps - 1}" if num_steps else "on, none"
        )
        since = f"epoch {stretch['epoch']}, position {stretch['position']}"
        seeds = ", ".join(str(seed) for seed in (stretch["seed"], *(one["seed"] for one in stretch["reseeds"])))
        split = f"batches of {stretch['batch_size']:,} on {counted(stretch['num_replicas'], 'rank')}, tail {stretch['tail']}"
        echo(
            f"steps {stretch['first_step']} {until}: from {since}: shuffle {stretch['shuffle']}, seed {seeds}, {split}"
        )
    if not facts["samples"]:
        where = "of the run so far" if run_log is not None else f"of {_MAX_EPOCHS} epochs from there on"
        echo(f"sample {sample} is in no step {where}" if sample is not None else "this rank has no sample in it")
        return
    keyed = "key" in facts["samples"][0]
    head = ("step", "epoch", "position", "rank", "slot", "sample", *(["key"] if keyed else []), "shard", "bytes")
    rows: list[tuple[str, ...]] = [head]
    for one in facts["samples"]:
        numbers = (str(one[name]) for name in ("step", "epoch", "position", "rank", "slot", "sample_id"))
        key = [cut(str(one["key"]), _SHOWN_KEY)] if keyed else []
        rows.append((*numbers, *key, one["shard"], "; ".join(map(_range, one["ranges"]))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    for row in rows:
        cells = [cell.rjust(width) if i < 6 else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        echo("  ".join([*cells, row[-1]]))


def _range(one: dict[str, Any]) -> str:
    names = f" {printable(one['fields'][0])}" if one["kind"] in ("wide", "stream", "external") else ""
    file = f" of {printable(one['file'])}" if "file" in one else ""
    return f"{one['kind']}{names} {one['start']}-{one['stop']}{file}"
