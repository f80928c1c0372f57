"""`shardload pack`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from shardload import packing
from shardload.cli.progress import PackDisplay
from shardload.cli.storage import storage_option
from shardload.cli.summary import echo_estimate, echo_summary, first_facts
from shardload.cli.text import echo_json
from shardload.codecs import make_codec
from shardload.errors import FormatError
from shardload.format.schema import FieldType, parse_schema
from shardload.importers.strict_json import unique_names
from shardload.preparation.named import named_step
from shardload.quantities import parse_bytes
from shardload.writer.writer import DEFAULT_SHARD_SIZE

_MAX_SCHEMA_BYTES = 1 << 20
_STEP_OPTIONS = ("map", "filter", "step")
_ORDER = "shardload.cli.pack.order"


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


def _step(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Returns steps as texts that tell their kind."""
    texts = values if parameter.name == "step" else tuple(f"{parameter.name}:{value}" for value in values)
    for text in texts:
        try:
            named_step(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return texts


def _fields(context: click.Context, parameter: click.Parameter, value: str | None) -> bool | list[str]:
    """Returns names of fields, or whether all are meant."""
    return value == "all" if value in (None, "all") else value.split(",")


class _InOrder(click.Command):
    """Notes in which order the steps stand on the command line, over all options that give one."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        _, _, order = self.make_parser(context).parse_args(args=list(arguments))
        context.meta[_ORDER] = [parameter.name for parameter in order if parameter.name in _STEP_OPTIONS]
        return super().parse_args(context, arguments)


@click.command(cls=_InOrder, short_help="Pack a corpus into a dataset.")
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
    "--map",
    multiple=True,
    callback=_step,
    metavar="MODULE:FUNCTION",
    help="Function that each sample goes through: a dict in; a dict, None to drop it or a list to split it out; repeatable.",
)
@click.option(
    "--filter",
    multiple=True,
    callback=_step,
    metavar="MODULE:FUNCTION",
    help="Function that tells whether a sample stays; repeatable. All steps are done in the order given.",
)
@click.option(
    "--step",
    multiple=True,
    callback=_step,
    metavar="NAME:FIELD[,...]",
    help="nfc:FIELD; length:FIELD,min=N,max=N,unit=characters|bytes|tokens; or "
    "image:FIELD,format=jpeg|png,quality=N,shorter=N,longer=N; repeatable.",
)
@click.option(
    "--map-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Most time for a sample in all functions.  [default: any]",
)
@click.option(
    "--dedup",
    callback=_fields,
    metavar="FIELDS|all",
    help="Leave out samples whose content in these fields, divided by commas, an earlier one has; takes room as --shuffle.",
)
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
@click.option(
    "--staging",
    metavar="DIR",
    help="For a TARGET that is a URL: directory for what is not uploaded yet.  [default: in the user's cache directory]",
)
@click.option("--log-json", metavar="FILE", help="Add events to a file, a JSON object a line.")
@click.option("--dry-run", is_flag=True, help="Write nothing; show the schema, the first samples and an estimate.")
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(source: tuple[str, ...], target: str, as_json: bool, **options: Any) -> int:
    """Pack SOURCE into the dataset TARGET.

    SOURCE is a folder of images, texts or other files, one sample each, and first-level sub-folders give labels; or
    JSON Lines files (.jsonl or .ndjson), one sample a line, or WebDataset tars, one field an extension: plain, .gz or
    .zst; or Megatron pairs (.idx with .bin), one sample a document; or Parquet or Arrow files (.parquet, .arrow,
    .feather, .ipc, a folder by save_to_disk of Hugging Face's datasets; needs shardload[parquet]) or CSV or TSV files
    with a header, one sample a row. Of these one, several or a folder of them; or a folder of MosaicML's MDS; or
    hf:NAME@SPLIT, a dataset of the Hugging Face hub (needs shardload[datasets]); or URLs of these, such as
    s3://bucket/raw/ (needs shardload[s3]) or https://host/data.jsonl.gz (shardload[http]). With --tokenizer the texts become
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
    given = {name: list(options.pop(name)) for name in _STEP_OPTIONS}
    options["steps"] = [given[name].pop(0) for name in click.get_current_context().meta[_ORDER]]
    if options["map_timeout"] is not None and not any(
        text.startswith(("map:", "filter:")) for text in options["steps"]
    ):
        raise click.UsageError("--map-timeout goes with --map or --filter")
    with PackDisplay() as display:
        summary = packing.pack(source, target, progress=display, **options)
    if as_json:
        samples = {"first_samples": first_facts(summary)} if summary.dry_run else {}
        echo_json(summary.facts() | samples)
    elif summary.dry_run:
        echo_estimate(summary)
    else:
        echo_summary(summary)
    return 0
