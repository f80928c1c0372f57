"""What each stage of a workload asks of the storage. Pure: facts in, bytes a second, requests and capacity out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shardload.capacity.formula import Sheet, Step
from shardload.capacity.workload import Workload

REQUEST_BYTES = 1 << 20
"""The request that large sequential reads and writes are made of, and the most of a sample that one request reads."""

INFERENCE_RATIO = 3
"""Samples a GPU infers in the time it trains on one: a forward pass is a third of a training step's arithmetic."""

Kind = Literal["sequential write", "sequential read", "random read"]


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that a stage moves in one way."""

    name: str
    kind: Kind
    request_bytes: float
    sustained_bytes_per_second: float | None
    """On average over the time the stage lasts; None where it happens once in a while."""
    peak_bytes_per_second: float
    """While a burst lasts."""
    needed_bytes_per_second: float
    """What the storage must reach: the peak where somebody waits for the burst, else the average."""

    @property
    def sustained_requests_per_second(self) -> float | None:
        """Requests a second on average."""
        sustained = self.sustained_bytes_per_second
        return None if sustained is None else sustained / self.request_bytes

    @property
    def peak_requests_per_second(self) -> float:
        """Requests a second while a burst lasts."""
        return self.peak_bytes_per_second / self.request_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the five stages."""

    name: str
    flows: tuple[Flow, ...] = ()
    capacity_bytes: float | None = None
    """What must be there while it lasts; None where it is not known."""
    written_bytes: float | None = None
    """The part of it that the stage itself brings; None where it brings nothing, or it is not known."""
    steps: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()
    """Facts of the workload without which the stage cannot be planned."""


def plan_stages(workload: Workload) -> tuple[Stage, ...]:
    """Returns the demand of the five stages, in the order in which data passes them."""
    sheet = _facts(workload)
    ways = (_ingest, _preparation, _training, _checkpoint, _inference)
    return tuple(dataclasses.replace(way(sheet), steps=sheet.take_steps()) for way in ways)


def values_of(stages: Iterable[Stage]) -> dict[str, float]:
    """Returns the result of every step by its name."""
    return {step.name: step.value for stage in stages for step in stage.steps}


def _facts(workload: Workload) -> Sheet:
    """Returns what is known before the first step."""
    values = {field.name: getattr(workload, field.name) for field in dataclasses.fields(workload)}
    values["num_checkpoint_writers"] = workload.num_checkpoint_writers or workload.num_gpus
    if workload.checkpoint_seconds is None:
        values["checkpoint_share"] = workload.allowed_checkpoint_share
    constants = {"request_bytes": REQUEST_BYTES, "inference_ratio": INFERENCE_RATIO}
    return Sheet({name: value for name, value in values.items() if value is not None} | constants)


def _missing(sheet: Sheet, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if not sheet.knows(name))


def _even(name: str, kind: Kind, bytes_per_second: float) -> Flow:
    """Returns a flow of large requests without bursts."""
    return Flow(name, kind, REQUEST_BYTES, bytes_per_second, bytes_per_second, bytes_per_second)


def _ingest(sheet: Sheet) -> Stage:
    if missing := _missing(sheet, "num_samples", "sample_bytes"):
        return Stage("ingest", missing=missing)
    sheet.put("dataset_bytes", "B", "num_samples * sample_bytes")
    raw = sheet.put("raw_bytes", "B", "dataset_bytes * raw_ratio", "refinedweb")
    rate = sheet.put("ingest_bytes_per_second", "B/s", "raw_bytes / ingest_seconds")
    return Stage("ingest", (_even("raw data", "sequential write", rate),), raw, raw)


def _preparation(sheet: Sheet) -> Stage:
    if missing := _missing(sheet, "num_samples", "sample_bytes"):
        return Stage("data preparation", missing=missing)
    reads = sheet.put("preparation_read_bytes_per_second", "B/s", "raw_bytes / ingest_seconds", "refinedweb")
    writes = sheet.put("preparation_write_bytes_per_second", "B/s", "dataset_bytes / ingest_seconds")
    capacity = sheet.put("preparation_capacity_bytes", "B", "raw_bytes + dataset_bytes")
    flows = (_even("raw data", "sequential read", reads), _even("dataset", "sequential write", writes))
    return Stage("data preparation", flows, capacity, sheet["dataset_bytes"])


def _training(sheet: Sheet) -> Stage:
    missing = _missing(sheet, "num_gpus", "sample_bytes")
    rate = next((name for name in ("samples_per_second_per_gpu", "step_seconds") if sheet.knows(name)), None)
    if missing or rate is None:
        missing += () if rate else ("samples_per_second_per_gpu",)
        return Stage("training reads", missing=missing)
    if rate == "samples_per_second_per_gpu":
        formula = "num_gpus * samples_per_second_per_gpu"
    elif sheet.knows("batch_size"):
        formula = "num_gpus * batch_size / step_seconds"
    else:
        formula = "num_gpus * batch_tokens * bytes_per_token / sample_bytes / step_seconds"
    sheet.put("samples_per_second", "samples/s", formula, "mlperf")
    formula = "samples_per_second * sample_bytes"
    average = sheet.put("training_bytes_per_second", "B/s", formula, "mlperf")
    formula = "training_bytes_per_second * prefetch_batches"
    peak = sheet.put("training_peak_bytes_per_second", "B/s", formula, "prefetch")
    requests = sheet.put("requests_per_sample", "requests", "ceil(sample_bytes / request_bytes)", "request")
    sheet.put("training_requests_per_second", "requests/s", "samples_per_second * requests_per_sample")
    flow = Flow("samples", "random read", sheet["sample_bytes"] / requests, average, peak, average)
    return Stage("training reads", (flow,), sheet["dataset_bytes"] if sheet.knows("dataset_bytes") else None)


def _checkpoint(sheet: Sheet) -> Stage:
    if missing := _missing(sheet, "num_params"):
        return Stage("checkpoint & restore", missing=missing)
    sheet.put("checkpoint_bytes", "B", "num_params * bytes_per_param", "zero", "14bytes")
    if not sheet.knows("checkpoint_seconds"):
        formula = "checkpoint_interval_seconds * checkpoint_share"
        sheet.put("checkpoint_seconds", "s", formula, "share", "youngdaly")
    formula = "checkpoint_bytes / checkpoint_seconds"
    write = sheet.put("checkpoint_write_bytes_per_second", "B/s", formula, "mlperf")
    formula = "checkpoint_bytes / checkpoint_interval_seconds"
    average = sheet.put("checkpoint_average_bytes_per_second", "B/s", formula)
    if sheet.knows("num_checkpoint_writers"):
        formula = "checkpoint_write_bytes_per_second / num_checkpoint_writers"
        sheet.put("checkpoint_writer_bytes_per_second", "B/s", formula)
    if not sheet.knows("restore_seconds"):
        sheet.put("restore_seconds", "s", "checkpoint_seconds", "restore")
    formula = "checkpoint_bytes * restore_ratio / restore_seconds"
    read = sheet.put("restore_read_bytes_per_second", "B/s", formula, "restore", "megascale")
    capacity = sheet.put("checkpoint_capacity_bytes", "B", "checkpoint_bytes * (num_checkpoints_kept + 1)")
    flows = (
        Flow("checkpoint", "sequential write", REQUEST_BYTES, average, write, write),
        Flow("restore", "sequential read", REQUEST_BYTES, None, read, read),
    )
    return Stage("checkpoint & restore", flows, capacity, capacity)


def _inference(sheet: Sheet) -> Stage:
    missing = _missing(sheet, "num_gpus", "sample_bytes")
    rate = "inference_samples_per_second_per_gpu"
    own = sheet.knows(rate)
    if missing or not (own or sheet.knows("samples_per_second")):
        missing += () if own or sheet.knows("step_seconds") or sheet.knows("samples_per_second_per_gpu") else (rate,)
        return Stage("inference", missing=missing)
    if own:
        sheet.put("inference_samples_per_second", "samples/s", f"num_gpus * {rate}")
    else:
        sheet.put("inference_samples_per_second", "samples/s", "inference_ratio * samples_per_second", "forward")
    reads = sheet.put("inference_bytes_per_second", "B/s", "inference_samples_per_second * sample_bytes")
    formula = "inference_bytes_per_second * prefetch_batches"
    peak = sheet.put("inference_peak_bytes_per_second", "B/s", formula, "prefetch")
    flows = [Flow("samples", "sequential read", REQUEST_BYTES, reads, peak, reads)]
    capacity, written = sheet["dataset_bytes"] if sheet.knows("dataset_bytes") else None, None
    if sheet.knows("result_bytes"):
        formula = "inference_samples_per_second * result_bytes"
        flows.append(_even("results", "sequential write", sheet.put("result_bytes_per_second", "B/s", formula)))
        if capacity is not None:
            written = sheet.put("results_bytes", "B", "num_samples * result_bytes")
            capacity += written
    return Stage("inference", tuple(flows), capacity, written)
