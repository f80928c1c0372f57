"""`shardload head`."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from shardload.cli.images import image_size
from shardload.cli.storage import storage_option
from shardload.cli.text import cut, echo, echo_json, line_width
from shardload.format.schema import MEDIA_TYPES, Field
from shardload.quantities import format_bytes

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset

_SHOWN_BYTES = 16
_SHOWN_ITEMS = 6


@click.command(short_help="Show the first samples.")
@click.argument("dataset")
@click.option("-n", "count", type=click.IntRange(min=0), default=5, show_default=True, help="Samples to show.")
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print the samples as JSON.")
def head(dataset: str, storage_options: dict[str, Any], count: int, as_json: bool) -> int:
    """Show the first samples of DATASET: text as text, images by format and size, arrays by their first values."""
    from shardload.reader import open_dataset

    opened = open_dataset(dataset, storage_options=storage_options)
    shown = range(min(count, len(opened)))
    try:
        if as_json:
            _echo_json(opened, shown)
        else:
            _echo(opened, shown)
    except RecursionError:
        raise ValueError(f"{opened.location}: a JSON value is nested too deeply to be shown") from None
    return 0


def _echo_json(opened: ShardDataset, shown: range) -> None:
    fields = opened.schema.fields
    samples = [
        {field.name: value_fact(field, sample[field.name]) for field in fields}
        for sample in map(opened.__getitem__, shown)
    ]
    try:
        echo_json({"dataset": opened.location, "num_samples": len(opened), "samples": samples})
    except ValueError as error:
        # A number such as 1e999 is JSON, and infinite once it is read.
        raise ValueError(f"{opened.location}: a value cannot be shown as JSON: {error}") from None


def _echo(opened: ShardDataset, shown: range) -> None:
    fields = opened.schema.fields
    names = max(len(field.name) for field in fields)
    for sample_id in shown:
        sample = opened[sample_id]
        echo(f"sample {sample_id}")
        for field in fields:
            text = value_text(field, sample[field.name], max(20, line_width() - names - 4))
            echo(f"  {cut(field.name, names):<{names}}  {text}")
    if len(opened) > len(shown):
        echo(f"... {len(opened) - len(shown):,} more")


def value_text(field: Field, value: Any, width: int) -> str:
    """Returns a value for people, at most about `width` characters."""
    if value is None:
        return "null"
    if field.listed:
        one = replace(field, starred=False)
        return cut(
            f"{len(value):,} of {field.kind}: {'; '.join(value_text(one, v, width) for v in value[:_SHOWN_ITEMS])}",
            width,
        )
    if field.kind in MEDIA_TYPES:
        size = image_size(value)
        dimensions = f" {size[0]}x{size[1]}" if size else ""
        return f"{field.kind}{dimensions}, {format_bytes(len(value))}"
    if field.kind == "bytes":
        more = "..." if len(value) > _SHOWN_BYTES else ""
        start = f": {value[:_SHOWN_BYTES].hex(' ')}{more}" if value else ""
        return f"bytes, {format_bytes(len(value))}{start}"
    if field.kind == "json":
        return cut(json.dumps(value, ensure_ascii=False), width)
    if field.kind == "str":
        return cut(value, width)
    if field.shape or field.ragged:
        items = [f"{item:.6g}" if isinstance(item, float) else str(item) for item in _first(value)]
        more = ", ..." if value.size > len(items) else ""
        return cut(f"{field.kind}[{','.join(map(str, value.shape))}]: {', '.join(items)}{more}", width)
    return str(_item(value))


def value_fact(field: Field, value: Any) -> Any:
    """Returns a value as JSON can hold it: text whole, bytes and arrays by size and start."""
    if value is None or field.kind in ("str", "json"):
        return value
    if field.listed:
        one = replace(field, starred=False)
        return {"num_items": len(value), "first": [value_fact(one, item) for item in value[:_SHOWN_ITEMS]]}
    if field.kind in MEDIA_TYPES:
        size = image_size(value)
        dimensions = {"width": size[0], "height": size[1]} if size else {}
        return {"format": field.kind, **dimensions, "num_bytes": len(value)}
    if field.kind == "bytes":
        return {"num_bytes": len(value), "first_base64": base64.b64encode(value[:_SHOWN_BYTES]).decode()}
    if field.shape or field.ragged:
        return {"dtype": field.kind, "shape": list(value.shape), "first": [_number(item) for item in _first(value)]}
    return _number(_item(value))


def _first(value: Any) -> list[Any]:
    items: list[Any] = np.asarray(value).reshape(-1)[:_SHOWN_ITEMS].tolist()
    return items


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _number(value: Any) -> Any:
    """Returns a number as JSON knows it: NaN and the infinities, which it does not, as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
