"""What the arms of P4 share: the samples as they lie raw, and what an arm has to give.

Read by the peers' own Python: nothing here needs more than numpy and torch.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 1024
SHARD_BYTES = 64 << 20
"""Size of a shard, chunk or tar wherever there is one to set."""
BATCH_SIZES = {"tokens": 256, "text": 256, "jpeg": 64}


@dataclass(frozen=True)
class Samples:
    """The samples of one workload, one after the other in a file.

    A sample carries its number: tokens as first item, jpeg in its first 8 bytes, text in its first 8 characters.
    """

    folder: Path
    kind: str
    """tokens (int32[1024]), text or jpeg (bytes)."""
    level: int | None
    """zstd level of what is stored, None for no compression."""

    @property
    def raw(self) -> Path:  # noqa: D102
        return self.folder / "samples.bin"

    @property
    def batch_size(self) -> int:  # noqa: D102
        return BATCH_SIZES[self.kind]

    def shard_bytes(self) -> int:
        """Size of a shard where peers share shards out to workers: as everywhere, but so small that there are 8."""
        return min(SHARD_BYTES, self.raw.stat().st_size // 8)

    def bounds(self) -> np.ndarray:
        """Where samples start and the last one stops, int64[num_samples + 1]."""
        return np.concatenate([[0], np.cumsum(np.load(self.folder / "lengths.npy"))]).astype(np.int64)

    def pieces(self) -> Iterator[bytes]:
        """Yields the bytes of each sample."""
        bounds = self.bounds().tolist()
        with open(self.raw, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for start, stop in itertools.pairwise(bounds):
                yield data[start:stop]

    def values(self) -> Iterator[Any]:
        """Yields each sample as a writer wants it: an int32 array, or bytes."""
        for piece in self.pieces():
            yield np.frombuffer(piece, dtype=np.int32).copy() if self.kind == "tokens" else piece

    def frames(self) -> Iterator[bytes]:
        """Yields each sample's bytes, compressed by hand if they are to be."""
        if self.level is None:
            yield from self.pieces()
        else:
            import zstandard

            compress = zstandard.ZstdCompressor(level=self.level).compress
            yield from map(compress, self.pieces())

    def table(self) -> Any:
        """Returns all as a pyarrow table of one column `value`, in chunks of 4,096 rows."""
        import pyarrow as pa

        chunks, rows = [], list(self.frames() if self.level is not None else self.pieces())
        for first in range(0, len(rows), 4096):
            part = rows[first : first + 4096]
            if self.kind == "tokens":
                flat = pa.Array.from_buffers(pa.int32(), len(part) * TOKENS, [None, pa.py_buffer(b"".join(part))])
                chunks.append(pa.FixedSizeListArray.from_arrays(flat, TOKENS))
            else:
                chunks.append(pa.array(part, pa.large_binary()))
        return pa.table({"value": pa.chunked_array(chunks)})


class Arm:
    """One way to store samples and to read them in a random order."""

    module = "torch"
    """What must be importable."""
    order = "all samples"
    """Over what samples are shuffled."""
    by_hand = False
    """Whether a user writes it, so that it is no packaged peer."""
    settings: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try."""
    form = ""
    """Arms of one form share what is written."""
    zstd = ""
    """How zstd text is kept; empty if there is no way."""
    only_zstd = False
    """Whether it is there for nothing else."""

    def write(self, samples: Samples, target: str) -> None:
        """Writes all samples into a new folder `target`."""
        raise NotImplementedError

    def lead(self, workers: int) -> int:
        """Returns how many batches of an epoch come before its clock starts: those it may have read ahead of the epoch."""
        return 0

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:
        """Returns what gives one epoch of batches at each `iter`: int32 tensors (batch, 1024), or lists of bytes."""
        raise NotImplementedError
