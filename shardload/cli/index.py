"""`shardload index`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from shardload import packing
from shardload.cli.pack import size_option, types_option
from shardload.cli.progress import PackDisplay, duration
from shardload.cli.text import counted, echo, echo_facts, echo_json
from shardload.quantities import format_bytes
from shardload.writer.writer import DEFAULT_SHARD_SIZE


@click.command(short_help="Make a dataset of tars that stay where they are.")
@click.argument("tars")
@click.option(
    "--schema",
    callback=types_option,
    metavar="JSON|FILE",
    help='Types by field, such as \'{"jpg": "jpeg", "cls": "int64"}\'.',
)
@click.option(
    "--key",
    default="",
    metavar="FIELD",
    help="Field by which samples are looked up, such as key; its values must differ.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Tars to index, such as 'train-*.tar'; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Tars and sub-folders to leave out; repeatable.")
@click.option(
    "--shard-size",
    callback=size_option,
    default=DEFAULT_SHARD_SIZE,
    show_default=True,
    metavar="SIZE",
    help="Most bytes of a shard file.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@click.option("--replace", is_flag=True, help="Index all tars anew, as the next version.")
@click.option("--append", is_flag=True, help="Add the tars that are not indexed yet.")
@click.option(
    "--continue", "resume", is_flag=True, help="Go on with what the same command began; goes with the two above."
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "reject"]),
    default="raise",
    show_default=True,
    help="End at what is no sample, or set it aside in rejects.jsonl and go on.",
)
@click.option(
    "--max-rejects", type=click.IntRange(min=0), metavar="N", help="Most that may be set aside.  [default: any]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def index(tars: str, as_json: bool, **options: Any) -> int:
    """Make a dataset of the WebDataset tars in the folder TARS, without copying them.

    The folder becomes a dataset like any other, and its tars stay as they are: images, texts and other members are read where they
    lie, under checksums; keys, integers of .cls and arrays of .npy are stored beside. Tars must be uncompressed, and not in
    sub-folders. A tar that changes later is an error that names it: index again with --replace, or with --append where only new
    tars have come.
    """
    if options["replace"] and options["append"]:
        raise click.UsageError("--append and --replace exclude each other")
    if options["append"] and options["key"]:
        raise click.UsageError("--key is that of the dataset; it cannot be given with --append")
    if options["max_rejects"] is not None and options["on_error"] != "reject":
        raise click.UsageError("--max-rejects goes with --on-error reject")
    with PackDisplay() as display:
        summary = packing.index(tars, progress=display, **options)
    if as_json:
        echo_json(dataclasses.asdict(summary))
        return 0
    seconds = max(summary.seconds, 1e-9)
    speed = f"{summary.num_samples / seconds:,.0f} samples/s, {summary.source_bytes / seconds / 1e6:,.1f} MB/s"
    indexed = summary.num_workers > 0
    state = "indexed and on disk" if indexed else "complete before: nothing was left to do"
    samples = counted(summary.num_samples, "sample")
    tars = f"{format_bytes(summary.source_bytes)} in {counted(summary.num_units, 'unit')}"
    echo(
        f"{summary.target}: {samples} {state}"
        if summary.num_units
        else f"{summary.target}: nothing to do: no tar is new"
    )
    echo_facts(
        (
            ("tars", f"{tars}, which stay as they are" * bool(summary.num_units)),
            (
                "index",
                f"{format_bytes(summary.stored_bytes)} in {counted(summary.num_shards, 'shard')}"
                * bool(summary.num_units),
            ),
            ("time", f"{duration(summary.seconds)} with {counted(summary.num_workers, 'worker')}: {speed}" * indexed),
            ("rejected", f"{summary.num_rejects:,}, told in rejects.jsonl" if summary.num_rejects else ""),
            ("left out", ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())),
            ("version", str(summary.version)),
            ("fingerprint", summary.fingerprint),
        )
    )
    return 0
