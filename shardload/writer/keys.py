"""That no key stands in two shards, found in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.keys import KEY_ENTRY
from shardload.format.schema import Schema
from shardload.format.shard import TAIL_READ_BYTES, parse_tail, tail_bytes
from shardload.format.table import ShardEntry
from shardload.storage import Storage


class DuplicateKeyError(PackError):
    """A sample's key is that of another one; the sample was not added."""


def check_new(keys: Iterable[bytes], field: str, first: int, place_of: Callable[[bytes], str]) -> None:
    """Checks the keys of samples that are to be added together.

    Args:
        keys: their digests.
        field: name of the key field.
        first: number of the first sample.
        place_of: returns which sample added before has a key, or nothing.

    Raises:
        DuplicateKeyError: a sample has the key of one before it.
    """
    own: dict[bytes, int] = {}
    for number, key in enumerate(keys, first):
        same = own.setdefault(key, number)
        place = f"sample {same}" if same != number else place_of(key)
        if place:
            raise DuplicateKeyError(f"sample {number}: its key (field {field!r}) is that of {place}")


RANGE_KEYS = 1 << 22
"""Keys that are compared at once, about: 100 MB."""


class _Cursor:
    """The sorted keys of one shard, taken from the front."""

    def __init__(self, storage: Storage, entry: ShardEntry, schema: Schema) -> None:
        self._storage = storage
        self._entry = entry
        file = storage.open(entry.name, entry.num_bytes)
        end = file.read(max(0, entry.num_bytes - TAIL_READ_BYTES), entry.num_bytes)
        size = tail_bytes(end, entry.name)
        tail = end[-size:] if size <= len(end) else file.read(entry.num_bytes - size, entry.num_bytes)
        number = schema.number(schema.key)
        sections, _ = parse_tail(tail)
        section = next(s for s in sections if (s.kind, s.field) == (layout.SECTION_KEYS, number))
        self._at, self._stop = section.start, section.stop

    def take_below(self, bound: int, expected: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Returns the keys whose first 64 bits are below a bound, in chunks of about as many as are expected."""
        taken = [np.empty(0, dtype=KEY_ENTRY)]
        file = None
        while self._at < self._stop:
            file = file or self._storage.open(self._entry.name, self._entry.num_bytes)
            stop = min(self._stop, self._at + (expected + 64) * KEY_ENTRY.itemsize)
            chunk = np.frombuffer(file.read(self._at, stop), dtype=KEY_ENTRY)
            below = chunk[chunk["high"].astype(np.uint64) <= np.uint64(bound - 1)]
            taken.append(below)
            self._at += len(below) * KEY_ENTRY.itemsize
            if len(below) < len(chunk):
                break
        return np.concatenate(taken)


def check_keys(storage: Storage, entries: Sequence[ShardEntry], schema: Schema) -> None:
    """Checks that no two samples of the shards have the same key. Within a shard the writer has seen to it.

    Digests are spread evenly, so ranges of them hold about equally many keys: each shard's section is read once, front
    to back, a range at a time.

    Raises:
        PackError: two have; names both.
    """
    if len(entries) < 2:
        return
    num_keys = sum(entry.num_samples for entry in entries)
    num_ranges = -(-num_keys // RANGE_KEYS)
    cursors = [_Cursor(storage, entry, schema) for entry in entries]
    for number in range(1, num_ranges + 1):
        bound = (1 << 64) * number // num_ranges
        parts = [
            cursor.take_below(bound, entry.num_samples // num_ranges)
            for cursor, entry in zip(cursors, entries, strict=True)
        ]
        keys = np.concatenate(parts)
        shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        high, low = keys["high"].astype(np.uint64), keys["low"].astype(np.uint64)
        order = np.lexsort((shards, low, high))
        same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        if same.any():
            first, second = order[int(np.argmax(same))], order[int(np.argmax(same)) + 1]
            places = [f"sample {keys['local_id'][i]} of {entries[shards[i]].name}" for i in (int(first), int(second))]
            raise PackError(
                f"{storage.root}: {places[1]} has the same key (field {schema.key!r}) as {places[0]}: keys must differ; "
                "nothing was published",
                dataset=storage.root,
            )
