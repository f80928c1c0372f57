"""The sound dataset that the hostile ones are made from: every type, section and feature of the format in a few KiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import shardload

SCHEMA: dict[str, Any] = {
    "name": "str",
    "number": "int64",
    "flag": "bool",
    "small": "float32[3]",
    "half": "bfloat16",
    "wide": "int32[128]",
    "tokens": "uint16[*]",
    "spans": "float32[*,2]?",
    "text": "str",
    "data": {"type": "bytes", "compression": "none"},
    "facts": {"type": "json?", "compression": "none"},
    "tags": {"type": "str[*]", "compression": "none"},
    "blobs": "bytes[*]",
    "packed": {"type": "int32[*]", "compression": "zstd"},
    "score": "float64?",
}
FIRST, SECOND = 12, 4
"""Samples of the two generations; the second has a field more."""
SAMPLES = FIRST + SECOND


def sample(i: int) -> dict[str, Any]:
    """The i-th sample: every value tells which it is of."""
    values = {
        "name": f"name-{i}",
        "number": i,
        "flag": i % 3 == 0,
        "small": np.array([i, i + 0.5, -i], dtype=np.float32),
        "half": float(i),
        "wide": np.arange(i, i + 128, dtype=np.int32),
        "tokens": np.arange(i, i + 150 * (i % 4), dtype=np.uint16),
        "spans": None if i % 4 == 1 else np.full((i % 5, 2), i, dtype=np.float32),
        "text": f"text {i} " * 20,
        "data": bytes([i]) * (7 * i + 1),
        "facts": {"id": i},
        "tags": [f"tag {i}", "", "ä"],
        "blobs": [bytes([i]) * 30] * (i % 3),
        "packed": np.full(i % 6 * 5, i, dtype=np.int32),
        "score": None if i % 5 == 0 else i / 7,
    }
    return values | {"late": f"late {i}"} if i >= FIRST else values


def write_base(path: Path, dictionary: str = "on") -> Path:
    """Writes the dataset: two generations, the first of two shards."""
    with shardload.ShardWriter(
        path, SCHEMA, key="name", compression="zstd:3", dictionary=dictionary, shard_size="32KiB"
    ) as writer:
        for i in range(FIRST):
            writer.write(sample(i))
    append = shardload.ShardWriter(
        path, {**SCHEMA, "late": "str?"}, append=True, compression="zstd:3", dictionary="off", shard_size="32KiB"
    )
    with append as writer:
        for i in range(FIRST, SAMPLES):
            writer.write(sample(i))
    return path
