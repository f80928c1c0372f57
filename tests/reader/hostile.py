"""Shards that no writer of ours makes: every checksum is right, and what they say is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forge import Forge

import shardload
from shardload.format import layout
from shardload.format.rows import PLACE, RAW, STORED
from shardload.writer import values

Place = Callable[[int, int], int]
HEAP_START = layout.HEADER_BYTES


def write_with_places(path: Path, num_samples: int, place_of: Place) -> Path:
    """Writes samples of two small fields whose rows point where `place_of(sample, right place)` says."""
    with shardload.ShardWriter(path, {"a": "bytes", "b": "bytes"}) as writer:
        for _ in range(num_samples):
            writer.write({"a": b"x", "b": b"y"})
    forged = Forge(path)

    def edit(rows: np.ndarray) -> None:
        for i, place in enumerate(rows[PLACE].tolist()):
            rows[PLACE][i] = place_of(i, place)

    forged.shards[0].edit_rows = edit
    return forged.save()


def write_raw(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: list[bytes]) -> Path:
    """Writes bytes as they are into the field `value` of a kind that would refuse them, and `number`."""
    with monkeypatch.context() as patch:
        patch.setitem(values._RECORD_ENCODERS, kind, lambda value: value)
        with shardload.ShardWriter(path, {"value": f"{kind}?", "number": "int64"}) as writer:
            for number, item in enumerate(data):
                writer.write({"value": item, "number": number})
    return path


def write_overlapping(path: Path, num_samples: int, heap_bytes: int, step: int = 64) -> Path:
    """Writes a dataset whose records each begin inside the one before and go on to the end of the heap."""
    with shardload.ShardWriter(path, {"data": "bytes"}) as writer:
        for _ in range(num_samples):
            writer.write({"data": b"x"})
    forged = Forge(path)
    shard = forged.shards[0]
    heap = shard.section(layout.SECTION_HEAP)
    heap.data = bytearray(heap_bytes)
    rows = shard.rows
    for i in range(num_samples):
        at, size = i * step, heap_bytes - i * step
        heap.data[at + 4 : at + 8] = (size - 8).to_bytes(4, "little")
        rows[PLACE][i], rows[STORED][i], rows[RAW][i] = HEAP_START + at, size, size
    # From the last to the first their sums are put in: each covers all the records inside it.
    return forged.save()
