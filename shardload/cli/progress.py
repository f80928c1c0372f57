"""Progress of a pack on standard error: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from shardload.cli.text import counted, printable
from shardload.packing import Progress
from shardload.packing.progress import stage_rates
from shardload.quantities import format_bytes

PLAIN_SECONDS = 5.0
"""Time between plain lines; the first comes with the first samples."""
_KNOWN_SECONDS = 60.0
"""After so long, or a hundredth of the work, what is left is told."""


class PackDisplay:
    """Shows the progress it is called with. What goes wrong with standard error does not stop the packing."""

    def __init__(self) -> None:
        self._live: RichProgress | None = None
        self._task = TaskID(0)
        self._told_seconds: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows one progress; the first of a pass tells what comes."""
        with contextlib.suppress(OSError):
            if not progress.seconds:
                self._start(progress)
            elif self._live is not None:
                self._live.update(self._task, completed=progress.done.source_bytes, facts=facts(progress))
                self._live.refresh()
            else:
                self._tell(progress)

    def _start(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._told_seconds = None
        if progress.stage != "shuffling":
            fields = ", ".join(f"{printable(name)}: {text}" for name, text in progress.types.items())
            click.echo(f"schema: {fields}", err=True)
        units, workers = counted(progress.num_units, "unit"), counted(progress.num_workers, "worker")
        click.echo(f"{progress.stage} {format_bytes(progress.total_bytes)} in {units} with {workers}", err=True)
        if sys.stderr is not None and sys.stderr.isatty():
            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[facts]}"))
            # Refreshed by hand: no thread of its own, and no surprise when packing is interrupted.
            self._live = RichProgress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._task = self._live.add_task("", total=progress.total_bytes, facts="")
            self._live.start()

    def _tell(self, progress: Progress) -> None:
        if not progress.done.num_samples and not progress.done.num_rejects:
            return
        if self._told_seconds is None or progress.seconds - self._told_seconds >= PLAIN_SECONDS:
            self._told_seconds = progress.seconds
            click.echo(f"{100 * progress.fraction:.0f} %: {facts(progress)}", err=True)


def facts(progress: Progress) -> str:
    """Returns counts, speeds, ratio and the time left as text."""
    parts = [
        counted(progress.done.num_samples, "sample"),
        f"{progress.samples_per_second:,.0f} samples/s",
        f"{progress.bytes_per_second / 1e6:,.1f} MB/s",
    ]
    if progress.done.num_dropped:
        parts.append(
            f"{progress.done.num_dropped:,} {'duplicates' if progress.stage == 'deduplicating' else 'dropped'}"
        )
    if progress.done.num_rejects:
        parts.append(f"{progress.done.num_rejects:,} rejected")
    if progress.done.stored_bytes and progress.stage != "indexing":
        parts.append(f"ratio {progress.ratio:.2f}")
    # The very first samples bear the cost of every start, and would tell of hours.
    if progress.seconds_left is not None and (progress.fraction >= 0.01 or progress.seconds >= _KNOWN_SECONDS):
        parts.append(f"{duration(progress.seconds_left)} left")
    if rates := stage_rates(progress.fresh):
        # Of one worker: the lowest is what holds up the others. Last, as a narrow terminal cuts it off.
        parts.append(f"{', '.join(f'{stage} {rate / 1e6:,.3g}' for stage, rate in rates.items())} MB/s")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time for people: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
