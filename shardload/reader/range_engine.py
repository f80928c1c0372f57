"""Shards that are a request away: what is announced is fetched ahead, and what is read is taken from it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.format.external import ExternalFile
from shardload.reader.arrivals import Arrivals, Fetch
from shardload.reader.engines import Ranges
from shardload.reader.extents import Keeper
from shardload.reader.files import NumberedFiles, OpenFiles
from shardload.reader.pieces import pieces_of
from shardload.reader.requests import Place, Span, giving_way
from shardload.telemetry import Transfers

Int64 = NDArray[np.int64]


class RangeEngine:
    """Merged ranges, many at a time, by threads; see `Arrivals`."""

    name = "ranges"
    far = True

    def __init__(self, files: OpenFiles, known: NumberedFiles, keeper: Keeper | None = None) -> None:
        """Describes it.

        Args:
            files: the shards.
            known: what is known of them.
            keeper: what keeps all that is fetched; None for nothing.
        """
        self._known = known
        self._arrivals = arrivals = Arrivals(_fetch_from(files, known), keeper=keeper)
        self._needed_bytes = 0
        weakref.finalize(self, arrivals.close).atexit = False

    def read(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> None:
        """Copies ranges into targets."""
        pieces = pieces_of(ranges.lengths, targets)
        found, taken = self._views(ranges)
        for piece, views in giving_way(zip(pieces, found, strict=True)):
            at = 0
            for view in views:
                piece[at : at + len(view)] = view
                at += len(view)
        self._arrivals.used(taken)

    def read_bytes(self, ranges: Ranges) -> list[bytes]:
        """Returns the bytes of each range."""
        found, taken = self._views(ranges)
        values = [bytes(views[0]) if len(views) == 1 else b"".join(views) for views in found]
        self._arrivals.used(taken)
        return values

    def read_joined(self, ranges: Ranges) -> bytes:
        """Returns the bytes of all ranges."""
        found, taken = self._views(ranges)
        joined = b"".join([view for views in found for view in views])
        self._arrivals.used(taken)
        return joined

    def in_memory(self, ranges: Ranges) -> None:
        """Nothing does in one piece."""

    def will_need(self, ranges: Ranges, urgent: bool = False) -> None:
        """Has ranges fetched as soon as there is room for them; at once if urgent, as who calls is about to read them."""
        some = ranges[ranges.lengths > 0]
        if len(some):
            self._arrivals.announce(some.shard_ids, some.starts, some.lengths, urgent=urgent)

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files beside the shards."""
        return self._known.add(others)

    def discard(self, shard_id: int, start: int, stop: int) -> None:
        """Drops what is there of a range, whose content was found damaged."""
        self._arrivals.discard(shard_id, start, stop)

    def transfers(self) -> Transfers:
        """Returns what was fetched so far."""
        arrivals = self._arrivals
        return Transfers(arrivals.num_requests, arrivals.requested_bytes, self._needed_bytes)

    def _views(self, ranges: Ranges) -> tuple[list[list[memoryview]], list[tuple[Span, int, int]]]:
        columns = ranges.shard_ids.tolist(), ranges.starts.tolist(), (ranges.starts + ranges.lengths).tolist()
        places: list[Place] = list(zip(*columns, strict=True))
        views = self._arrivals.views(places)
        self._needed_bytes += int(ranges.lengths.sum())
        return views


def _fetch_from(files: OpenFiles, known: NumberedFiles) -> Fetch:
    def fetch(number: int, start: int, data: memoryview) -> None:
        files.get(number, known[number]).read_into(data, start)

    return fetch
