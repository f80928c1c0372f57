"""From the bytes of records to the values of their fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.codecs import Codec
from shardload.errors import FormatError
from shardload.format.record import RecordLayout, RecordPlaces, record_lengths
from shardload.reader.located import Located, damaged
from shardload.reader.pieces import inverse
from shardload.reader.strings import ByteStrings

Int64 = NDArray[np.int64]


class RecordValues:
    """Takes records apart, and decompresses what is compressed in them. Safe for several threads."""

    def __init__(self, codec_of: Callable[[int], Codec | None]) -> None:
        """Notes what returns the codec of a shard's generation."""
        self._codec_of = codec_of

    def lengths(
        self, headers: NDArray[np.uint32], samples: Located, records: RecordLayout, places: RecordPlaces
    ) -> tuple[Int64, Int64]:
        """Returns what `record_lengths` does.

        Raises:
            FormatError: lengths and record do not agree; names shard, bytes and sample.
        """
        try:
            return record_lengths(headers, records, places)
        except FormatError as error:
            bad = error.sample_id or 0
            start = int(places.start[bad])
            stop = start + int(places.stored[bad])
            raise damaged(FormatError, samples, bad, error.message, start, stop) from None

    def read(
        self,
        samples: Located,
        records: RecordLayout,
        places: RecordPlaces,
        data: Any,
        offsets: Int64,
        lengths: Int64,
        packed: Int64,
        wanted: Sequence[int],
    ) -> list[ByteStrings]:
        """Returns the values of some fields.

        Args:
            samples: the samples.
            records: the layout of their records.
            places: where those lie in their shards.
            data: a buffer that holds them.
            offsets: first byte of each in it: int64 of shape (samples,).
            lengths: what `lengths` returned first.
            packed: what it returned next.
            wanted: places of the fields among the record's.

        Raises:
            FormatError: a frame is damaged; names shard, bytes and sample.
        """
        starts = np.empty_like(lengths)
        order = list(records.order)
        starts[:, order] = np.cumsum(lengths[:, order], axis=1) - lengths[:, order]
        starts += (offsets + records.header.size)[:, None]
        pieces, which = [data], np.zeros(lengths.shape, dtype=np.int64)
        framed = np.flatnonzero(places.framed)
        generations = samples.table.entries["generation"][samples.shard_ids[framed]]
        if len(framed) and (generations[1:] < generations[:-1]).any():
            # One call for each generation, though samples come in any order.
            framed = framed[np.argsort(generations, kind="stable")]
        if len(framed) and any(place in records.packed for place in wanted):
            begins = (offsets + records.header.size + lengths[:, list(records.plain)].sum(axis=1))[framed]
            ends, sizes = (offsets + places.stored)[framed], packed[framed]
            contents = self._decompressed(samples, places, framed, data, begins, ends, sizes)
            if len(records.fields) == 1 and len(framed) == len(samples):
                return [ByteStrings.of(contents, lengths[framed, 0])[inverse(framed)]]
            pieces += contents
            # Fields lie in the content of their frame as they would in its place.
            columns = framed[:, None], np.array(records.packed)
            which[columns] = np.arange(1, len(pieces))[:, None]
            starts[columns] -= begins[:, None]
        stops = starts + lengths
        return [ByteStrings(pieces, which[:, place], starts[:, place], stops[:, place]) for place in wanted]

    def _decompressed(
        self,
        samples: Located,
        places: RecordPlaces,
        framed: Int64,
        data: Any,
        begins: Int64,
        ends: Int64,
        sizes: Int64,
    ) -> list[bytes]:
        """Returns the contents of frames in `data`; `framed` are the slots of their samples."""
        contents: list[bytes] = []
        for part, codec in self._by_codec(samples[framed]):
            try:
                if codec is None:
                    raise FormatError("the record is a zstd frame, but its generation's codec is none", sample_id=0)
                contents += codec.decompress_many(data, begins[part], ends[part], sizes[part])
            except FormatError as error:
                if error.shard is not None:
                    # Not the record is damaged but the dictionary that it was packed with.
                    raise
                slot = int(framed[part][error.sample_id or 0])
                start = int(places.start[slot])
                stop = start + int(places.stored[slot])
                raise damaged(type(error), samples, slot, error.message, start, stop) from None
        return contents

    def _by_codec(self, samples: Located) -> Iterator[tuple[slice, Codec | None]]:
        """Yields runs of samples with the codec of their generation."""
        generations = samples.table.entries["generation"][samples.shard_ids]
        edges = [0, *(np.flatnonzero(np.diff(generations)) + 1).tolist(), len(samples)]
        for first, last in pairwise(edges):
            yield slice(first, last), self._codec_of(int(samples.shard_ids[first]))
