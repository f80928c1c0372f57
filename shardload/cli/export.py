"""`shardload export`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shardload.cli.progress import PLAIN_SECONDS, duration
from shardload.cli.storage import storage_option
from shardload.cli.text import counted, echo, echo_facts, echo_json, printable
from shardload.quantities import format_bytes

if TYPE_CHECKING:
    from shardload.exporters import ExportProgress, ExportSummary
    from shardload.reader import SampleSource


@click.command(short_help="Write a dataset, or a part of it, as tars or Parquet.")
@click.argument("dataset")
@click.argument("target")
@click.option(
    "--to",
    type=click.Choice(["webdataset", "parquet"]),
    help="What to write.  [default: by the ending of TARGET, .tar or .parquet]",
)
@click.option("--fields", metavar="NAMES", help="Fields to write, separated by commas.  [default: all]")
@click.option("--samples", metavar="START:STOP", help="Samples to write, as a slice of Python.  [default: all]")
@click.option(
    "--version", type=click.IntRange(min=1), metavar="N", help="Version of the dataset.  [default: the current]"
)
@click.option(
    "--shard-size", default="256MiB", show_default=True, metavar="SIZE", help="About the most bytes of a file."
)
@click.option(
    "--key",
    metavar="FIELD",
    help="Field of str that names the samples in tars; '' for their numbers.  [default: key, if there is one]",
)
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def export(
    dataset: str,
    target: str,
    storage_options: dict[str, Any],
    to: str | None,
    fields: str | None,
    samples: str | None,
    version: int | None,
    shard_size: str,
    key: str | None,
    as_json: bool,
) -> int:
    """Write DATASET as WebDataset tars or Parquet files (needs shardload[parquet]).

    TARGET is a folder, or one file if it ends in .tar or .parquet. It must not be there, and appears whole, or not at all.
    shardload pack of it gives the same fields, types and samples.
    """
    from shardload.exporters import export as write
    from shardload.exporters import open_to_export

    opened: SampleSource = open_to_export(dataset, version, storage_options)
    names = None if fields is None else _names(fields, set(opened.schema))
    if samples is not None:
        whole, opened = len(opened), opened[_slice(samples)]
        if not len(opened):
            raise click.UsageError(f"--samples: {samples!r} has none of the {counted(whole, 'sample')}")
    with _Display() as display:
        summary = write(opened, target, to=to, fields=names, shard_size=shard_size, key=key, progress=display)
    if as_json:
        echo_json(dataclasses.asdict(summary))
    else:
        _echo(summary)
    return 0


def _names(text: str, known: set[str]) -> list[str]:
    """Returns names of fields; a name that has a comma stands alone."""
    return [text] if text in known else text.split(",")


def _slice(text: str) -> slice:
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(start) if start.strip() else None, int(stop) if stop.strip() else None)
    except ValueError:
        raise click.UsageError(f"--samples: {text!r} is no range such as 0:1000, 1000: or -100:") from None


def _echo(summary: ExportSummary) -> None:
    seconds = max(summary.seconds, 1e-9)
    speed = f"{summary.num_samples / seconds:,.0f} samples/s, {summary.num_bytes / seconds / 1e6:,.1f} MB/s"
    what = "extension" if summary.to == "webdataset" else "column"
    echo(f"{summary.target}: {counted(summary.num_samples, 'sample')} exported and on disk")
    fields = [f"{printable(name)}: {printable(stored)}" for name, stored in summary.stored.items()]
    echo_facts(
        (
            ("written", f"{format_bytes(summary.num_bytes)} in {counted(summary.num_files, 'file')} for {summary.to}"),
            (f"{what}s", ", ".join(fields)),
            ("key", printable(summary.key)),
            ("time", f"{duration(summary.seconds)}: {speed}"),
            ("of", f"{summary.dataset} ({summary.fingerprint})"),
        )
    )


class _Display:
    """Shows progress on standard error; what goes wrong with that does not stop the export."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._told_seconds: float | None = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: ExportProgress) -> None:
        with contextlib.suppress(OSError):
            if not progress.seconds:
                self._start(progress)
            elif self._live is not None:
                self._live.update(self._task, completed=progress.num_samples, facts=_facts(progress))
                self._live.refresh()
            elif self._told_seconds is None or progress.seconds - self._told_seconds >= PLAIN_SECONDS:
                self._told_seconds = progress.seconds
                click.echo(f"{100 * progress.fraction:.0f} %: {_facts(progress)}", err=True)

    def _start(self, progress: ExportProgress) -> None:
        click.echo(f"exporting {counted(progress.total_samples, 'sample')}", err=True)
        if sys.stderr is not None and sys.stderr.isatty():
            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[facts]}"))
            # Refreshed by hand, as for a pack.
            self._live = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._task = self._live.add_task("", total=progress.total_samples, facts="")
            self._live.start()


def _facts(progress: ExportProgress) -> str:
    seconds = max(progress.seconds, 1e-9)
    parts = [
        f"{progress.num_samples:,} samples",
        f"{progress.num_samples / seconds:,.0f} samples/s",
        f"{progress.num_bytes / seconds / 1e6:,.1f} MB/s",
        counted(progress.num_files, "file"),
    ]
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return ", ".join(parts)
