"""`shardload info`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import click
import msgspec
import numpy as np

from shardload.cli.storage import storage_option
from shardload.cli.text import bars, counted, echo, echo_facts, echo_json, line_width, printable
from shardload.format import layout
from shardload.format.external import EXTERNAL_BYTES
from shardload.quantities import format_bytes

SIZED_SAMPLES = 5_000_000
"""Most samples whose sizes are looked at unless asked for: they stand in the rows, which all have to be read."""

_MAX_BINS = 16


@click.command(short_help="Show schema, counts, sizes and what the fields hold.")
@click.argument("dataset")
@click.option(
    "--sizes/--no-sizes",
    default=None,
    help=f"Read all rows for ratio and sizes of samples.  [default: up to {SIZED_SAMPLES:,} samples]",
)
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def info(dataset: str, storage_options: dict[str, Any], sizes: bool | None, as_json: bool) -> int:
    """Show what DATASET is: schema, counts, sizes, compression, fingerprint, and a histogram of sample sizes."""
    from shardload.reader import open_dataset

    opened = open_dataset(dataset, storage_options=storage_options)
    manifest = opened.manifest
    newest = manifest.generations[-1]
    facts: dict[str, Any] = {
        "dataset": opened.location,
        "fingerprint": opened.fingerprint,
        "version": manifest.version,
        "format_version": layout.FORMAT_VERSION,
        "num_samples": manifest.num_samples,
        "num_shards": manifest.num_shards,
        "num_bytes": manifest.num_bytes,
        **({"external_bytes": manifest.external_bytes} if manifest.external else {}),
        "shard_size": newest.shard_size,
        "compression": newest.codec,
        "dictionary": newest.dictionary,
        "key": manifest.key,
        "schema": msgspec.to_builtins(manifest.schema),
        "generations": msgspec.to_builtins(manifest.generations),
        "writer": msgspec.to_builtins(newest.writer),
        "metadata": {
            name: len(value) if isinstance(value, list) else value
            for name, value in manifest.metadata.items()
            if not name.startswith(EXTERNAL_BYTES)
        },
    }
    if sizes or (sizes is None and len(opened) <= SIZED_SAMPLES):
        facts["sizes"] = _sizes(*opened.record_sizes())
        facts["statistics"] = {name: dataclasses.asdict(one) for name, one in opened.statistics().items()}
    if as_json:
        for one in facts.get("statistics", {}).values():
            one |= {name: _finite(one[name]) for name in ("smallest", "largest")}
        echo_json(facts)
    else:
        _echo(facts)
    return 0


def _finite(bound: Any) -> Any:
    """Returns a number as JSON knows it: infinities, which it does not, as text."""
    return str(bound) if isinstance(bound, float) and not math.isfinite(bound) else bound


def _sizes(stored: Any, raw: Any) -> dict[str, Any]:
    """Returns sums, ratio and the distribution of samples by their decompressed bytes."""
    if not len(raw):
        return {"stored_bytes": 0, "raw_bytes": 0, "ratio": 1.0, "histogram": []}
    low, high = (int(bound).bit_length() for bound in (raw.min(), raw.max()))
    # Bin b holds the sizes of b bits. As many neighbours go together as it takes to keep the histogram short.
    step = -(-(high - low + 1) // _MAX_BINS)
    num_bins = -(-(high - low + 1) // step)
    edges = [1 << (low + number * step) >> 1 for number in range(num_bins + 1)]
    counts = np.histogram(raw, bins=np.array(edges, dtype=np.float64))[0]
    bins = zip(edges[:-1], edges[1:], counts.tolist())
    return {
        "stored_bytes": int(stored.sum()),
        "raw_bytes": int(raw.sum()),
        "ratio": float(raw.sum() / max(1, stored.sum())),
        "min": int(raw.min()),
        "median": float(np.median(raw)),
        "mean": float(raw.mean()),
        "max": int(raw.max()),
        "histogram": [{"start": start, "stop": stop, "num_samples": count} for start, stop, count in bins],
    }


def _echo(facts: dict[str, Any]) -> None:
    sizes, writer = facts.get("sizes"), facts["writer"]
    ratio = f", ratio {sizes['ratio']:.2f} over the samples" if sizes else ""
    echo(f"{facts['dataset']}: {counted(facts['num_samples'], 'sample')}")
    echo_facts(
        (
            ("stored", f"{format_bytes(facts['num_bytes'])} in {counted(facts['num_shards'], 'shard')}"),
            (
                "indexed",
                f"{format_bytes(facts['external_bytes'])} in files beside it" if "external_bytes" in facts else "",
            ),
            ("shard size", f"at most {format_bytes(facts['shard_size'])}"),
            ("compression", f"{facts['compression']}{' with a dictionary' if facts['dictionary'] else ''}{ratio}"),
            ("key", printable(facts["key"])),
            ("version", f"{facts['version']} (format version {facts['format_version']})"),
            ("generations", f"{len(facts['generations']):,}" if len(facts["generations"]) > 1 else ""),
            ("fingerprint", facts["fingerprint"]),
            ("written by", ", ".join(f"{name} {version}" for name, version in writer.items())),
            ("metadata", ", ".join(f"{printable(name)}: {_short(value)}" for name, value in facts["metadata"].items())),
        )
    )
    echo("schema")
    statistics = facts.get("statistics", {})
    echo_facts((printable(f["name"]), _type(f) + _values(statistics.get(f["name"]))) for f in facts["schema"])
    if sizes and sizes["histogram"]:
        _echo_histogram(sizes)


def _short(value: str | int) -> str:
    return printable(value)[:60] if isinstance(value, str) else f"{value:,}"


def _type(field: dict[str, str]) -> str:
    return field["type"] + (f" ({field['codec']})" if field["codec"] != "none" else "")


def _values(statistics: dict[str, Any] | None) -> str:
    """Returns what a field holds, in short."""
    if statistics is None:
        return ""
    parts = []
    if statistics["smallest"] is not None:
        parts.append(f"from {statistics['smallest']:,} to {statistics['largest']:,}")
    if statistics["longest"]:
        parts.append(f"length {statistics['shortest']:,} to {statistics['longest']:,}")
    if statistics["num_missing"]:
        parts.append(f"{statistics['num_missing']:,} missing")
    if statistics["has_nan"]:
        parts.append("with NaN")
    return f": {', '.join(parts)}" if parts else ""


def _echo_histogram(sizes: dict[str, Any]) -> None:
    low, median, high = (format_bytes(sizes[name]) for name in ("min", "median", "max"))
    echo(f"bytes of a sample: {low} to {high}, median {median}, mean {format_bytes(sizes['mean'])}")
    bins = sizes["histogram"]
    for entry, bar in zip(bins, bars([entry["num_samples"] for entry in bins], max(10, line_width() - 45))):
        start, stop = format_bytes(entry["start"]), format_bytes(entry["stop"])
        echo(f"  {start:>10} - {stop:<10} {entry['num_samples']:>12,}  {bar}".rstrip())
