"""Whether what was measured is enough for what is asked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from shardload.capacity.demand import Flow, Stage
from shardload.capacity.measurement import Measurement
from shardload.quantities import format_decimal

State = Literal["enough", "short", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a stage on the measured storage."""

    state: State
    factor: float | None
    """Measured over asked if that is enough, asked over measured if it is short: always from 1; None if unknown."""
    limit: str
    """What decided: a flow of the stage, or `space`; empty if unknown for want of a demand or a measurement."""
    reasons: tuple[str, ...]
    """What decided, a sentence each."""


def judge(stage: Stage, measurement: Measurement | None) -> Verdict:
    """Returns the verdict on a stage: short if anything is, else unknown if anything is, else enough."""
    if stage.missing:
        return Verdict("unknown", None, "", ("its demand is not known",))
    if measurement is None:
        return Verdict("unknown", None, "", ("nothing was measured",))
    found = [judge_flow(flow, measurement) for flow in stage.flows]
    if stage.written_bytes is not None:
        found.append(_judge_capacity(stage.written_bytes, measurement))
    for state in ("short", "unknown", "enough"):
        chosen = [verdict for verdict in found if verdict.state == state]
        if chosen:
            worst = (min if state == "enough" else max)(chosen, key=lambda verdict: verdict.factor or 0)
            return dataclasses.replace(worst, reasons=tuple(reason for verdict in chosen for reason in verdict.reasons))
    raise AssertionError(f"{stage.name} asks for nothing")


def judge_flow(flow: Flow, measurement: Measurement) -> Verdict:
    """Returns the verdict on one flow: short only if nothing else can have been the limit."""
    speed, needed = measurement.speed_of(flow.kind), flow.needed_bytes_per_second
    if speed is None:
        return Verdict("unknown", None, flow.name, (f"{flow.name}: {flow.kind}s were not measured",))
    asked, reached = format_decimal(needed, "B/s"), format_decimal(speed.bytes_per_second, "B/s")
    told = f"{flow.name}: {flow.kind}s of {asked} are asked, {reached} were measured"
    if speed.bytes_per_second >= needed:
        if speed.from_memory:
            return Verdict("unknown", None, flow.name, (f"{told}, but they came from this machine's memory",))
        if speed.bytes_per_second < flow.peak_bytes_per_second:
            times = flow.peak_bytes_per_second / speed.bytes_per_second
            told += f"; what is read ahead after a pause takes {times:.3g} times as long as planned, and nobody waits for it"
        return Verdict("enough", speed.bytes_per_second / needed, flow.name, (told,))
    if speed.limited_by_processor:
        return Verdict("unknown", None, flow.name, (f"{told}, but this process, not the storage, was the limit",))
    return Verdict("short", needed / speed.bytes_per_second, flow.name, (told,))


def _judge_capacity(written_bytes: float, measurement: Measurement) -> Verdict:
    free = measurement.free_bytes
    told = f"{format_decimal(written_bytes, 'B')} are to be written, {format_decimal(free, 'B')} are free"
    if free >= written_bytes:
        return Verdict("enough", free / written_bytes, "space", (told,))
    return Verdict("short", written_bytes / max(1, free), "space", (told,))
