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


EVERY_SCHEMA: dict[str, Any] = {
    "id": "str",
    "label": "int16",
    "box": "float32[2,2]?",
    "embedding": "bfloat16[256]?",
    "tokens": "uint16[*]",
    "frames": "float32[*,3]?",
    "mask": {"type": "bool[*]?", "compression": "zstd"},
    "image": "png?",
    "captions": "str[*]?",
    "blobs": "bytes[*]",
    "text": "str",
    "facts": "json?",
    "data": {"type": "bytes?", "compression": "none"},
}
"""One of everything: fixed, wide, streams of one and two dimensions, ragged and lists in the record, media, text."""
LATER_SCHEMA: dict[str, Any] = {
    "score": "float64?",
    "vector": "uint8[600]?",
    "words": "int32[*]?",
    "tags": "bytes[*]?",
    "note": "str?",
}
"""What the second generation has beside it."""
EVERY_TYPES = {
    name: one["type"] if isinstance(one, dict) else one for name, one in (EVERY_SCHEMA | LATER_SCHEMA).items()
}


def every_sample(i: int, later: bool) -> dict[str, Any]:
    """The i-th sample of the datasets of everything; `later`: of the second generation."""
    sample = {
        "id": f"sample-{i}",
        "label": i - 3,
        "box": None if i % 3 == 0 else np.array([[i, -i], [0.5, -0.0]], dtype=np.float32),
        "embedding": None if i % 4 == 1 else np.arange(i, i + 256, dtype=np.float32) // 2,
        # Lengths that put the ends of samples on, before and behind the borders of blocks.
        "tokens": (np.arange((0, 2048, 1, 700, 2047, 0)[i % 6]) * 7 + i).astype(np.uint16),
        "frames": None if i % 5 == 2 else np.arange(3 * (i % 4), dtype=np.float32).reshape(-1, 3) - i,
        "mask": None if i % 4 == 3 else np.arange(i * 5 % 40) % 3 == 0,
        "image": None if i % 4 == 2 else b"\x89PNG\r\n\x1a\n" + bytes([i]) * i,
        "captions": None if i % 4 == 0 else [f"caption {n} of {i}" * (n % 2) for n in range(i % 4)],
        "blobs": [bytes([i, n]) * n for n in range(i % 5)],
        "text": f"The sample of the number {i} is a sample with a text that is much like the others. äöü " * (i % 3),
        "facts": None if i % 3 == 1 else {"number": i, "kind": "of everything", "list": [i, None]},
        "data": None if i % 5 == 4 else bytes([i]) * (i * 90 % 1300),
    }
    if not later:
        return sample
    return sample | {
        "score": None if i % 2 else float("nan") if i % 4 else i / 7,
        "vector": None if i % 3 == 2 else np.full(600, i, dtype=np.uint8),
        "words": None if i % 3 == 0 else np.arange(-i, i, dtype=np.int32),
        "tags": None if i % 4 == 1 else [b"tag", bytes([i])],
        "note": None if i % 2 == 0 else f"a note on {i}",
    }


FIRST_SAMPLES, EVERY_SAMPLES = 14, 28
"""Of each generation just enough to train a dictionary on."""


def write_everything(path: Path, **options: Any) -> Path:
    """Writes one of everything: a key, dictionaries, and two generations, the second of more fields."""
    options = {"compression": "zstd:3", "shard_size": "64KiB", "dictionary": "on"} | options
    with shardload.ShardWriter(path, EVERY_SCHEMA, key="id", metadata={"classes": ["a", "b"]}, **options) as writer:
        for i in range(FIRST_SAMPLES):
            writer.write(every_sample(i, later=False))
    types = EVERY_SCHEMA | LATER_SCHEMA
    with shardload.ShardWriter(path, types, append=True, metadata={"more": 1}, **options) as writer:
        for i in range(FIRST_SAMPLES, EVERY_SAMPLES):
            writer.write(every_sample(i, later=True))
    return path


def expected_everything() -> list[dict[str, Any]]:
    """Returns the samples as they are read: those of the first generation lack the later fields."""
    later = dict.fromkeys(LATER_SCHEMA)
    samples = [every_sample(i, i >= FIRST_SAMPLES) for i in range(EVERY_SAMPLES)]
    return [sample if len(sample) > len(EVERY_SCHEMA) else sample | later for sample in samples]


def same(left: Any, right: Any) -> bool:
    """Tells whether two values of samples are equal, arrays included."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)) or left.dtype != right.dtype:
            return False
        return bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    return type(left) is type(right) and (left == right or (left != left and right != right))
