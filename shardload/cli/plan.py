"""`shardload plan`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from shardload.capacity import Measurement, Workload, explain, judge, measure, plan_stages
from shardload.capacity.demand import REQUEST_BYTES, Stage, values_of
from shardload.capacity.measurement import DEFAULT_SECONDS
from shardload.capacity.picture import check_picture, draw
from shardload.cli.plan_reads import echo_reads, planned_reads, reads_facts
from shardload.cli.plan_table import echo_plan
from shardload.cli.storage import storage_option
from shardload.cli.text import echo, echo_json
from shardload.errors import ShardloadError
from shardload.quantities import format_seconds, parse_bytes, parse_number, parse_seconds, parse_share

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset

_MEASURE_SECONDS = (0.01, 3600.0)


class _Quantity(click.ParamType[float]):
    """A number with what people write beside it."""

    name = "quantity"

    def __init__(self, parse: Callable[[str, str], float], metavar: str) -> None:
        self._parse = parse
        self._metavar = metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self._metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number; integers that fit stay exact."""
        try:
            number = self._parse(value, "it")
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return int(number) if number == int(number) and number < 1 << 53 else number


_NUMBER = _Quantity(parse_number, "N")
_SIZE = _Quantity(parse_bytes, "SIZE")
_TIME = _Quantity(parse_seconds, "TIME")
_SHARE = _Quantity(parse_share, "SHARE")

_FACTS: dict[str, tuple[str, _Quantity, str]] = {
    "num_gpus": ("--gpus", _NUMBER, "GPUs that train together."),
    "num_params": ("--params", _NUMBER, "Parameters of the model, such as 175e9, 175B or 7T."),
    "bytes_per_param": ("--bytes-per-param", _NUMBER, "Bytes a checkpoint holds for each.  [default: 14]"),
    "checkpoint_interval_seconds": ("--checkpoint-interval", _TIME, "From one checkpoint to the next.  [default: 1h]"),
    "checkpoint_share": ("--checkpoint-share", _SHARE, "Part of that a checkpoint may take.  [default: 5%]"),
    "checkpoint_seconds": ("--checkpoint-time", _TIME, "In place of the share, the time it may take."),
    "num_checkpoint_writers": ("--checkpoint-writers", _NUMBER, "Ranks that write it.  [default: all GPUs]"),
    "num_checkpoints_kept": ("--checkpoints-kept", _NUMBER, "Checkpoints that stay.  [default: 3]"),
    "restore_ratio": ("--restore-ratio", _NUMBER, "Bytes a restore reads for each of a checkpoint.  [default: 8]"),
    "restore_seconds": ("--restore-time", _TIME, "Time a restore may take.  [default: that of a checkpoint]"),
    "samples_per_second_per_gpu": ("--samples-per-gpu", _NUMBER, "Samples a second that each GPU reads to train on."),
    "step_seconds": ("--step-time", _TIME, "In place of that, the time of a step ..."),
    "batch_size": ("--batch-size", _NUMBER, "... and the samples each GPU takes in it ..."),
    "batch_tokens": ("--batch-tokens", _NUMBER, "... or the tokens each GPU takes in it."),
    "bytes_per_token": ("--bytes-per-token", _NUMBER, "Bytes of a token in the dataset.  [default: 4]"),
    "sample_bytes": ("--sample-size", _SIZE, "Mean size of a sample as stored."),
    "num_samples": ("--num-samples", _NUMBER, "Samples of the dataset."),
    "prefetch_batches": ("--prefetch-batches", _NUMBER, "Batches each rank reads ahead.  [default: 16]"),
    "raw_ratio": ("--raw-ratio", _NUMBER, "Bytes of raw data for each of the dataset.  [default: 10]"),
    "ingest_seconds": ("--ingest-time", _TIME, "Time to bring raw data in, and again to prepare it.  [default: 1d]"),
    "inference_samples_per_second_per_gpu": (
        "--inference-samples-per-gpu",
        _NUMBER,
        "Samples a second that each GPU infers.  [default: 3 times its training's]",
    ),
    "result_bytes": ("--result-size", _SIZE, "Size of what inference writes for each sample.  [default: not planned]"),
}
"""The option of each fact of a workload."""


def _fact_options(command: Callable[..., int]) -> Callable[..., int]:
    for name, (option, kind, text) in reversed(_FACTS.items()):
        command = click.option(option, name, type=kind, help=text)(command)
    return command


@click.command(short_help="Tell what a training asks of its storage.")
@_fact_options
@click.option(
    "--dataset",
    metavar="PATH",
    help="Take size and number of samples from this dataset; of a URL tell what reading it costs.",
)
@storage_option
@click.option(
    "--measure",
    "directory",
    type=click.Path(exists=True, file_okay=False),
    metavar="PATH",
    help="Measure what is asked in this directory; nothing stays there.",
)
@click.option("--measure-size", type=_SIZE, help="Most to write there.  [default: 1GiB, or a tenth of what is free]")
@click.option("--measure-time", type=_TIME, help=f"Most time to take.  [default: {format_seconds(DEFAULT_SECONDS)}]")
@click.option("--plot", metavar="FILE", help="Draw the plan, as .svg, .png or .pdf.")
@click.option("--explain", "explained", is_flag=True, help="Print every formula with its numbers and sources.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    dataset: str | None,
    storage_options: dict[str, Any],
    directory: str | None,
    measure_size: int | None,
    measure_time: float | None,
    plot: str | None,
    explained: bool,
    as_json: bool,
    **facts: float | None,
) -> int:
    """Tell what training a model asks of its storage, stage by stage.

    Of each of the five stages (ingest, data preparation, training reads, checkpoint & restore, inference): bytes and
    requests a second, on average and in bursts, and capacity. What is not given is not planned. --measure puts what a
    directory really does beside it: reads of training and inference must reach the average, as what is read ahead bridges
    bursts; checkpoints and restores must reach their burst. Times are 3600, 90s, 30min, 1h, 1h30min or 2d; sizes 110kB,
    4KiB or 1.5G. Results are in decimal units: 1 GB/s is 10^9 bytes a second.
    """
    workload, opened = _workload(dataset, storage_options, facts)
    stages = plan_stages(workload)
    reads = planned_reads(opened) if opened is not None and opened.far else []
    if not reads and not any(stage.flows for stage in stages):
        raise click.UsageError(
            "nothing can be planned from that: give --params, or --gpus, --samples-per-gpu and --sample-size"
        )
    if plot is not None:
        _check_plot(plot)
    measurement = _measure(workload, directory, measure_size, measure_time)
    if plot is not None:
        draw(stages, measurement, plot)
    if as_json:
        echo_json(
            _facts_of(workload, stages, measurement, explained) | ({"reads": reads_facts(reads)} if reads else {})
        )
        return 0
    options = {name: option for name, (option, _, _) in _FACTS.items()}
    echo_plan(workload, stages, measurement, options)
    if reads:
        echo_reads(reads)
    if explained:
        echo("")
        for line in explain(stages):
            echo(line)
    return 0


def _workload(
    dataset: str | None, storage_options: dict[str, Any], facts: dict[str, float | None]
) -> tuple[Workload, ShardDataset | None]:
    opened = None
    given = {name: value for name, value in facts.items() if value is not None}
    if "bytes_per_token" in given and "batch_tokens" not in given:
        raise click.UsageError("--bytes-per-token goes with --batch-tokens")
    if dataset is not None:
        for name in ("sample_bytes", "num_samples"):
            if name in given:
                raise click.UsageError(f"--dataset tells what {_FACTS[name][0]} says: leave one out")
        opened = _opened(dataset, storage_options)
        given |= {"num_samples": len(opened), "sample_bytes": opened.num_bytes / len(opened)}
    try:
        return Workload(**given), opened  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(_with_options(str(error))) from None


def _with_options(text: str) -> str:
    """Returns a message with options in place of the facts it names."""
    return re.sub(r"\w+", lambda word: _FACTS[word[0]][0] if word[0] in _FACTS else word[0], text)


def _opened(dataset: str, storage_options: dict[str, Any]) -> ShardDataset:
    from shardload.reader import open_dataset

    opened = open_dataset(dataset, storage_options=storage_options)
    if not len(opened):
        raise click.UsageError(f"{opened.location} has no samples to plan with")
    return opened


def _check_plot(plot: str) -> None:
    try:
        check_picture(plot)
    except ValueError as error:
        raise click.UsageError(f"--plot: {error}") from None
    except ImportError as error:
        raise ShardloadError(str(error)) from None


def _measure(
    workload: Workload, directory: str | None, measure_size: int | None, measure_time: float | None
) -> Measurement | None:
    if directory is None:
        if measure_size is not None or measure_time is not None:
            raise click.UsageError("--measure-size and --measure-time go with --measure PATH")
        return None
    seconds = DEFAULT_SECONDS if measure_time is None else measure_time
    low, high = _MEASURE_SECONDS
    if not low <= seconds <= high:
        raise click.UsageError(f"--measure-time must be from {format_seconds(low)} to {format_seconds(high)}")
    if measure_size is not None and measure_size < REQUEST_BYTES:
        raise click.UsageError(f"--measure-size must be at least {REQUEST_BYTES}: one large request")
    click.echo(f"measuring in {directory}, at most {format_seconds(seconds)}", err=True)
    return measure(
        directory,
        sample_bytes=workload.sample_bytes,
        num_writers=workload.num_checkpoint_writers or workload.num_gpus,
        max_bytes=measure_size,
        max_seconds=seconds,
    )


def _facts_of(
    workload: Workload, stages: tuple[Stage, ...], measurement: Measurement | None, explained: bool
) -> dict[str, Any]:
    """Returns the plan as JSON holds it."""
    facts: dict[str, Any] = {
        "workload": dataclasses.asdict(workload),
        "values": values_of(stages),
        "stages": [_stage_facts(stage, measurement) for stage in stages],
        "measurement": None if measurement is None else _measured_facts(measurement),
    }
    if explained:
        facts["steps"] = [dataclasses.asdict(step) | {"stage": stage.name} for stage in stages for step in stage.steps]
        facts["explanation"] = explain(stages)
    return facts


def _stage_facts(stage: Stage, measurement: Measurement | None) -> dict[str, Any]:
    flows = []
    for flow in stage.flows:
        speed = None if measurement is None else measurement.speed_of(flow.kind)
        flows.append(
            dataclasses.asdict(flow)
            | {
                "sustained_requests_per_second": flow.sustained_requests_per_second,
                "peak_requests_per_second": flow.peak_requests_per_second,
                "measured_bytes_per_second": None if speed is None else speed.bytes_per_second,
            }
        )
    return {
        "stage": stage.name,
        "flows": flows,
        "capacity_bytes": stage.capacity_bytes,
        "written_bytes": stage.written_bytes,
        "missing": [_FACTS[name][0] for name in stage.missing],
        "verdict": dataclasses.asdict(judge(stage, measurement)),
    }


def _measured_facts(measurement: Measurement) -> dict[str, Any]:
    speeds = [
        dataclasses.asdict(speed)
        | {"bytes_per_second": speed.bytes_per_second, "requests_per_second": speed.requests_per_second}
        for speed in measurement.speeds.values()
    ]
    return dataclasses.asdict(measurement) | {"speeds": speeds}
