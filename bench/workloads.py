"""What is read: the workloads of the cases, packed by shardload and laid out raw for who reads by hand."""

from __future__ import annotations

import itertools
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shardload

TOKENS, BATCH_TOKENS, BATCH_TEXT, BATCH_JPEG = 1024, 256, 256, 64
SHARD_BYTES = 64 << 20
"""Of a shard unless told otherwise: several of them also where a dataset is small."""
_TOGETHER = 1000


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


def tokens(folder: Path, num_samples: int, num_shards: int | None = None, *, shard_size: int = SHARD_BYTES) -> Workload:
    """int32[1024]; the first item of a sample is its number. Shards of a size, or so many of them."""
    rng, path, raw = np.random.default_rng(0), folder / "tokens", folder / "tokens.bin"
    # What a shard holds besides rows: sums of 4 bytes a row, then heads and paddings.
    shard_size = num_samples // num_shards * (4 * TOKENS + 4) + 8_192 if num_shards else shard_size
    with (
        shardload.ShardWriter(path, {"tokens": f"int32[{TOKENS}]"}, shard_size=shard_size) as writer,
        open(raw, "wb") as file,
    ):
        for first in range(0, num_samples, _TOGETHER):
            numbers = np.arange(first, min(first + _TOGETHER, num_samples))
            rows = rng.integers(0, 50_000, (len(numbers), TOKENS), dtype=np.int32)
            rows[:, 0] = numbers
            writer.write_batch({"tokens": rows})
            file.write(rows.data)
    assert num_shards is None or len(list((path / "shards").iterdir())) == num_shards
    lengths = np.full(num_samples, 4 * TOKENS, dtype=np.int64)
    return Workload(path, raw, np.cumsum(lengths) - lengths, lengths, "tokens", BATCH_TOKENS)


def images(folder: Path, num_samples: int, *, shard_size: int = SHARD_BYTES) -> Workload:
    """Byte strings of the sizes of photographs (log-normal, mean 110 KB), incompressible; the first 8 bytes are the number."""
    rng = np.random.default_rng(1)
    lengths = np.maximum(1000, rng.lognormal(np.log(110_000) - 0.125, 0.5, num_samples)).astype(np.int64)
    return _byte_strings(folder, lengths, rng, BATCH_JPEG, shard_size)


def records(folder: Path, num_samples: int, mean: float, deviation: float, batch_size: int) -> Workload:
    """Byte strings of about one size (normal), incompressible; the first 8 bytes are the number."""
    folder.mkdir()
    rng = np.random.default_rng(9)
    lengths = np.maximum(1000, rng.normal(mean, deviation, num_samples)).astype(np.int64)
    return _byte_strings(folder, lengths, rng, batch_size, SHARD_BYTES)


def _byte_strings(
    folder: Path, lengths: np.ndarray, rng: np.random.Generator, batch_size: int, shard_size: int
) -> Workload:
    path, raw = folder / "images", folder / "images.bin"
    with shardload.ShardWriter(path, {"image": "bytes"}, shard_size=shard_size) as writer, open(raw, "wb") as file:
        for number, length in enumerate(lengths.tolist()):
            data = number.to_bytes(8, "little") + rng.bytes(length - 8)
            writer.write({"image": data})
            file.write(data)
    return Workload(path, raw, np.cumsum(lengths) - lengths, lengths, "image", batch_size)


def source_text(order_seed: int = 0) -> list[str]:
    """Returns pieces of about 1 KB of the standard library's sources, file by file in a shuffled order of files."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(order_seed).shuffle(files)
    return [piece for path in files for piece in _pieces(path.read_text("utf-8", "replace"))]


def _pieces(text: str, wanted: int = 1000, least: int = 200) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= wanted:
            yield "".join(lines)
            lines, size = [], 0
    if size >= least:
        yield "".join(lines)


def text(folder: Path, num_samples: int, compression: str = "none") -> Workload:
    """Pieces of source text of about 1 KB, over and over; the first 8 characters are the sample's number."""
    path, raw = folder / f"text-{compression.partition(':')[0]}", folder / "text.bin"
    lengths = np.empty(num_samples, dtype=np.int64)
    with (
        shardload.ShardWriter(path, {"text": "str"}, compression=compression, shard_size="64MiB") as writer,
        open(raw, "wb") as file,
    ):
        for number, piece in zip(range(num_samples), itertools.cycle(source_text()), strict=False):
            piece = f"{number:08d} {piece}"
            writer.write({"text": piece})
            lengths[number] = file.write(piece.encode())
    return Workload(path, raw, np.cumsum(lengths) - lengths, lengths, "text", BATCH_TEXT)
