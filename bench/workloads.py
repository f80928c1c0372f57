"""What is read: the workloads of the cases, packed by shardload and laid out raw for who reads by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shardload

TOKENS, BATCH_TOKENS, BATCH_JPEG = 1024, 256, 64


@dataclass(frozen=True)
class Workload:
    """One dataset in two forms."""

    dataset: Path
    raw: Path
    """The samples one after another."""
    offsets: np.ndarray
    """Where each starts in `raw`."""
    lengths: np.ndarray
    field: str
    batch_size: int

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def files(self) -> list[Path]:
        """All files that hold samples, in both forms."""
        return [self.raw, *sorted((self.dataset / "shards").iterdir())]


def tokens(folder: Path, num_samples: int) -> Workload:
    """int32[1024]; the first item of a sample is its number."""
    rng, path, raw = np.random.default_rng(0), folder / "tokens", folder / "tokens.bin"
    with (
        shardload.ShardWriter(path, {"tokens": f"int32[{TOKENS}]"}, shard_size="64MiB") as writer,
        open(raw, "wb") as file,
    ):
        for number in range(num_samples):
            row = rng.integers(0, 50_000, TOKENS, dtype=np.int32)
            row[0] = number
            writer.write({"tokens": row})
            file.write(row.tobytes())
    lengths = np.full(num_samples, 4 * TOKENS, dtype=np.int64)
    return Workload(path, raw, np.cumsum(lengths) - lengths, lengths, "tokens", BATCH_TOKENS)


def images(folder: Path, num_samples: int) -> Workload:
    """Byte strings of the sizes of photographs (log-normal, mean 110 KB), incompressible; the first 8 bytes are the number."""
    rng, path, raw = np.random.default_rng(1), folder / "images", folder / "images.bin"
    lengths = np.maximum(1000, rng.lognormal(np.log(110_000) - 0.125, 0.5, num_samples)).astype(np.int64)
    with shardload.ShardWriter(path, {"image": "bytes"}, shard_size="64MiB") as writer, open(raw, "wb") as file:
        for number, length in enumerate(lengths.tolist()):
            data = number.to_bytes(8, "little") + rng.bytes(length - 8)
            writer.write({"image": data})
            file.write(data)
    return Workload(path, raw, np.cumsum(lengths) - lengths, lengths, "image", BATCH_JPEG)
