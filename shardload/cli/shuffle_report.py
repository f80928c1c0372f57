"""`shardload shuffle-report`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from shardload.cli.storage import storage_option
from shardload.cli.text import counted, echo, echo_json, printable
from shardload.order.blocks import BlockShuffle
from shardload.order.quality import OrderQuality, measure_order, mixing, stretches
from shardload.order.shuffle import Shuffle

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset

Int64 = NDArray[np.int64]

MAX_POSITIONS = 10_000_000
_POINTS = 20_000
_STRETCHES = 200


@click.command("shuffle-report", short_help="Measure how well an order mixes a dataset.")
@click.argument("dataset")
@click.option("--shuffle", default="full", help="full, block, BLOCK_SAMPLESxWINDOW_BLOCKS or none.", show_default=True)
@click.option("--seed", default=0, type=click.IntRange(0, (1 << 64) - 1), show_default=True)
@click.option("--epoch", default=0, type=click.IntRange(0), show_default=True)
@click.option("--batch-size", default=256, type=click.IntRange(1), show_default=True, help="Samples a batch and rank.")
@click.option(
    "--num-replicas", default=1, type=click.IntRange(1), show_default=True, help="Ranks that share the order."
)
@click.option("--label", help="A field of integers, str or bytes: how many of its values a batch has.")
@click.option(
    "--max-positions",
    default=MAX_POSITIONS,
    type=click.IntRange(1),
    show_default=True,
    help="Most positions looked at.",
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw a picture (matplotlib).")
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def shuffle_report(
    dataset: str,
    storage_options: dict[str, Any],
    shuffle: str,
    seed: int,
    epoch: int,
    batch_size: int,
    num_replicas: int,
    label: str | None,
    max_positions: int,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Measure how well an order mixes DATASET, beside a true permutation of the same samples.

    Coverage, distance, different shards (and labels) in the batches of a rank, and correlation of neighbours and of epochs.
    """
    from shardload.reader import open_dataset

    opened = open_dataset(dataset, storage_options=storage_options)
    if len(opened) < 2:
        raise click.UsageError(f"{opened.location} has {counted(len(opened), 'sample')}: there is nothing to mix")
    orders = opened.orders(parse_shuffle(shuffle))
    count = min(len(opened), max_positions)
    found = [
        _rank_order(orders.order(epoch + later, seed)(np.arange(count)), num_replicas, batch_size) for later in (0, 1)
    ]
    groups = _groups(opened, label)
    generator = np.random.default_rng(seed)
    true = [_rank_order(generator.permutation(len(opened))[:count], num_replicas, batch_size) for _ in range(2)]
    whole = count == len(opened)
    measured = [measure_order(ids, later, len(opened), batch_size, groups, whole) for ids, later in (found, true)]
    facts = {
        "dataset": opened.location,
        "shuffle": str(orders.name) if isinstance(orders.name, str) else "full" if orders.name else "none",
        "num_samples": len(opened),
        "num_positions": count,
        "batch_size": batch_size,
        "num_replicas": num_replicas,
        "order": dataclasses.asdict(measured[0]),
        "true_permutation": dataclasses.asdict(measured[1]),
    }
    if plot is not None:
        _draw(plot, found[0], true[0], groups, batch_size, facts)
    if as_json:
        echo_json(_finite(facts))
    else:
        _echo(facts, measured)
    return 0


def parse_shuffle(text: str) -> Shuffle:
    """Returns a way to shuffle from its name on the command line.

    Raises:
        click.UsageError: it is none.
    """
    if text in ("full", "none"):
        return text == "full"
    if text == "block":
        return "block"
    parts = text.split("x")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        return BlockShuffle(int(parts[0]), int(parts[1]))
    raise click.UsageError(f"--shuffle must be full, block, none or sizes such as 1024x64, not {text!r}")


def _rank_order(ids: Int64, num_replicas: int, batch_size: int) -> Int64:
    """Returns ids in the order in which the ranks' batches have them: batch after batch, in each rank after rank."""
    if num_replicas == 1:
        return ids
    whole = len(ids) // (num_replicas * batch_size) * num_replicas * batch_size
    batches = ids[:whole].reshape(-1, batch_size, num_replicas).transpose(0, 2, 1)
    return np.concatenate([batches.reshape(-1), ids[whole:]])


def _groups(opened: ShardDataset, label: str | None) -> dict[str, Int64]:
    firsts = opened.table.first_sample_ids
    groups = {"shards": np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))}
    if label is not None:
        groups["labels"] = np.unique(opened.hashes(label), return_inverse=True)[1].astype(np.int64)
    return groups


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _echo(facts: dict[str, Any], measured: list[OrderQuality]) -> None:
    batch = f"batches of {facts['batch_size']:,}" + (
        f" on {facts['num_replicas']:,} ranks" if facts["num_replicas"] > 1 else ""
    )
    echo(
        f"{printable(facts['dataset'])}: shuffle {facts['shuffle']}, {counted(facts['num_samples'], 'sample')}, {batch}"
    )
    rows: list[tuple[str, ...]] = [("", "this order", "a true permutation")]
    whole = facts["num_positions"] == facts["num_samples"]
    rows.append(("positions looked at", *(f"{one.num_positions:,}" for one in measured)))
    if whole:
        rows.append(("samples missing", *(f"{one.num_missing:,}" for one in measured)))
    rows.append(("samples repeated", *(f"{one.num_repeated:,}" for one in measured)))
    rows.append(("entropy of gaps, bits", *(f"{one.entropy:.3f}" for one in measured)))
    rows.append(("distance from its id, of the epoch", *(f"{one.displacement:.4f}" for one in measured)))
    rows.append(("correlation of neighbours", *(f"{one.correlation:+.4f}" for one in measured)))
    rows.append(("correlation of epochs", *(f"{one.epoch_correlation:+.4f}" for one in measured)))
    for name in measured[0].mixing:
        # There may be no whole batch to look at.
        shown = (f"{one.mixing[name]:.3f}" if math.isfinite(one.mixing[name]) else "-" for one in measured)
        rows.append((f"different {name} in a batch / at random", *shown))
    width = max(len(row[0]) for row in rows)
    for name, mine, theirs in rows:
        echo(f"  {name:<{width}}  {mine:>12}  {theirs:>18}")


def _draw(
    path: Path, ids: Int64, true: Int64, groups: dict[str, Int64], batch_size: int, facts: dict[str, Any]
) -> None:
    """Draws where samples come in the epoch, and how many groups batches have along it."""
    try:
        import matplotlib
    except ImportError:
        raise click.UsageError("--plot needs matplotlib: pip install 'shardload[plot]'") from None
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6 * (1 + bool(groups))), layout="constrained")
    panels = figure.subplots(1 + bool(groups), 2, squeeze=False)
    for panel, some, title in zip(
        panels[0], (ids, true), (f"shuffle {facts['shuffle']}", "a true permutation"), strict=True
    ):
        shown = np.linspace(0, len(some) - 1, min(_POINTS, len(some))).astype(np.int64)
        panel.plot(shown, some[shown], ",", color="black")
        panel.set(title=title, xlabel="position", ylabel="sample id")
    for panel, some in zip(panels[1] if groups else (), (ids, true), strict=False):
        for name, numbers in groups.items():
            parts = list(stretches(len(some), batch_size, _STRETCHES))
            panel.plot(
                [part.start for part in parts], [mixing(some[part], numbers, batch_size) for part in parts], label=name
            )
        panel.set(xlabel="position", ylabel="different in a batch / at random", ylim=(0, 1.2))
        panel.legend()
    figure.savefig(path)
