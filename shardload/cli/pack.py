"""`shardload pack`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from shardload import packing
from shardload.cli.progress import PackDisplay, duration
from shardload.cli.text import counted, echo, echo_facts, echo_json
from shardload.codecs import make_codec
from shardload.errors import FormatError
from shardload.format.schema import parse_schema
from shardload.quantities import format_bytes, parse_bytes
from shardload.writer.writer import DEFAULT_SHARD_SIZE

_MAX_SCHEMA_BYTES = 1 << 20


def _schema(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, str] | None:
    """Returns the types in a JSON object, or in a file that holds one."""
    if value is None:
        return None
    text = value
    if not value.lstrip().startswith("{"):
        try:
            with Path(value).open("rb") as file:
                data = file.read(_MAX_SCHEMA_BYTES + 1)
            text = data.decode()
        except OSError as error:
            raise click.BadParameter(
                f"{value!r} is neither a JSON object nor a readable file: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise click.BadParameter(f"the file {value!r} is not UTF-8") from None
        if len(data) > _MAX_SCHEMA_BYTES:
            raise click.BadParameter(f"the file {value!r} is longer than a schema can be")
    try:
        types = json.loads(text, object_pairs_hook=_unique)
        parse_schema(types)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"broken JSON: {error}") from None
    except (FormatError, ValueError, RecursionError) as error:
        raise click.BadParameter(str(error)) from None
    return dict(types)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    types = dict(pairs)
    if len(types) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return types


def _compression(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        make_codec(value)
    except FormatError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_bytes(value, "it")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@click.option("--schema", callback=_schema, metavar="JSON|FILE", help='Types by field, such as \'{"text": "bytes"}\'.')
@click.option(
    "--compression",
    callback=_compression,
    default=packing.DEFAULT_COMPRESSION,
    show_default=True,
    metavar="CODEC",
    help="none or zstd:LEVEL, for text, bytes and JSON; images stay as they are.",
)
@click.option(
    "--shard-size",
    callback=_size,
    default=DEFAULT_SHARD_SIZE,
    show_default=True,
    metavar="SIZE",
    help="Most bytes of a shard file.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@click.option("--include", multiple=True, metavar="GLOB", help="Files of a folder to pack, such as '*.py'; repeatable.")
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Files and folders of a folder to leave out; repeatable."
)
@click.option("--replace", is_flag=True, help="Write the next version of a dataset that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(source: tuple[str, ...], target: str, as_json: bool, **options: Any) -> int:
    """Pack SOURCE into the dataset TARGET.

    SOURCE is a folder of images, texts or other files, one sample each, or JSON Lines files (.jsonl or .ndjson, plain,
    .gz or .zst), one sample a line: one file, several, or a folder of them. First-level sub-folders give labels. Hidden
    files are left out unless a GLOB writes their dot; links to directories are not followed.

    TARGET appears whole, or not at all.
    """
    with PackDisplay() as display:
        summary = packing.pack(source, target, progress=display, **options)
    if as_json:
        echo_json(dataclasses.asdict(summary) | {"ratio": summary.ratio})
    else:
        _echo(summary)
    return 0


def _echo(summary: packing.PackSummary) -> None:
    seconds = max(summary.seconds, 1e-9)
    speed = f"{summary.num_samples / seconds:,.0f} samples/s, {summary.source_bytes / seconds / 1e6:,.1f} MB/s"
    echo(f"{summary.target}: {counted(summary.num_samples, 'sample')} packed and on disk")
    echo_facts(
        (
            ("source", f"{format_bytes(summary.source_bytes)} in {counted(summary.num_units, 'unit')}"),
            ("stored", f"{format_bytes(summary.stored_bytes)} in {counted(summary.num_shards, 'shard')}"),
            ("ratio", f"{summary.ratio:.2f}"),
            ("time", f"{duration(summary.seconds)} with {counted(summary.num_workers, 'worker')}: {speed}"),
            ("left out", ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())),
            ("version", str(summary.version)),
            ("fingerprint", summary.fingerprint),
        )
    )
