"""The shard table: what a dataset's shards are (FORMAT.md section 4)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.manifest import Manifest
from shardload.format.spans import Spans

_HEADER = struct.Struct("<8sIIQQ")
_COLUMNS = [
    ("generation", "<u4"),
    ("unit", "<u4"),
    ("part", "<u4"),
    ("num_samples", "<u4"),
    ("num_bytes", "<u8"),
    ("head_digest", "V32"),
    ("file_digest", "V32"),
]


def _entry_dtype(num_streams: int) -> np.dtype[Any]:
    return np.dtype([*_COLUMNS, ("num_items", "<u8", (num_streams,))])


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
    num_items: tuple[int, ...] = ()
    """Items of each stream field of its generation."""

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
        generation, unit, part, num_samples, num_bytes, head_digest, file_digest, num_items = entry.item()
        digests = bytes(head_digest), bytes(file_digest)
        return ShardEntry(generation, unit, part, num_samples, num_bytes, *digests, tuple(num_items.tolist()))

    def __iter__(self) -> Iterator[ShardEntry]:
        return (self[shard_id] for shard_id in range(len(self)))

    @cached_property
    def first_sample_ids(self) -> NDArray[np.int64]:
        """The sample id at which each shard starts, and the total at the end: int64 of shape (shards + 1,)."""
        starts = np.zeros(len(self.entries) + 1, dtype=np.int64)
        np.cumsum(self.entries["num_samples"], out=starts[1:])
        return starts

    @cached_property
    def spans(self) -> Spans:
        """Tells in which shards samples are."""
        return Spans(self.first_sample_ids)

    def encode(self) -> bytes:
        """Returns the bytes of the table's file; its name is their SHA-256."""
        header = _HEADER.pack(
            layout.TABLE_MAGIC, layout.FORMAT_NUMBER, self.entries.dtype.itemsize, len(self.entries), 0
        )
        return header + self.entries.tobytes()


def make_table(entries: Sequence[ShardEntry], num_streams: int = 0) -> ShardTable:
    """Returns the table of the given shards, sorted by (generation, unit, part).

    Args:
        entries: the shards.
        num_streams: stream fields of the dataset's schema; a shard of an earlier generation may have fewer.
    """
    rows = np.zeros(len(entries), dtype=_entry_dtype(num_streams))
    for row, entry in zip(rows, sorted(entries), strict=True):
        row["generation"], row["unit"], row["part"] = entry.generation, entry.unit, entry.part
        row["num_samples"], row["num_bytes"] = entry.num_samples, entry.num_bytes
        row["num_items"][: len(entry.num_items)] = entry.num_items
        row["head_digest"] = np.void(entry.head_digest)
        row["file_digest"] = np.void(entry.file_digest)
    return ShardTable(rows)


def table_name(digest: str) -> str:
    """Returns the path of a shard table inside its dataset."""
    return f"tables/{digest}"


def table_bytes(manifest: Manifest) -> int:
    """Returns the length of the file of a dataset's table."""
    return int(_HEADER.size + manifest.num_shards * _entry_dtype(len(manifest.parsed_schema.stream_fields)).itemsize)


def decode_table(data: bytes, manifest: Manifest, place: str) -> ShardTable:
    """Returns the table in `data`, checked against its manifest.

    Raises:
        ChecksumError: the bytes do not have the digest the manifest gives.
        FormatError: the table breaks a rule of the format or contradicts the manifest.
    """
    if hashlib.sha256(data).hexdigest() != manifest.table:
        raise ChecksumError(f"{place}: the shard table is damaged: its SHA-256 is not the one in the manifest")
    if len(data) != table_bytes(manifest):
        raise FormatError(f"{place}: {len(data)} bytes are no table of {manifest.num_shards} shards")
    dtype = _entry_dtype(len(manifest.parsed_schema.stream_fields))
    header = (layout.TABLE_MAGIC, layout.FORMAT_NUMBER, dtype.itemsize, manifest.num_shards, 0)
    if _HEADER.unpack_from(data) != header:
        raise FormatError(f"{place}: not a shard table of version {layout.FORMAT_VERSION} of the format")
    table = ShardTable(np.frombuffer(data, dtype=dtype, offset=_HEADER.size))
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
    # No sum can wrap: there are 2^26 shards of 2^32 samples, and of 2^48 bytes, whose halves are added up apart.
    num_samples = int(entries["num_samples"].sum(dtype=np.uint64))
    high, low = entries["num_bytes"] >> np.uint64(24), entries["num_bytes"] & np.uint64((1 << 24) - 1)
    num_bytes = (int(high.sum(dtype=np.uint64)) << 24) + int(low.sum(dtype=np.uint64))
    if (num_samples, num_bytes) != (manifest.num_samples, manifest.num_bytes):
        raise FormatError(
            f"{place}: the shards have {num_samples} samples and {num_bytes} bytes, the manifest says "
            f"{manifest.num_samples} and {manifest.num_bytes}"
        )
    if not np.isin(entries["generation"], [generation.generation for generation in manifest.generations]).all():
        raise FormatError(f"{place}: a shard is of a generation that the manifest does not name")
    for generation in manifest.generations:
        mine = entries["num_samples"][entries["generation"] == generation.generation]
        if int(mine.sum(dtype=np.uint64)) != generation.num_samples:
            raise FormatError(
                f"{place}: generation {generation.generation} has other than {generation.num_samples} samples"
            )
