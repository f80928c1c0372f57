"""The table of `shardload plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardload.capacity import Flow, Measurement, Stage, Verdict, Workload, judge
from shardload.capacity.demand import values_of
from shardload.cli.text import counted, echo
from shardload.quantities import format_decimal, format_seconds

_LEFT = 2
"""Columns of words; the others are figures and stand to the right."""


def echo_plan(
    workload: Workload, stages: Sequence[Stage], measurement: Measurement | None, options: Mapping[str, str]
) -> None:
    """Prints the table, a line about checkpoints, what is missing, and what to know about the measurement.

    Args:
        workload: what was planned for.
        stages: its demand.
        measurement: what was measured, or None.
        options: the option of each fact of a workload, to say what to give.
    """
    head = ["stage", "", "average", "burst", "burst requests/s", "capacity"]
    rows = [head + (["measured", "verdict"] if measurement else [])]
    for stage in stages:
        rows += _rows(stage, measurement)
    _echo_columns(rows)
    for line in _checkpoint_lines(workload, stages):
        echo(line)
    for stage in stages:
        if stage.missing:
            echo(f"{stage.name}: not planned without {' and '.join(options[name] for name in stage.missing)}")
    if measurement is not None:
        _echo_measurement(stages, measurement)


def _rows(stage: Stage, measurement: Measurement | None) -> list[list[str]]:
    capacity = "" if stage.capacity_bytes is None else format_decimal(stage.capacity_bytes, "B")
    verdict = judge(stage, measurement)
    if not stage.flows:
        return [[stage.name, "not planned", "", "", "", ""] + (["", _word(verdict)] if measurement else [])]
    rows = []
    for number, flow in enumerate(stage.flows):
        row = [stage.name if number == 0 else "", f"{flow.kind}, {flow.name}", *_figures(flow)]
        row.append(capacity if number == 0 else "")
        if measurement:
            speed = measurement.speed_of(flow.kind)
            row.append("" if speed is None else format_decimal(speed.bytes_per_second, "B/s"))
            row.append(_word(verdict) if number == 0 else "")
        rows.append(row)
    return rows


def _figures(flow: Flow) -> list[str]:
    average = flow.sustained_bytes_per_second
    requests = flow.peak_requests_per_second
    return [
        "" if average is None else format_decimal(average, "B/s"),
        format_decimal(flow.peak_bytes_per_second, "B/s"),
        f"{requests:,.0f}" if 10 <= requests < 1e7 else format_decimal(requests, "").strip(),
    ]


def _word(verdict: Verdict) -> str:
    if verdict.factor is None:
        return verdict.state
    times = f"{float(f'{verdict.factor:.3g}'):,g}x"
    return f"enough, {times}" if verdict.state == "enough" else f"short by {times} ({verdict.limit})"


def _echo_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        echo("  ".join(cells).rstrip())


def _checkpoint_lines(workload: Workload, stages: Sequence[Stage]) -> list[str]:
    values = values_of(stages)
    if "checkpoint_bytes" not in values:
        return []
    each = values.get("checkpoint_writer_bytes_per_second")
    writers = workload.num_checkpoint_writers or workload.num_gpus
    size, write, read = (
        format_decimal(values[name], unit)
        for name, unit in (
            ("checkpoint_bytes", "B"),
            ("checkpoint_write_bytes_per_second", "B/s"),
            ("restore_read_bytes_per_second", "B/s"),
        )
    )
    seconds = format_seconds(workload.allowed_checkpoint_seconds)
    shared = (
        ""
        if each is None or writers is None
        else f", {format_decimal(each, 'B/s')} by each of {counted(writers, 'writer')}"
    )
    restore = format_seconds(workload.restore_seconds or workload.allowed_checkpoint_seconds)
    return [
        f"a checkpoint: {size} in {seconds} every {format_seconds(workload.checkpoint_interval_seconds)}: {write}{shared}",
        f"a restore: {workload.restore_ratio:g} times that in {restore}: {read}",
    ]


def _echo_measurement(stages: Sequence[Stage], measurement: Measurement) -> None:
    way = "past the page cache" if measurement.direct else "through the page cache"
    way = "in memory" if any(speed.from_memory for speed in measurement.speeds.values()) else way
    echo(f"measured in {measurement.path} ({measurement.file_system or 'unknown file system'}, {way}):")
    for speed in measurement.speeds.values():
        size, rate = format_decimal(speed.request_bytes, "B"), format_decimal(speed.bytes_per_second, "B/s")
        median, slow = format_seconds(speed.median_seconds), format_seconds(speed.slow_seconds)
        echo(
            f"  {speed.kind}: {rate}, {speed.requests_per_second:,.0f} requests/s of {size}, {speed.num_at_once} at once; half "
            f"took {median}, 1 in 100 more than {slow}"
        )
    for stage in stages:
        verdict = judge(stage, measurement)
        if stage.flows and verdict.state != "enough":
            for reason in verdict.reasons:
                echo(f"{verdict.state}: {stage.name}: {reason}")
    for note in measurement.notes:
        echo(f"note: {note}")
