"""The shard table: what a dataset's shards are (FORMAT.md section 4)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.manifest import Manifest

_HEADER = struct.Struct("<8sIIQQ")
_ENTRY = np.dtype(
    [
        ("generation", "<u4"),
        ("unit", "<u4"),
        ("part", "<u4"),
        ("num_samples", "<u4"),
        ("num_bytes", "<u8"),
        ("head_digest", "V32"),
        ("file_digest", "V32"),
    ]
)


@dataclass(frozen=True, slots=True, order=True)
class ShardEntry:
    """One shard as the table knows it."""

    generation: int
    unit: int
    part: int
    num_samples: int
    num_bytes: int
    head_digest: bytes
    """SHA-256 of the directory and footer."""
    file_digest: bytes
    """SHA-256 of the whole file."""

    @property
    def name(self) -> str:
        """Path of the shard inside the dataset."""
        return layout.shard_name(self.generation, self.unit, self.part)


@dataclass(frozen=True)
class ShardTable:
    """All shards of a dataset, in the order of their samples."""

    entries: NDArray[Any]
    """Structured array, one element a shard."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, shard_id: int) -> ShardEntry:
        entry = self.entries[shard_id]
        generation, unit, part, num_samples, num_bytes, head_digest, file_digest = entry.item()
        return ShardEntry(generation, unit, part, num_samples, num_bytes, bytes(head_digest), bytes(file_digest))

    @cached_property
    def first_sample_ids(self) -> NDArray[np.int64]:
        """The sample id at which each shard starts, and the total at the end: int64 of shape (shards + 1,)."""
        starts = np.zeros(len(self.entries) + 1, dtype=np.int64)
        np.cumsum(self.entries["num_samples"], out=starts[1:])
        return starts

    def encode(self) -> bytes:
        """Returns the bytes of the table's file; its name is their SHA-256."""
        header = _HEADER.pack(layout.TABLE_MAGIC, layout.DRAFT, _ENTRY.itemsize, len(self.entries), 0)
        return header + self.entries.tobytes()


def make_table(entries: Sequence[ShardEntry]) -> ShardTable:
    """Returns the table of the given shards, sorted by (generation, unit, part)."""
    rows = np.zeros(len(entries), dtype=_ENTRY)
    for row, entry in zip(rows, sorted(entries), strict=True):
        row["generation"], row["unit"], row["part"] = entry.generation, entry.unit, entry.part
        row["num_samples"], row["num_bytes"] = entry.num_samples, entry.num_bytes
        row["head_digest"] = np.void(entry.head_digest)
        row["file_digest"] = np.void(entry.file_digest)
    return ShardTable(rows)


def table_name(digest: str) -> str:
    """Returns the path of a shard table inside its dataset."""
    return f"tables/{digest}"


def table_bytes(num_shards: int) -> int:
    """Returns the length of the file of a table of so many shards."""
    return int(_HEADER.size + num_shards * _ENTRY.itemsize)


def decode_table(data: bytes, manifest: Manifest, place: str) -> ShardTable:
    """Returns the table in `data`, checked against its manifest.

    Raises:
        ChecksumError: the bytes do not have the digest the manifest gives.
        FormatError: the table breaks a rule of the format or contradicts the manifest.
    """
    if hashlib.sha256(data).hexdigest() != manifest.table:
        raise ChecksumError(f"{place}: the shard table is damaged: its SHA-256 is not the one in the manifest")
    if len(data) != table_bytes(manifest.num_shards):
        raise FormatError(f"{place}: {len(data)} bytes are no table of {manifest.num_shards} shards")
    if _HEADER.unpack_from(data) != (layout.TABLE_MAGIC, layout.DRAFT, _ENTRY.itemsize, manifest.num_shards, 0):
        raise FormatError(f"{place}: not a shard table of draft {layout.DRAFT}")
    table = ShardTable(np.frombuffer(data, dtype=_ENTRY, offset=_HEADER.size))
    _check(table.entries, manifest, place)
    return table


def _check(entries: NDArray[Any], manifest: Manifest, place: str) -> None:
    names = ("generation", "unit", "part")
    if len(entries) > 1:
        later, earlier = (tuple(entries[name][part] for name in names) for part in (slice(1, None), slice(None, -1)))
        rising = later[2] > earlier[2]
        for number in (1, 0):
            rising = (later[number] > earlier[number]) | ((later[number] == earlier[number]) & rising)
        if not rising.all():
            raise FormatError(f"{place}: shard {int(np.argmin(rising)) + 1} is out of order")
    if not (entries["num_samples"] > 0).all() or (entries["num_bytes"] > layout.MAX_SHARD_BYTES).any():
        raise FormatError(f"{place}: a shard has no samples or over 2^48 bytes")
    # Neither sum can wrap: 2^26 shards of 2^32 samples, and of 2^48 bytes in floating point first.
    num_samples = int(entries["num_samples"].sum(dtype=np.uint64))
    num_bytes = sum(int(part.sum(dtype=np.uint64)) for part in np.array_split(entries["num_bytes"], 1 << 11))
    if (num_samples, num_bytes) != (manifest.num_samples, manifest.num_bytes):
        raise FormatError(
            f"{place}: the shards have {num_samples} samples and {num_bytes} bytes, the manifest says "
            f"{manifest.num_samples} and {manifest.num_bytes}"
        )
    for generation in manifest.generations:
        mine = entries["num_samples"][entries["generation"] == generation.generation]
        if int(mine.sum(dtype=np.uint64)) != generation.num_samples:
            raise FormatError(
                f"{place}: generation {generation.generation} has other than {generation.num_samples} samples"
            )
