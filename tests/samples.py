"""Datasets whose samples tell which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import shardload

MIXED_SCHEMA = {
    "number": "int64",
    "flag": "bool",
    "small": "float32[3]",
    "half": "bfloat16",
    "wide": "int32[256]",
    "text": "str",
    "data": "bytes",
    "facts": "json?",
    "score": "float64?",
    "big": "uint32",
}


def mixed_sample(i: int) -> dict[str, Any]:
    """The i-th sample of the mixed datasets: every value tells which sample it is of."""
    return {
        "number": i,
        "flag": i % 3 == 0,
        "small": np.array([i, i + 0.5, -i], dtype=np.float32),
        "half": float(i % 256),
        "wide": np.arange(i, i + 256, dtype=np.int32),
        "text": f"sample {i} " + "äöü " * (i % 40),
        "data": bytes([i % 256]) * (i % 700),
        "facts": None if i % 4 == 0 else {"id": i, "tags": ["a", str(i)]},
        "score": None if i % 5 == 0 else i / 7,
        "big": (1 << 32) - 1 - i,
    }


def write_mixed(path: Path, num_samples: int, **options: Any) -> Path:
    """Writes a dataset of mixed samples, in several shards unless told otherwise."""
    options = {"compression": "zstd:3", "shard_size": "64KiB"} | options
    with shardload.ShardWriter(path, MIXED_SCHEMA, **options) as writer:
        for i in range(num_samples):
            writer.write(mixed_sample(i))
    return path


def same(left: Any, right: Any) -> bool:
    """Tells whether two values of samples are equal, arrays included."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return type(left) is type(right) and left == right
