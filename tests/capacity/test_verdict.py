"""Measured against asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.capacity import Flow, Measurement, Speed, Stage, judge

busy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
"""On a busy machine a test may take any time."""


MB = 1_000_000


def speed(kind: str, bytes_per_second: float, **more: bool) -> Speed:
    flags = {"from_memory": False, "limited_by_processor": False} | more
    figures = {"request_bytes": 1, "num_requests": 1, "num_at_once": 1, "median_seconds": 0.1, "slow_seconds": 0.1}
    return Speed(kind=kind, num_bytes=round(bytes_per_second * 10), seconds=10.0, **figures, **flags)


def measured(*speeds: Speed, free_bytes: int = 10**12) -> Measurement:
    return Measurement("/data", "ext4", free_bytes, True, {one.kind: one for one in speeds})


def stage(*flows: tuple[str, float], written_bytes: float | None = None) -> Stage:
    made = tuple(Flow(f"flow {n}", kind, 1, None, needed, needed) for n, (kind, needed) in enumerate(flows))
    return Stage("stage", made, written_bytes, written_bytes)


@busy
@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_enough_or_short_by_the_ratio(needed, reached):
    verdict = judge(stage(("random read", needed)), measured(speed("random read", reached)))
    assert verdict.state == ("enough" if reached >= needed else "short")
    assert verdict.factor == pytest.approx(max(needed / reached, reached / needed))
    assert verdict.limit == "flow 0" and len(verdict.reasons) == 1


def test_the_worst_decides():
    both = stage(("sequential write", 8 * MB), ("sequential read", 8 * MB), written_bytes=100)
    verdict = judge(both, measured(speed("sequential write", 4 * MB), speed("sequential read", 2 * MB)))
    assert (verdict.state, verdict.factor, verdict.limit) == ("short", 4, "flow 1")
    assert len(verdict.reasons) == 2
    verdict = judge(both, measured(speed("sequential write", 80 * MB), speed("sequential read", 16 * MB)))
    assert (verdict.state, verdict.factor, verdict.limit) == ("enough", 2, "flow 1")
    verdict = judge(both, measured(speed("sequential write", 80 * MB)))
    assert (verdict.state, verdict.factor) == ("unknown", None)
    verdict = judge(both, measured(speed("sequential write", 1 * MB)))
    assert (verdict.state, verdict.factor) == ("short", 8)


def test_a_burst_may_last_longer_where_nobody_waits_for_it():
    reads = Stage("stage", (Flow("samples", "random read", 1, 10 * MB, 80 * MB, 10 * MB),))
    slow = judge(reads, measured(speed("random read", 20 * MB)))
    assert (slow.state, slow.factor) == ("enough", 2) and "takes 4 times as long" in slow.reasons[0]
    assert "long" not in judge(reads, measured(speed("random read", 80 * MB))).reasons[0]
    write = Stage("stage", (Flow("checkpoint", "sequential write", 1, 10 * MB, 80 * MB, 80 * MB),))
    assert judge(write, measured(speed("sequential write", 20 * MB))).state == "short"


def test_space_counts():
    asked = stage(("sequential write", 1 * MB), written_bytes=5000)
    fast = speed("sequential write", 1000 * MB)
    verdict = judge(asked, measured(fast, free_bytes=500))
    assert (verdict.state, verdict.factor, verdict.limit) == ("short", 10, "space")
    assert judge(asked, measured(fast, free_bytes=0)).state == "short"
    verdict = judge(asked, measured(fast, free_bytes=10_000))
    assert (verdict.state, verdict.factor, verdict.limit) == ("enough", 2, "space")


@pytest.mark.parametrize(
    ("flag", "reached", "state"),
    [
        ("from_memory", 9, "unknown"),  # a device may be slower
        ("from_memory", 1, "short"),  # no device is faster
        ("limited_by_processor", 9, "enough"),
        ("limited_by_processor", 1, "unknown"),  # the storage may be faster
    ],
)
def test_figures_that_are_bounds_are_not_taken_for_more(flag, reached, state):
    verdict = judge(stage(("random read", 5)), measured(speed("random read", reached, **{flag: True})))
    assert verdict.state == state
    assert (verdict.factor is None) == (state == "unknown")


def test_nothing_measured_and_nothing_planned_are_unknown():
    assert judge(stage(("random read", 5)), None).state == "unknown"
    assert judge(Stage("stage", missing=("num_gpus",)), measured()).state == "unknown"
