"""The records of a shard being written, one after the other behind its header."""

from __future__ import annotations

from collections.abc import Sequence

from shardload.format import layout
from shardload.format.checksum import block_sum
from shardload.storage import FileWriter
from shardload.writer.columns import Identity, SumStarts

_JOINED_BYTES = 1 << 16
"""Shorter records are written in one piece with what comes before them."""
_JOINED_RECORDS = 64
"""So many of them, which is enough for what a write costs, are joined."""


class Heap:
    """Records that go to the file at once, each behind its checksum."""

    def __init__(self, writer: FileWriter, identity: Identity) -> None:
        self.stop = layout.HEADER_BYTES
        """Where the last record ends in the file."""
        self._writer = writer
        self._starts = SumStarts(identity, layout.NO_FIELD)

    def stop_after(self, stored_bytes: int) -> int:
        """Returns where a further record would end, given its bytes with the checksum; 0 for no record."""
        if not stored_bytes:
            return self.stop
        return layout.align(self.stop, layout.record_alignment(stored_bytes)) + stored_bytes

    def stops_after(self, stored_bytes: Sequence[int]) -> list[int]:
        """Returns where each of further records would end."""
        stops, stop = [], self.stop
        for stored in stored_bytes:
            alignment = (
                layout.LARGE_RECORD_ALIGNMENT if stored >= layout.LARGE_RECORD_BYTES else layout.RECORD_ALIGNMENT
            )
            stop = -(-stop // alignment) * alignment + stored
            stops.append(stop)
        return stops

    def add(self, record: bytes, local_id: int, outside: Sequence[bytes] = ()) -> tuple[int, int]:
        """Writes a record, given as it is stored after its checksum; returns its place and its bytes.

        Args:
            record: the record.
            local_id: the sample's number in the shard.
            outside: what lies in an external file, over which the checksum goes on.
        """
        stored, before = len(record) + 4, self.stop
        alignment = layout.record_alignment(stored)
        place = -(-before // alignment) * alignment
        total = block_sum(record, self._starts.at(local_id))
        for data in outside:
            total = block_sum(data, total)
        checksum = total.to_bytes(4, "little")
        if stored < _JOINED_BYTES:
            self._writer.write(b"".join((bytes(place - before), checksum, record)))
        else:
            self._writer.write(bytes(place - before) + checksum)
            self._writer.write(record)
        self.stop = place + stored
        return place, stored

    def add_many(self, records: Sequence[bytes], stops: Sequence[int], local_id: int) -> None:
        """Writes records as `add` does, at the places that `stops_after` gave."""
        starts = self._starts.many(local_id, len(records))
        before, pieces = self.stop, []
        for record, stop, start in zip(records, stops, starts, strict=True):
            padding = stop - len(record) - 4 - before
            pieces.append(bytes(padding) + block_sum(record, start).to_bytes(4, "little"))
            pieces.append(record)
            before = stop
        self.stop = before
        large = sum(map(len, records)) >= _JOINED_BYTES * len(records)
        size = 1 if large else 2 * _JOINED_RECORDS
        for first in range(0, len(pieces), size):
            self._writer.write(pieces[first] if large else b"".join(pieces[first : first + size]))
