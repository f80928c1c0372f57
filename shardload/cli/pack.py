"""`shardload pack`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from shardload import packing
from shardload.cli.progress import PackDisplay, duration
from shardload.cli.storage import storage_option
from shardload.cli.text import counted, echo, echo_facts, echo_json
from shardload.codecs import make_codec
from shardload.errors import FormatError
from shardload.format.schema import FieldType, parse_schema
from shardload.importers.strict_json import unique_names
from shardload.quantities import format_bytes, parse_bytes
from shardload.storage import is_far
from shardload.writer.writer import DEFAULT_SHARD_SIZE

_MAX_SCHEMA_BYTES = 1 << 20


def types_option(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, FieldType] | None:
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
        types = json.loads(text, object_pairs_hook=unique_names)
        # Whether a field may be compressed at all: the level is another option.
        parse_schema(types, "zstd")
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"broken JSON: {error}") from None
    except (FormatError, ValueError, RecursionError) as error:
        raise click.BadParameter(str(error)) from None
    return dict(types)


def _compression(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        make_codec(value)
    except FormatError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _token(context: click.Context, parameter: click.Parameter, value: str | None) -> str | int | None:
    """Returns a number as the id of a token, all else as its name."""
    return int(value) if value is not None and value.isascii() and value.isdecimal() else value


def size_option(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Returns the bytes that an option says."""
    try:
        return parse_bytes(value, "it")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@click.option(
    "--schema", callback=types_option, metavar="JSON|FILE", help='Types by field, such as \'{"text": "bytes"}\'.'
)
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
    callback=size_option,
    default=DEFAULT_SHARD_SIZE,
    show_default=True,
    metavar="SIZE",
    help="Most bytes of a shard file.",
)
@click.option(
    "--dictionary",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Train a zstd dictionary on the first samples: if it pays, or in any case.",
)
@click.option(
    "--key", default="", metavar="FIELD", help="Field by which samples are looked up; its values must differ."
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@click.option("--include", multiple=True, metavar="GLOB", help="Files of a folder to pack, such as '*.py'; repeatable.")
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Files and folders of a folder to leave out; repeatable."
)
@click.option(
    "--tokenizer",
    metavar="FILE|bytes",
    help="Pack texts as token ids: by a tokenizer.json (needs shardload[text]), or as the bytes of UTF-8.",
)
@click.option(
    "--append-token", callback=_token, metavar="TOKEN", help="Token after each text, by name or id.  [default: none]"
)
@click.option(
    "--prepend-token", callback=_token, metavar="TOKEN", help="Token before each text, by name or id.  [default: none]"
)
@click.option("--text-key", metavar="KEY", help="Field of the text.  [default: text, in tars txt]")
@click.option("--token-field", metavar="FIELD", help="Field of the tokens.  [default: tokens]")
@click.option(
    "--shuffle",
    type=click.IntRange(0, (1 << 63) - 1),
    metavar="SEED",
    help="Write the samples in a random order; meanwhile this takes room for a second copy.",
)
@click.option("--replace", is_flag=True, help="Write the next version of a dataset that is there.")
@click.option("--append", is_flag=True, help="Add to the dataset that is there.")
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
@storage_option
@click.option(
    "--staging",
    metavar="DIR",
    help="For a TARGET that is a URL: directory for what is not uploaded yet.  [default: in the user's cache directory]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(source: tuple[str, ...], target: str, as_json: bool, **options: Any) -> int:
    """Pack SOURCE into the dataset TARGET.

    SOURCE is a folder of images, texts or other files, one sample each, and first-level sub-folders give labels; or
    JSON Lines files (.jsonl or .ndjson), one sample a line, or WebDataset tars, one field an extension: plain, .gz or
    .zst; or Megatron pairs (.idx with .bin), one sample a document; or Parquet or Arrow files (.parquet, .arrow,
    .feather, .ipc, a folder by save_to_disk of Hugging Face's datasets; needs shardload[parquet]) or CSV or TSV files
    with a header, one sample a row. Of these one, several or a folder of them; or a folder of MosaicML's MDS; or
    hf:NAME@SPLIT, a dataset of the Hugging Face hub (needs shardload[datasets]). With --tokenizer the texts become
    streams of token ids, one sample a text; then single text files are a SOURCE too, and text files may be .gz or
    .zst. Hidden files are left out unless a GLOB writes their dot; links to directories are not followed.

    TARGET is a directory, or an s3:// URL, where shards are uploaded as they are finished. It appears whole, or not at
    all. What was packed before an error, a signal or a crash stays: the same command with --continue goes on and ends
    with the same bytes.
    """
    if options["replace"] and options["append"]:
        raise click.UsageError("--append and --replace exclude each other")
    if options["max_rejects"] is not None and options["on_error"] != "reject":
        raise click.UsageError("--max-rejects goes with --on-error reject")
    for name in ("append_token", "prepend_token", "text_key"):
        if options[name] is not None and options["tokenizer"] is None:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --tokenizer")
    with PackDisplay() as display:
        summary = packing.pack(source, target, progress=display, **options)
    if as_json:
        echo_json(dataclasses.asdict(summary) | {"ratio": summary.ratio})
    else:
        _echo(summary)
    return 0


def _echo(summary: packing.PackSummary) -> None:
    seconds = max(summary.seconds, 1e-9)
    packed = summary.num_workers > 0
    speed = f"{summary.num_samples / seconds:,.0f} samples/s, {summary.source_bytes / seconds / 1e6:,.1f} MB/s"
    place = "in the store" if is_far(summary.target) else "on disk"
    state = f"packed and {place}" if packed else "complete before: nothing was left to do"
    echo(f"{summary.target}: {counted(summary.num_samples, 'sample')} {state}")
    echo_facts(
        (
            ("source", f"{format_bytes(summary.source_bytes)} in {counted(summary.num_units, 'unit')}"),
            ("stored", f"{format_bytes(summary.stored_bytes)} in {counted(summary.num_shards, 'shard')}"),
            ("ratio", f"{summary.ratio:.2f}"),
            ("tokens", ", ".join(filter(None, (f"{summary.num_tokens:,}" * bool(summary.num_tokens), summary.note)))),
            ("time", f"{duration(summary.seconds)} with {counted(summary.num_workers, 'worker')}: {speed}" * packed),
            ("rejected", f"{summary.num_rejects:,}, told in rejects.jsonl" if summary.num_rejects else ""),
            ("left out", ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())),
            ("version", str(summary.version)),
            ("fingerprint", summary.fingerprint),
        )
    )
