"""Records as they are stored: joined, and compressed where that makes them shorter."""

from __future__ import annotations

import time

from shardload.codecs import Codec
from shardload.writer.batch import EncodedBatch
from shardload.writer.encode import EncodedSample


class RecordPacker:
    """Compresses what is to be compressed of a record."""

    def __init__(self, codec: Codec | None) -> None:
        self._codec = codec
        self.seconds = 0.0
        """Time that compression has taken."""

    def pack(self, sample: EncodedSample) -> tuple[bytes, bool]:
        """Returns the record after its checksum, and whether its compressed fields are a frame."""
        return self._packed(sample.header + sample.plain, sample.packed)

    def pack_batch(self, batch: EncodedBatch) -> tuple[list[bytes], list[bool]]:
        """Returns the same of many samples; nothing if they have no records."""
        if not batch.values:
            return [], []
        plain, packed = batch.plain_values, batch.packed_values
        if not packed or self._codec is None:
            records = list(map(b"".join, zip(batch.headers(), *plain, *packed, strict=True)))
            return records, [False] * len(records)
        before = map(b"".join, zip(batch.headers(), *plain, strict=True))
        values = packed[0] if len(packed) == 1 else map(b"".join, zip(*packed, strict=True))
        pairs = [self._packed(head, value) for head, value in zip(before, values, strict=True)]
        return [record for record, _ in pairs], [framed for _, framed in pairs]

    def _packed(self, before: bytes, packed: bytes) -> tuple[bytes, bool]:
        if not packed or self._codec is None:
            return before + packed, False
        started = time.perf_counter()
        frame = self._codec.compress(packed)
        self.seconds += time.perf_counter() - started
        return (before + frame, True) if len(frame) < len(packed) else (before + packed, False)
