"""Facts that cannot be, and pairs that contradict each other."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.capacity import Workload, plan_stages

busy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
"""On a busy machine a test may take any time."""


NAMES = [field.name for field in dataclasses.fields(Workload)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf, 1e300, 10**400, True, "1", [1]])
def test_a_fact_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be from .* to .*, not ") as caught:
        Workload(**{name: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["num_gpus", "batch_size", "num_samples", "prefetch_batches", "num_checkpoints_kept"])
def test_counts_are_whole(name):
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number, not 1.5"):
        Workload(**{name: 1.5})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"samples_per_second_per_gpu": 5, "step_seconds": 1}, "samples_per_second_per_gpu and step_seconds both tell"),
        ({"samples_per_second_per_gpu": 5, "batch_size": 1}, "samples_per_second_per_gpu and batch_size both tell"),
        ({"samples_per_second_per_gpu": 5, "batch_tokens": 9}, "samples_per_second_per_gpu and batch_tokens both tell"),
        ({"step_seconds": 1, "batch_size": 8, "batch_tokens": 9}, "batch_size and batch_tokens both tell"),
        ({"step_seconds": 1}, "step_seconds goes with batch_size or batch_tokens"),
        ({"batch_size": 8}, "batch_size goes with step_seconds"),
        ({"batch_tokens": 8}, "batch_tokens goes with step_seconds"),
        (
            {"batch_tokens": 8, "step_seconds": 1, "sample_bytes": 33},
            "batch_tokens of 8 .* fewer bytes than one sample",
        ),
        ({"checkpoint_share": 0.1, "checkpoint_seconds": 1}, "checkpoint_share and checkpoint_seconds both tell"),
        (
            {"checkpoint_interval_seconds": 60, "checkpoint_seconds": 60},
            "checkpoint_interval_seconds of 60 s is no longer",
        ),
        ({"num_gpus": 8, "num_checkpoint_writers": 9}, "num_checkpoint_writers of 9 are more than num_gpus, 8"),
    ],
)
def test_contradictions_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        Workload(**facts)


@busy
@given(
    st.dictionaries(st.sampled_from(NAMES), st.one_of(st.integers(), st.floats(), st.integers(1, 100), st.floats(0, 1)))
)
def test_whatever_is_accepted_gives_finite_figures(facts):
    try:
        stages = plan_stages(Workload(**facts))
    except ValueError:
        return
    for stage in stages:
        assert all(math.isfinite(step.value) and step.value > 0 for step in stage.steps)
        assert all(flow.needed_bytes_per_second > 0 for flow in stage.flows)
