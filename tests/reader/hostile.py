"""Shards that no writer of ours makes: every checksum is right, and what they say is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import shardload
from shardload.format.checksum import block_sum, identity_sum
from shardload.format.layout import NO_FIELD
from shardload.format.manifest import decode_manifest
from shardload.format.rows import PLACE, RAW, STORED, row_layout
from shardload.format.schema import parse_schema
from shardload.format.shard import encode_header, encode_tail, plan_sections
from shardload.format.table import ShardEntry, make_table
from shardload.writer import encode, values

Place = Callable[[int, int], int]
HEAP_START = 4096


def write_with_places(path: Path, monkeypatch: pytest.MonkeyPatch, num_samples: int, place_of: Place) -> Path:
    """Writes samples of two small fields whose rows point where `place_of(sample, right place)` says."""
    packed = encode.RowPacker.pack
    seen = iter(range(num_samples))

    def pack(self: encode.RowPacker, sample: encode.EncodedSample, place: int, sums: list[int]) -> bytes:
        return packed(self, sample, place_of(next(seen), place), sums)

    with monkeypatch.context() as patch:
        patch.setattr(encode.RowPacker, "pack", pack)
        with shardload.ShardWriter(path, {"a": "bytes", "b": "bytes"}) as writer:
            for _ in range(num_samples):
                writer.write({"a": b"x", "b": b"y"})
    return path


def write_raw(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: list[bytes]) -> Path:
    """Writes bytes as they are into the field `value` of a kind that would refuse them, and `number`."""
    with monkeypatch.context() as patch:
        patch.setitem(values._RECORD_ENCODERS, kind, lambda value: value)
        with shardload.ShardWriter(path, {"value": f"{kind}?", "number": "int64"}) as writer:
            for number, item in enumerate(data):
                writer.write({"value": item, "number": number})
    return path


def write_overlapping(path: Path, num_samples: int, heap_bytes: int, step: int = 64) -> Path:
    """Writes a dataset by hand: each record begins inside the one before it and goes on to the end of the heap."""
    with shardload.ShardWriter(path, {"data": "bytes"}) as writer:
        writer.write({"data": b"x"})
    schema = parse_schema({"data": "bytes"})
    heap, layout_ = bytearray(heap_bytes), row_layout(schema)
    rows = np.zeros(num_samples, dtype=layout_.dtype)
    # From the last to the first: a record's sum covers all the records inside it.
    for i in range(num_samples - 1, -1, -1):
        at, size = i * step, heap_bytes - i * step
        heap[at + 4 : at + 8] = (size - 8).to_bytes(4, "little")
        heap[at : at + 4] = block_sum(bytes(heap[at + 4 :]), identity_sum(1, 0, 0, NO_FIELD, i)).to_bytes(4, "little")
        rows[i][PLACE], rows[i][STORED], rows[i][RAW] = HEAP_START + at, size, size
    _replace_shard(path, schema, bytes(heap), rows.tobytes(), num_samples)
    return path


def _replace_shard(path: Path, schema: Any, heap: bytes, rows: bytes, num_samples: int) -> None:
    """Puts a shard of given heap and rows, with all digests right, in the place of a dataset's only one."""
    layout_, header = row_layout(schema), encode_header(schema, 1, 0, 0)
    bounds = [layout_.page_bounds(page, num_samples) for page in range(layout_.num_pages(num_samples))]
    pages = b"".join(hashlib.sha256(rows[start:stop]).digest() for start, stop in bounds)
    sections = plan_sections(schema, num_samples, len(heap))
    sections[-1] = replace(sections[-1], digest=hashlib.sha256(pages).digest())
    shard = bytearray(header)
    for section, content in zip(sections, (heap, rows, pages), strict=True):
        shard += bytes(section.start - len(shard)) + content
    shard += bytes(-len(shard) % 64)
    tail = encode_tail(sections, num_samples, header)
    shard += tail
    next((path / "shards").iterdir()).write_bytes(shard)
    digests = hashlib.sha256(tail).digest(), hashlib.sha256(shard).digest()
    table = make_table([ShardEntry(1, 0, 0, num_samples, len(shard), *digests)]).encode()
    name = hashlib.sha256(table).hexdigest()
    (path / "tables" / name).write_bytes(table)
    manifest = decode_manifest((path / "manifest.json").read_bytes(), "manifest.json")
    generation = msgspec.structs.replace(manifest.generations[0], num_samples=num_samples)
    manifest = msgspec.structs.replace(
        manifest, num_samples=num_samples, num_bytes=len(shard), table=name, generations=[generation]
    )
    for target in (path / "manifest.json", path / "manifests" / "1"):
        target.write_bytes(manifest.encode())
