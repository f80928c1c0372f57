"""A dataset of documents of varying length whose items tell which document and place they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shardload

NUM_DOCUMENTS = 400
SCHEMA = {
    "tokens": "uint16[*]",
    "mask": {"type": "bool[*]?", "compression": "zstd"},
    "weight": "bfloat16[*]",
    "frames": "float32[*,2]",
    "text": "str",
    "number": "int64",
}


def document_lengths() -> NDArray[np.int64]:
    """Log-normal, 1 to 96, and a few without items."""
    rng = np.random.default_rng(3)
    lengths = rng.lognormal(2.5, 0.9, NUM_DOCUMENTS).astype(np.int64).clip(1, 96)
    return np.where(rng.random(NUM_DOCUMENTS) < 0.02, 0, lengths)


LENGTHS = document_lengths()


def document(i: int) -> dict[str, Any]:
    """The i-th document."""
    size = int(LENGTHS[i])
    places = np.arange(size)
    return {
        "tokens": (i * 100 + places).astype(np.uint16),
        "mask": None if size == 0 else places % 3 == 0,
        "weight": (places % 8).astype(np.float32),
        "frames": np.stack([np.full(size, i), places], axis=1).astype(np.float32),
        "text": "x" * size,
        "number": i,
    }


def write_documents(path: Path) -> Path:
    """Writes them in several shards."""
    with shardload.ShardWriter(path, SCHEMA, compression="zstd:1", shard_size="64KiB") as writer:
        for i in range(NUM_DOCUMENTS):
            writer.write(document(i))
    return path
