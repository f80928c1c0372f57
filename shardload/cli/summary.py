"""What a pack has made, or would make, for people."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardload.cli.head import value_fact, value_text
from shardload.cli.progress import duration
from shardload.cli.text import counted, cut, echo, echo_facts, line_width
from shardload.format.schema import Field, parse_field
from shardload.packing import PackSummary
from shardload.quantities import format_bytes
from shardload.storage import is_far


def echo_summary(summary: PackSummary) -> None:
    """Prints what a pack has made."""
    seconds = max(summary.seconds, 1e-9)
    packed = summary.num_workers > 0
    speed = f"{summary.num_samples / seconds:,.0f} samples/s, {summary.source_bytes / seconds / 1e6:,.1f} MB/s"
    place = "in the store" if is_far(summary.target) else "on disk"
    state = f"packed and {place}" if packed else "complete before: nothing was left to do"
    echo(f"{summary.target}: {counted(summary.num_samples, 'sample')} {state}")
    echo_facts(
        (
            *_source(summary),
            ("ratio", f"{summary.ratio:.2f}"),
            ("tokens", ", ".join(filter(None, (f"{summary.num_tokens:,}" * bool(summary.num_tokens), summary.note)))),
            ("time", f"{duration(summary.seconds)} with {counted(summary.num_workers, 'worker')}: {speed}" * packed),
            ("CPU", f"{duration(summary.cpu_seconds)}, {summary.cores_used:.2f} cores in use" * packed),
            ("stages", _stages(summary)),
            *_left_out(summary),
            ("rejected", f"{summary.num_rejects:,}, told in rejects.jsonl" if summary.num_rejects else ""),
            ("log", summary.log_problem),
            ("version", str(summary.version)),
            ("fingerprint", summary.fingerprint),
        )
    )


def echo_estimate(summary: PackSummary) -> None:
    """Prints what a pack would make, with its first samples."""
    echo(f"{summary.target}: nothing was written; about {counted(summary.num_samples, 'sample')} would be packed")
    about = f"about {duration(summary.seconds)} with {counted(summary.num_workers, 'worker')}"
    echo_facts(
        (
            ("schema", ", ".join(f"{name}: {text}" for name, text in summary.types.items())),
            *_source(summary),
            ("time", about),
            *_left_out(summary),
            ("rejected", f"about {summary.num_rejects:,}" if summary.num_rejects else ""),
        )
    )
    for text in summary.first_rejects:
        echo(f"would be rejected: {cut(text, max(40, line_width() - 19))}")
    names = max(map(len, summary.types))
    for number, sample in enumerate(summary.first_samples):
        echo(f"sample {number}")
        for field in _fields(summary):
            value = value_text(field, _stored(field, sample.get(field.name)), max(20, line_width() - names - 4))
            echo(f"  {cut(field.name, names):<{names}}  {value}")


def first_facts(summary: PackSummary) -> list[dict[str, Any]]:
    """Returns the first samples as JSON can hold them."""
    return [
        {field.name: value_fact(field, _stored(field, sample.get(field.name))) for field in _fields(summary)}
        for sample in summary.first_samples
    ]


def _source(summary: PackSummary) -> tuple[tuple[str, str], ...]:
    about = "about " if summary.dry_run else ""
    return (
        ("source", f"{format_bytes(summary.source_bytes)} in {counted(summary.num_units, 'unit')}"),
        ("stored", f"{about}{format_bytes(summary.stored_bytes)} in {about}{counted(summary.num_shards, 'shard')}"),
    )


def _left_out(summary: PackSummary) -> tuple[tuple[str, str], ...]:
    return (
        ("dropped", f"{counted(summary.num_dropped, 'sample')} of the source" if summary.num_dropped else ""),
        ("split", f"{counted(summary.num_split, 'sample')} of the source" if summary.num_split else ""),
        ("duplicates", f"{summary.num_duplicates:,}" if summary.num_duplicates else ""),
        ("left out", ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())),
    )


def _stages(summary: PackSummary) -> str:
    """Returns what part of the workers' time each stage took, and how fast it is alone."""
    total = sum(summary.stage_seconds.values())
    rates = summary.stage_bytes_per_second
    parts = [
        f"{stage} {100 * summary.stage_seconds[stage] / total:.0f} % ({rate / 1e6:,.3g} MB/s a worker"
        f"{', the slowest' if stage == summary.slowest_stage else ''})"
        for stage, rate in rates.items()
    ]
    return ", ".join(parts)


def _fields(summary: PackSummary) -> list[Field]:
    return [parse_field(name, text) for name, text in summary.types.items()]


def _stored(field: Field, value: Any) -> Any:
    """Returns a value as it would come back: sources give arrays as lists too."""
    return np.asarray(value) if value is not None and (field.shape or field.ragged) else value
