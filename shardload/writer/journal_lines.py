"""The lines of a journal: what was brought to the device, so that the rest can be written later.

A line is eight hexadecimal digits of CRC-32, a space, and canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

from shardload.errors import FormatError, StorageError
from shardload.format.schema import canonical_json
from shardload.format.shard import TAIL_READ_BYTES, tail_bytes
from shardload.format.table import ShardEntry
from shardload.storage import Storage, StoredFile

_READ_BYTES = 1 << 20


def encode_line(facts: Any) -> bytes:
    """Returns facts as a line."""
    data = canonical_json(facts)
    return b"%08x %s\n" % (zlib.crc32(data), data)


def decode_line(line: bytes) -> Any | None:
    """Returns the facts in a line, or None if it is torn or damaged."""
    data = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(data) or not line.endswith(b"\n"):
        return None
    return json.loads(data)


def entry_facts(entry: ShardEntry) -> list[Any]:
    """Returns a shard's entry as facts for a line."""
    numbers = [entry.generation, entry.unit, entry.part, entry.num_samples, entry.num_bytes]
    return [*numbers, entry.head_digest.hex(), entry.file_digest.hex(), list(entry.num_items)]


def entry_of(facts: list[Any]) -> ShardEntry:
    """Returns the entry that facts in a line tell of."""
    generation, unit, part, num_samples, num_bytes, head_digest, file_digest, num_items = facts
    digests = bytes.fromhex(head_digest), bytes.fromhex(file_digest)
    return ShardEntry(generation, unit, part, num_samples, num_bytes, *digests, tuple(num_items))


def is_intact(storage: Storage, entry: ShardEntry) -> bool:
    """Tells whether a shard is there with the length and the head that it was finished with.

    Its bytes were on the device before the journal told of it, so that a crash cannot have taken some of them.
    """
    try:
        file = storage.open(entry.name, entry.num_bytes)
        end = file.read(max(0, entry.num_bytes - TAIL_READ_BYTES), entry.num_bytes)
        size = tail_bytes(end, entry.name)
        tail = end[-size:] if size <= len(end) else file.read(max(0, entry.num_bytes - size), entry.num_bytes)
    except (StorageError, FormatError):
        return False
    return hashlib.sha256(tail).digest() == entry.head_digest


def lines_of(file: StoredFile) -> Iterator[bytes]:
    """Yields the lines of a file with their ends; what comes after the last end is left out."""
    rest = b""
    for start in range(0, file.num_bytes, _READ_BYTES):
        rest += file.read(start, min(start + _READ_BYTES, file.num_bytes))
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line + b"\n"
