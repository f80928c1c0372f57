"""A picture of a plan: what each stage asks, average and burst, and what was measured, readable on light and dark pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardload.capacity.demand import Flow, Stage
from shardload.capacity.measurement import Measurement
from shardload.capacity.verdict import judge_flow
from shardload.quantities import format_decimal

SUFFIXES = (".pdf", ".png", ".svg")

_TEXT, _GRID, _ASKED = "#7d8590", "#7d859055", "#4c7fb8"
_COLORS = {"enough": "#2f9e5f", "short": "#d9822b", "unknown": _ASKED}
"""Middle tones, which stand out from white and from black alike."""
_ROW_INCHES, _WIDTH_INCHES = 0.42, 9.0


def check_picture(path: str) -> None:
    """Finds what stands in the way of a picture before anything is measured for it.

    Raises:
        ValueError: the name is not one of a picture, or there is no such directory.
        ImportError: matplotlib is not installed.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"there is no directory for {path!r}")
    if Path(path).is_dir():
        raise ValueError(f"{path!r} is a directory")
    if not os.access(Path(path).parent, os.W_OK):
        raise ValueError(f"{path!r} cannot be written: its directory is closed to this user")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError(
            "pictures are drawn by matplotlib, which is not installed: pip install 'shardload[plot]'"
        ) from None


def draw(stages: Sequence[Stage], measurement: Measurement | None, path: str) -> None:
    """Draws a plan; the file appears whole or not at all. The same plan gives the same file.

    Args:
        stages: those without a flow are left out.
        measurement: what was measured, or None.
        path: the file, .svg, .png or .pdf.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [(stage, flow) for stage in stages for flow in stage.flows]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shardload", "font.size": 9}):
        figure = Figure(figsize=(_WIDTH_INCHES, _ROW_INCHES * len(rows) + 1.1))
        axis = figure.subplots()
        for row, (_, flow) in enumerate(rows):
            _bar(axis, row, flow, measurement)
        axis.set_yticks(range(len(rows)), [f"{stage.name}: {flow.name}\n{flow.kind}" for stage, flow in rows])
        _frame(axis, rows, measurement)
        caption = "solid: average, pale: burst; decimal units"
        if measurement is not None:
            caption += "; thick mark: measured, green: enough, orange: short, blue: unknown"
        figure.text(0.01, 0.01, caption, color=_TEXT, fontsize=7)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        partial = f"{path}.{os.getpid()}.partial"
        dated = {"Date": None} if path.endswith(".svg") else {"CreationDate": None} if path.endswith(".pdf") else None
        try:
            figure.savefig(partial, format=Path(path).suffix[1:], transparent=True, metadata=dated)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)


def _bar(axis: Any, row: int, flow: Flow, measurement: Measurement | None) -> None:
    """Draws a flow: its burst, its average in front, and what was measured across both."""
    speed = None if measurement is None else measurement.speed_of(flow.kind)
    color = _ASKED
    if measurement is not None and speed is not None:
        color = _COLORS[judge_flow(flow, measurement).state]
        axis.plot([speed.bytes_per_second] * 2, [row - 0.42, row + 0.42], color=_TEXT, linewidth=2.2)
    axis.barh(row, flow.peak_bytes_per_second, height=0.62, color=color, alpha=0.35)
    if flow.sustained_bytes_per_second is not None:
        axis.barh(row, flow.sustained_bytes_per_second, height=0.62, color=color, alpha=0.9)
    words = format_decimal(flow.peak_bytes_per_second, "B/s")
    if flow.sustained_bytes_per_second not in (None, flow.peak_bytes_per_second):
        words = f"{format_decimal(flow.sustained_bytes_per_second or 0, 'B/s')}, in bursts {words}"
    end = max(flow.peak_bytes_per_second, speed.bytes_per_second if speed is not None else 0)
    axis.annotate(words, (end, row), xytext=(6, 0), textcoords="offset points", va="center", color=_TEXT)


def _frame(axis: Any, rows: Sequence[tuple[Stage, Flow]], measurement: Measurement | None) -> None:
    ends = [flow.peak_bytes_per_second for _, flow in rows]
    ends += [flow.sustained_bytes_per_second for _, flow in rows if flow.sustained_bytes_per_second is not None]
    ends += [] if measurement is None else [speed.bytes_per_second for speed in measurement.speeds.values()]
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(min(ends) / 3, max(ends) * 30)
    axis.xaxis.set_major_formatter(lambda value, position: format_decimal(value, "B/s"))
    axis.tick_params(colors=_TEXT, which="both", length=0)
    axis.grid(axis="x", color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in axis.spines.values():
        side.set_visible(False)
