"""What is asked: the figures of the contract, an independent calculation, and what must grow with what."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.capacity import SOURCES, Workload, explain, plan_stages
from shardload.capacity.demand import values_of
from shardload.capacity.formula import Sheet

busy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
"""On a busy machine a test may take any time."""


EVERYTHING = {
    "num_gpus": 64,
    "num_params": 70e9,
    "samples_per_second_per_gpu": 12.5,
    "sample_bytes": 110_000,
    "num_samples": 1_280_000,
    "result_bytes": 400,
}


def flows_of(workload: Workload) -> dict[str, object]:
    return {f"{stage.name}: {flow.name}": flow for stage in plan_stages(workload) for flow in stage.flows}


@pytest.mark.parametrize(
    ("params", "size", "write", "read"), [(175e9, 2.45e12, 13.6e9, 109e9), (500e9, 7e12, 38.9e9, 311e9)]
)
def test_the_figures_of_the_contract(params, size, write, read):
    """Hourly at 5 % is 3 minutes; a restore reads eight times as much in the same time."""
    values = values_of(plan_stages(Workload(num_params=params)))
    assert values["checkpoint_bytes"] == size
    assert values["checkpoint_seconds"] == values["restore_seconds"] == pytest.approx(180)
    assert values["checkpoint_write_bytes_per_second"] == pytest.approx(write, rel=0.002)
    assert values["restore_read_bytes_per_second"] == pytest.approx(read, rel=0.002)
    flows = flows_of(Workload(num_params=params))
    checkpoint, restore = flows["checkpoint & restore: checkpoint"], flows["checkpoint & restore: restore"]
    assert checkpoint.needed_bytes_per_second == checkpoint.peak_bytes_per_second == pytest.approx(write, rel=0.002)
    assert checkpoint.sustained_bytes_per_second == pytest.approx(size / 3600)
    assert (restore.sustained_bytes_per_second, restore.peak_bytes_per_second) == (None, pytest.approx(read, rel=0.002))


def test_mlperf_demands_are_those_of_its_tables():
    """Batch, record and step of MLPerf Storage's H100 workloads, and the bandwidth at full use that follows."""
    for batch, record, step, megabytes in [
        (7, 146_600_628, 0.323, 3177),
        (400, 114_660.07, 0.224, 204.8),
        (1, 2_828_486, 0.0035, 808),
    ]:
        workload = Workload(num_gpus=1, batch_size=batch, step_seconds=step, sample_bytes=record)
        flow = flows_of(workload)["training reads: samples"]
        assert flow.sustained_bytes_per_second / 1e6 == pytest.approx(megabytes, rel=0.001)
        assert flow.request_bytes <= 1 << 20
        assert flow.sustained_requests_per_second == pytest.approx(batch / step * math.ceil(record / (1 << 20)))


@busy
@given(
    st.fixed_dictionaries(
        {
            "num_gpus": st.integers(1, 10**6),
            "num_params": st.integers(1, 10**13),
            "sample_bytes": st.integers(1, 10**9),
            "num_samples": st.integers(1, 10**12),
            "samples_per_second_per_gpu": st.integers(1, 10**5),
            "result_bytes": st.integers(1, 10**6),
            "prefetch_batches": st.integers(1, 100),
            "raw_ratio": st.integers(1, 100),
            "ingest_seconds": st.integers(1, 10**6),
            "checkpoint_interval_seconds": st.integers(100, 10**6),
            "checkpoint_seconds": st.integers(1, 99),
            "num_checkpoints_kept": st.integers(1, 9),
            "restore_ratio": st.integers(1, 64),
        }
    )
)
def test_all_flows_are_those_of_exact_fractions(facts):
    f = {name: Fraction(value) for name, value in facts.items()}
    dataset = f["num_samples"] * f["sample_bytes"]
    raw, checkpoint = dataset * f["raw_ratio"], 14 * f["num_params"]
    reads = f["num_gpus"] * f["samples_per_second_per_gpu"] * f["sample_bytes"]
    results = 3 * f["num_gpus"] * f["samples_per_second_per_gpu"] * f["result_bytes"]
    burst = f["prefetch_batches"]
    write = checkpoint / f["checkpoint_seconds"]
    wanted = {
        "ingest: raw data": (raw / f["ingest_seconds"],) * 3,
        "data preparation: raw data": (raw / f["ingest_seconds"],) * 3,
        "data preparation: dataset": (dataset / f["ingest_seconds"],) * 3,
        "training reads: samples": (reads, reads * burst, reads),
        "checkpoint & restore: checkpoint": (checkpoint / f["checkpoint_interval_seconds"], write, write),
        "checkpoint & restore: restore": (None, write * f["restore_ratio"], write * f["restore_ratio"]),
        "inference: samples": (3 * reads, 3 * reads * burst, 3 * reads),
        "inference: results": (results,) * 3,
    }
    flows = flows_of(Workload(**facts))
    assert list(flows) == list(wanted)
    for name, figures in wanted.items():
        flow = flows[name]
        found = flow.sustained_bytes_per_second, flow.peak_bytes_per_second, flow.needed_bytes_per_second
        assert found == tuple(figure if figure is None else pytest.approx(float(figure)) for figure in figures), name
    stages = plan_stages(Workload(**facts))
    capacities = [raw, raw + dataset, dataset, checkpoint * (1 + f["num_checkpoints_kept"])]
    capacities.append(dataset + f["num_samples"] * f["result_bytes"])
    assert [stage.capacity_bytes for stage in stages] == [pytest.approx(float(capacity)) for capacity in capacities]
    written = [raw, dataset, None, capacities[3], f["num_samples"] * f["result_bytes"]]
    assert [s.written_bytes for s in stages] == [w if w is None else pytest.approx(float(w)) for w in written]


GROW = [
    "num_gpus",
    "num_params",
    "bytes_per_param",
    "num_checkpoints_kept",
    "restore_ratio",
    "samples_per_second_per_gpu",
]
GROW += [
    "batch_size",
    "batch_tokens",
    "bytes_per_token",
    "sample_bytes",
    "num_samples",
    "prefetch_batches",
    "raw_ratio",
]
GROW += ["inference_samples_per_second_per_gpu", "result_bytes"]
FALL = ["checkpoint_interval_seconds", "checkpoint_share", "checkpoint_seconds", "restore_seconds", "step_seconds"]
FALL += ["ingest_seconds"]
WAYS = [
    {},
    {"samples_per_second_per_gpu": None, "step_seconds": 2.0, "batch_size": 32},
    # Larger samples are fewer in a batch of tokens, and so are their results.
    {"samples_per_second_per_gpu": None, "step_seconds": 2.0, "batch_tokens": 1e6, "result_bytes": None},
    {"checkpoint_seconds": 60.0, "restore_seconds": 600.0, "inference_samples_per_second_per_gpu": 40.0},
    {"checkpoint_share": 0.03},
]


def figures_of(workload: Workload) -> list[float]:
    figures = [stage.capacity_bytes or 0 for stage in plan_stages(workload)]
    for flow in flows_of(workload).values():
        figures += [flow.sustained_bytes_per_second or 0, flow.peak_bytes_per_second, flow.needed_bytes_per_second]
    return figures


@busy
@given(st.sampled_from(WAYS), st.data(), st.floats(1.01, 1.9))
def test_demand_is_monotone_in_each_fact(way, data, factor):
    before = Workload(**EVERYTHING | way)
    known = [name for name in GROW + FALL if getattr(before, name) is not None]
    name = data.draw(st.sampled_from(known))
    value = getattr(before, name)
    more = math.ceil(value * factor) if isinstance(value, int) else value * factor
    pairs = list(zip(figures_of(before), figures_of(dataclasses.replace(before, **{name: more}))))
    # A step of the arithmetic may round the last digit either way.
    if name in GROW:
        assert all(new >= old * (1 - 1e-12) for old, new in pairs)
    else:
        assert all(new <= old * (1 + 1e-12) for old, new in pairs)
    # The size of a token says nothing where the batch is in samples.
    idle = name == "bytes_per_token" and before.batch_tokens is None
    # What matters must move something.
    assert idle or any(new != pytest.approx(old, rel=1e-4) for old, new in pairs), name


def test_every_fact_is_in_the_test_of_monotony():
    names = {field.name for field in dataclasses.fields(Workload)}
    assert names - {"num_checkpoint_writers"} == {*GROW, *FALL}


def test_writers_share_the_checkpoint():
    for facts, writers in [({"num_gpus": 512}, 512), ({"num_gpus": 512, "num_checkpoint_writers": 64}, 64)]:
        values = values_of(plan_stages(Workload(num_params=175e9, **facts)))
        whole = values["checkpoint_write_bytes_per_second"]
        assert values["checkpoint_writer_bytes_per_second"] == pytest.approx(whole / writers)
    assert "checkpoint_writer_bytes_per_second" not in values_of(plan_stages(Workload(num_params=175e9)))


@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        ("num_gpus", [[], [], ["num_gpus"], [], ["num_gpus"]]),
        ("sample_bytes", [["sample_bytes"], ["sample_bytes"], ["sample_bytes"], [], ["sample_bytes"]]),
        ("num_samples", [["num_samples"], ["num_samples"], [], [], []]),
        ("num_params", [[], [], [], ["num_params"], []]),
        (
            "samples_per_second_per_gpu",
            [[], [], ["samples_per_second_per_gpu"], [], ["inference_samples_per_second_per_gpu"]],
        ),
    ],
)
def test_what_is_not_known_is_named_and_not_guessed(left_out, missing):
    stages = plan_stages(Workload(**EVERYTHING | {left_out: None}))
    assert [list(stage.missing) for stage in stages] == missing
    assert all(bool(stage.flows) != bool(stage.missing) for stage in stages)


def test_inference_alone_needs_no_training():
    facts = {"num_gpus": 2, "sample_bytes": 1000, "inference_samples_per_second_per_gpu": 50}
    flows = flows_of(Workload(**facts))
    assert [(name, flow.needed_bytes_per_second) for name, flow in flows.items()] == [("inference: samples", 100_000)]


@pytest.mark.parametrize("way", WAYS)
def test_the_explanation_has_every_formula_its_numbers_and_its_sources(way):
    stages = plan_stages(Workload(**EVERYTHING | way))
    lines = explain(stages)
    text = "\n".join(lines)
    for stage in stages:
        for step in stage.steps:
            # Computed here by Python itself, from the numbers that are printed.
            value = eval(step.formula, {"ceil": math.ceil}, dict(step.inputs))
            assert value == pytest.approx(step.value)
            assert f"  {step.name} = {step.formula}" in text
            assert set(step.sources) <= set(SOURCES)
    assert text.count("https://") >= 5
    cited = {int(n) for line in lines for n in re.findall(r"\[(\d+)\]", line)}
    assert cited == set(range(1, len(cited) + 1))
    for number in cited:
        assert sum(line.startswith(f"  [{number}] ") for line in lines) == 1


def test_every_source_is_cited_somewhere():
    cited = {
        s
        for way in WAYS
        for stage in plan_stages(Workload(**EVERYTHING | way))
        for step in stage.steps
        for s in step.sources
    }
    assert cited == set(SOURCES)


@pytest.mark.parametrize("formula", ["a - b", "a ** b", "max(a)", "a.b", "'a'", "a if b else a"])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ValueError, match="is no formula"):
        Sheet({"a": 1, "b": 2}).put("c", "", formula)


def test_refined_numbers_in_the_explanation_are_whole():
    """A name inside another is not mistaken for it."""
    sheet = Sheet({"rate": 2, "inference_rate": 3})
    assert sheet.put("both", "", "inference_rate * rate") == 6
    (step,) = sheet.take_steps()
    assert list(step.inputs) == ["inference_rate", "rate"]
