"""How far an export has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

REPORT_SECONDS = 0.1
"""How often progress is told."""


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """An export under way. The first one comes before the first sample."""

    num_samples: int
    total_samples: int
    num_bytes: int
    """Bytes written."""
    num_files: int
    seconds: float

    @property
    def fraction(self) -> float:
        """Part of the samples that are written."""
        return self.num_samples / self.total_samples if self.total_samples else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest will take at this speed; None before anything is known."""
        if not self.num_samples or not self.seconds:
            return None
        return (self.total_samples - self.num_samples) * self.seconds / self.num_samples


Report = Callable[[ExportProgress], None]


class Clock:
    """Tells progress every so often."""

    def __init__(self, total_samples: int, report: Report | None) -> None:
        self._total_samples = total_samples
        self._report = report
        self._started = self._told = time.monotonic()
        if report is not None:
            report(ExportProgress(0, total_samples, 0, 0, 0.0))

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def tell(self, num_samples: int, num_bytes: int, num_files: int, last: bool = False) -> None:
        """Reports, if it is time to or this is the last one."""
        now = time.monotonic()
        if self._report is not None and (last or now - self._told >= REPORT_SECONDS):
            self._told = now
            self._report(ExportProgress(num_samples, self._total_samples, num_bytes, num_files, now - self._started))
