"""`shardload verify`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shardload.cli.storage import storage_option
from shardload.cli.text import counted, echo, echo_json, printable, ranges
from shardload.format.external import ExternalFile
from shardload.format.table import ShardEntry
from shardload.quantities import format_bytes
from shardload.reader.verify import Damage, verify_dataset
from shardload.storage.secrets import shown as shown_location


@click.command(short_help="Compare every byte with what was written.")
@click.argument("dataset")
@click.option("--samples", is_flag=True, help="Also read and decode every sample.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one a core; 16 of a URL]")
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(dataset: str, storage_options: dict[str, Any], samples: bool, workers: int | None, as_json: bool) -> int:
    """Compare every byte of DATASET with what was written, and name what is damaged; exit status 1 if anything is."""
    seen: list[ShardEntry] = []
    name = shown_location(dataset)
    files: list[ExternalFile] = []
    columns = (TextColumn("verifying"), BarColumn(), TextColumn("{task.fields[facts]}"))
    shown = sys.stderr is not None and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("", total=None, facts="")

        def on_shard(entry: ShardEntry) -> None:
            seen.append(entry)
            progress.update(task, advance=1, facts=f"{len(seen):,} shards")

        def on_file(file: ExternalFile) -> None:
            files.append(file)
            progress.update(task, advance=1, facts=f"{len(files):,} files")

        asked: dict[str, Any] = {"storage_options": storage_options, "samples": samples, "workers": workers}
        damages = verify_dataset(dataset, **asked, on_shard=on_shard, on_file=on_file)
    num_bytes = sum(entry.num_bytes for entry in seen) + sum(file.num_bytes for file in files)
    if as_json:
        facts = {"dataset": name, "sound": not damages, "num_shards": len(seen), "num_bytes": num_bytes}
        facts |= {"num_files": len(files)} if files else {}
        echo_json(
            facts
            | {"damages": [dataclasses.asdict(damage) | {"sample_ids": list(damage.sample_ids)} for damage in damages]}
        )
    elif not damages:
        num_samples = counted(sum(entry.num_samples for entry in seen), "sample")
        shards = counted(len(seen), "shard") + (f", {counted(len(files), 'indexed file')}" if files else "")
        echo(f"{name}: {shards}, {num_samples}, {format_bytes(num_bytes)}: all as written")
    else:
        for damage in damages:
            echo(_line(damage))
    if damages:
        click.echo(f"shardload: error: {name} is damaged in {counted(len(damages), 'place')}", err=True)
    return 1 if damages else 0


def _line(damage: Damage) -> str:
    place = damage.file + (f", {damage.section}" if damage.section else "")
    samples = f"; samples {ranges(damage.sample_ids)}" if damage.sample_ids else ""
    return printable(f"{place}: {damage.message}{samples}")
