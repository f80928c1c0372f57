"""What happens in a pack as JSON, one object a line, for programs that watch it: `--log-json`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from shardload.errors import PackError
from shardload.packing.progress import Count, Progress, Report, stage_rates
from shardload.packing.unit import Step

PROGRESS_SECONDS = 1.0
"""Time between events of progress."""


class EventLog:
    """Adds events to a file. One that cannot be written to any more does not stop the pack. Used by one thread."""

    def __init__(self, path: str) -> None:
        """Opens the file; events of a pack that is continued follow those that are there.

        Raises:
            PackError: it cannot be opened.
        """
        self.problem = ""
        """Why events are missing, or nothing."""
        self._told_seconds = 0.0
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise PackError(f"{path}: the log cannot be written: {error.strerror}") from None

    def told(self, report: Report | None) -> Report:
        """Returns what a progress is told to: this log, and what is given."""

        def tell(progress: Progress) -> None:
            self._progress(progress)
            if report is not None:
                report(progress)

        return tell

    def step(self, step: Step, stage: str) -> None:
        """Notes what a unit has come to: its rejects, a shard, or its end."""
        for place, reason in step.rejects:
            self._add("reject", {"stage": stage, "unit": step.unit, "place": place, "reason": reason})
        if step.finished:
            self._add("unit", {"stage": stage, "unit": step.unit, **_counts(step.count)})

    def end(self, summary: Mapping[str, Any]) -> None:
        """Notes that all is on disk."""
        self._add("end", summary)
        self._file.close()

    def fail(self, error: BaseException) -> None:
        """Notes why the pack has ended before."""
        self._add("error", {"error": type(error).__name__, "message": str(error)})
        self._file.close()

    def _progress(self, progress: Progress) -> None:
        stage = progress.stage
        if not progress.seconds:
            facts = {"stage": stage, "types": dict(progress.types), "num_units": progress.num_units}
            self._add(
                "start",
                {
                    **facts,
                    "num_workers": progress.num_workers,
                    "total_bytes": progress.total_bytes,
                    **_counts(progress.done),
                },
            )
            self._told_seconds = 0.0
        elif progress.seconds - self._told_seconds >= PROGRESS_SECONDS:
            self._told_seconds = progress.seconds
            facts = {"stage": stage, "seconds": progress.seconds, "seconds_left": progress.seconds_left}
            rates = stage_rates(progress.fresh)
            self._add("progress", {**facts, **_counts(progress.done), "stage_bytes_per_second": rates})

    def _add(self, event: str, facts: Mapping[str, Any]) -> None:
        if self.problem:
            return
        line = json.dumps({"event": event, "time": time.time(), **facts}, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            self.problem = f"events are missing in the log: {error.strerror}"


def _counts(count: Count) -> dict[str, Any]:
    return dataclasses.asdict(count)
