"""The files of a scan's output, as far as one process writes them."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from shardload.errors import PackError
from shardload.format.manifest import Manifest
from shardload.format.table import ShardEntry
from shardload.inference.journal import NAME, PartJournal, believed, read_parts
from shardload.inference.pieces import Pieces
from shardload.order.spans import Spans
from shardload.writer.batch import BatchEncoder, EncodedBatch
from shardload.writer.failures import named, write_error
from shardload.writer.recipe import Recipe
from shardload.writer.shard import UnitWriter
from shardload.writer.shared import SharedTarget

_THREADS = 4
_MAX_BEHIND = 8
_MAX_BEHIND_BYTES = 64 << 20
"""Parts that are brought to the device while further ones are written: at most so many, and so many bytes beside one. Several
at a time, as a device that is waited for has time for others."""


class Output:
    """Parts of the output: written here, brought to the device in a thread, noted in this process's journal."""

    def __init__(self, place: SharedTarget, recipe: Recipe, pieces: Pieces) -> None:
        self.encoder = BatchEncoder(recipe.schema)
        self._place = place
        self._recipe = recipe
        self._pieces = pieces
        self._journal = PartJournal(place.storage, place.work_name(NAME))
        self._behind = _Behind()
        self._parts: dict[int, list[ShardEntry]] = {}
        # The last part that journals tell of, where a crash may have taken some before it.
        self._told: dict[int, int] = {}
        self._unit: UnitWriter | None = None
        self._piece = -1
        self._lock = threading.Lock()
        # Parts that are on the device before one that comes before them.
        self._early: dict[tuple[int, int], ShardEntry] = {}

    @property
    def is_published(self) -> bool:
        """Whether there is nothing left to do for anybody."""
        return self._place.manifest is not None

    @property
    def has_parts(self) -> bool:
        """Whether anything of this process's is finished that a later call goes on after."""
        return bool(self._parts or self._journal.entries) and not self.is_published

    def left(self, num_replicas: int, rank: int, batch_size: int) -> Spans:
        """Returns what a rank has to do."""
        told = read_parts(self._place.storage, self._place.generation)
        # The record of the job goes before the journals do: while it is there, all of them were read.
        if self.is_published or self._place.finds_published():
            return Spans((), batch_size)
        mine = range(rank, len(self._pieces), num_replicas)
        self._parts = {piece: believed(self._place.storage, told[piece]) for piece in mine if piece in told}
        self._told = {piece: told[piece][-1].part for piece in self._parts}
        done = {piece: _num_samples(entries) for piece, entries in self._parts.items()}
        return self._pieces.left(num_replicas, rank, done, batch_size)

    def write(self, samples: EncodedBatch, first: int) -> None:
        """Adds samples, which are of one piece and follow those before."""
        self._place.check_process()
        piece = first // self._pieces.piece_samples
        try:
            unit = self._unit if piece == self._piece and self._unit is not None else self._begin(piece)
            unit.add_batch(samples)
            if first + len(samples) == piece * self._pieces.piece_samples + self._pieces.size(piece):
                unit.finish()
                self._unit = None
        except OSError as error:
            raise write_error(self._place.root, error) from error

    def publish(self) -> Manifest | None:
        """Publishes the output if all of it is there, or finds it published."""
        place = self._place
        if place.manifest is not None:
            return place.manifest
        with named(place.root):
            self._behind.wait()
            entries = self._complete()
            return place.published() if entries is None else place.publish(self._recipe.description, entries)

    def leave(self) -> None:
        """Gives back what this process holds; what is finished stays for whoever goes on."""
        place, unit, self._unit = self._place, self._unit, None
        worthless = False
        try:
            # What waits is whole, and is brought to an end.
            self._behind.close()
            if unit is not None:
                unit.abandon()
            self._journal.close()
            worthless = place.manifest is None and not read_parts(place.storage, place.generation)
        finally:
            if worthless:
                place.abandon()
            else:
                place.leave()

    def _begin(self, piece: int) -> UnitWriter:
        place = self._place
        place.take_unit(piece)
        first_part = len(self._parts.get(piece, ()))
        self._clear(piece, first_part)
        self._piece = piece
        self._unit = UnitWriter(place.storage, self._recipe, piece, first_part, self._note, self._behind)
        return self._unit

    def _note(self, entry: ShardEntry) -> None:
        """Notes a part that is on the device, after those before it; lets a piece go with its last one."""
        with self._lock:
            parts, piece = self._parts.setdefault(entry.unit, []), entry.unit
            self._early[piece, entry.part] = entry
            while (ready := self._early.pop((piece, len(parts)), None)) is not None:
                self._journal.add(ready)
                parts.append(ready)
            if _num_samples(parts) == self._pieces.size(piece):
                self._place.release_unit(piece)

    def _clear(self, piece: int, first_part: int) -> None:
        """Makes room for parts that a process was cut off while it wrote them, or that a crash has damaged.

        Raises:
            PackError: they are none of those.
        """
        place = self._place
        last = max(first_part, self._told.get(piece, 0)) + _MAX_BEHIND
        found = [part for part in range(first_part, last + 2) if place.has_part(piece, part)]
        if not found:
            return
        told = read_parts(place.storage, place.generation).get(piece, [])
        if not place.has_job or len(believed(place.storage, told)) > first_part:
            raise PackError(
                f"{place.root}: another process has written the results of samples from {piece * place.unit_samples} on: is a "
                "rank running twice?",
                dataset=place.root,
            )
        for part in found:
            place.clear_part(piece, part)

    def _complete(self) -> list[ShardEntry] | None:
        """Returns all parts, or None if some are missing."""
        storage = self._place.storage
        told, own = read_parts(storage, self._place.generation), self._journal.entries
        if any(_num_samples(told.get(piece, ())) < self._pieces.size(piece) for piece in range(len(self._pieces))):
            return None
        everything: list[ShardEntry] = []
        known = frozenset(own)
        for piece in range(len(self._pieces)):
            entries = believed(storage, told[piece], known)
            if _num_samples(entries) != self._pieces.size(piece):
                return None
            everything += entries
        return everything


def _num_samples(entries: Iterable[ShardEntry]) -> int:
    return sum(entry.num_samples for entry in entries)


class _Behind:
    """Calls functions in threads, and keeps who gives them waiting while too much waits."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shardload-write")
        self._waiting: collections.deque[tuple[Future[None], int]] = collections.deque()
        self._num_bytes = 0

    def __call__(self, function: Callable[[], None], num_bytes: int) -> None:
        """Has a function called, for which so many bytes are kept; raises what an earlier one has raised."""
        while len(self._waiting) >= _MAX_BEHIND or (self._waiting and self._num_bytes + num_bytes > _MAX_BEHIND_BYTES):
            self._wait_for_first()
        self._waiting.append((self._threads.submit(function), num_bytes))
        self._num_bytes += num_bytes

    def wait(self) -> None:
        """Waits for all; raises what one of them has raised."""
        while self._waiting:
            self._wait_for_first()

    def close(self) -> None:
        """Waits for all, and ends the threads."""
        self._threads.shutdown()

    def _wait_for_first(self) -> None:
        future, num_bytes = self._waiting.popleft()
        self._num_bytes -= num_bytes
        future.result()
