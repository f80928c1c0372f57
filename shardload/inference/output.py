"""The files of a scan's output, as far as one process writes them."""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from collections.abc import Iterable
from concurrent.futures import Future

from shardload.errors import PackError
from shardload.format.manifest import Manifest
from shardload.format.table import ShardEntry
from shardload.inference.behind import Behind
from shardload.inference.journal import NAME, PartJournal, believed, read_parts
from shardload.inference.pieces import Pieces
from shardload.order.spans import Spans
from shardload.writer.batch import BatchEncoder, EncodedBatch
from shardload.writer.failures import named, write_error
from shardload.writer.gathered import Gathered, stored_bytes
from shardload.writer.recipe import Recipe
from shardload.writer.shard import UnitWriter
from shardload.writer.shared import SharedTarget

_TOGETHER_BYTES = 4 << 20
"""Samples are written about so many bytes at a time, of batches that are gathered: each call into a library is one moment at which
a thread may lose the interpreter to those that read."""
_THREADS = 4
_MAX_WAITING, _MAX_WAITING_BYTES = 8, 64 << 20
"""What is gathered and not written, and parts that are brought to the device while further ones of their piece are written: of
each at most so many, and so many bytes beside one. Several at a time, as a device that is waited for has time for others."""


class Output:
    """Parts of the output: written in a thread, brought to the device in others, noted in this process's journal.

    Who gives the samples goes on meanwhile; an error comes with a later call.
    """

    def __init__(self, place: SharedTarget, recipe: Recipe, pieces: Pieces) -> None:
        self.encoder = BatchEncoder(recipe.schema)
        self._place = place
        self._recipe = recipe
        self._pieces = pieces
        self._journal = PartJournal(place.storage, place.work_name(NAME))
        self._writing = Behind(_THREADS, _MAX_WAITING, _MAX_WAITING_BYTES)
        self._behind = Behind(_THREADS, _MAX_WAITING, _MAX_WAITING_BYTES)
        self._gathered = self._new()
        # What was written before, for its memory.
        self._spare: collections.deque[Gathered] = collections.deque()
        self._piece = _Piece(-1)
        self._found_shards = False
        self._parts: dict[int, list[ShardEntry]] = {}
        # The last part that journals tell of, where a crash may have taken some before it.
        self._told: dict[int, int] = {}
        self._lock = threading.Lock()
        # Parts that are on the device before one that comes before them.
        self._early: dict[tuple[int, int], ShardEntry] = {}
        self._noting = False

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
        self._found_shards = bool(self._place.storage.list("shards"))
        mine = range(rank, len(self._pieces), num_replicas)
        self._parts = {piece: believed(self._place.storage, told[piece]) for piece in mine if piece in told}
        self._told = {piece: told[piece][-1].part for piece in self._parts}
        done = {piece: _num_samples(entries) for piece, entries in self._parts.items()}
        return self._pieces.left(num_replicas, rank, done, batch_size)

    def write(self, samples: EncodedBatch, first: int) -> None:
        """Adds samples, which are of one piece and follow those before; they are copied.

        Raises:
            PackError: the storage has failed with these or with earlier ones, or another process writes the piece.
        """
        place, pieces = self._place, self._pieces
        place.check_process()
        piece, num_bytes = first // pieces.piece_samples, stored_bytes(samples)
        last = first + len(samples) == piece * pieces.piece_samples + pieces.size(piece)
        try:
            if piece != self._piece.number:
                place.take_unit(piece)
                self._piece = _Piece(piece)
            if not self._gathered.fits(samples):
                self._hand_over(last=False)
            self._writing.make_room(num_bytes)
            self._gathered.add(samples, num_bytes)
            if last or self._gathered.is_full:
                self._hand_over(last)
        except OSError as error:
            raise write_error(place.root, error) from error

    def publish(self) -> Manifest | None:
        """Publishes the output if all of it is there, or finds it published."""
        place = self._place
        if place.manifest is not None:
            return place.manifest
        with named(place.root):
            self.wait()
            entries = self._complete()
            return place.published() if entries is None else place.publish(self._recipe.description, entries)

    def wait(self) -> None:
        """Waits until all that was given is written, and on the device as far as its parts are finished."""
        self._hand_over(last=False)
        self._writing.wait()
        self._behind.wait()

    def leave(self) -> None:
        """Gives back what this process holds; what is finished stays for whoever goes on."""
        place, worthless = self._place, False
        try:
            # What was given is whole, and is brought to an end, unless something failed: that was told then.
            if place.is_mine:
                with contextlib.suppress(OSError, PackError):
                    self._hand_over(last=False)
            self._writing.close()
            self._behind.close()
            self._piece.abandon()
            self._journal.close()
            worthless = place.manifest is None and not read_parts(place.storage, place.generation)
        finally:
            if worthless:
                place.abandon()
            else:
                place.leave()

    def _hand_over(self, last: bool) -> None:
        """Has what was gathered written.

        Args:
            last: whether it is the end of its piece.
        """
        if len(gathered := self._gathered):
            self._gathered = self._spare.popleft() if self._spare else self._new()
            piece = self._piece
            add = functools.partial(self._add, piece, piece.before, gathered, last)
            piece.before = self._writing(add, gathered.num_bytes)

    def _new(self) -> Gathered:
        wanted = min(_TOGETHER_BYTES, self._recipe.shard_size)
        return Gathered(self._recipe.schema, wanted, self._pieces.piece_samples)

    def _add(self, piece: _Piece, before: Future[None] | None, gathered: Gathered, last: bool) -> None:
        """Writes samples of a piece, in a thread; after those before them, unless they failed."""
        if before is not None:
            before.result()
        try:
            if piece.unit is None:
                piece.unit = self._begin(piece.number)
            piece.unit.add_batch(gathered.joined())
            gathered.clear()
            self._spare.append(gathered)
            if last:
                piece.unit.finish()
        except BaseException:
            piece.abandon()
            raise

    def _begin(self, piece: int) -> UnitWriter:
        first_part = len(self._parts.get(piece, ()))
        self._clear(piece, first_part)
        return UnitWriter(self._place.storage, self._recipe, piece, first_part, self._note, self._behind)

    def _note(self, entry: ShardEntry) -> None:
        """Notes a part that is on the device, after those before it; lets a piece go with its last one.

        Whoever notes does so for those that come meanwhile, too: they wait for the device once.
        """
        with self._lock:
            self._early[entry.unit, entry.part] = entry
            if self._noting:
                return
            self._noting = True
        while ready := self._ready():
            self._journal.add(ready)
            for one in ready:
                parts = self._parts[one.unit]
                parts.append(one)
                if _num_samples(parts) == self._pieces.size(one.unit):
                    self._place.release_unit(one.unit)

    def _ready(self) -> list[ShardEntry]:
        """Returns parts that are on the device with all before them, and are to be noted; if there are none, nobody notes."""
        ready = []
        with self._lock:
            for piece in {piece for piece, _ in self._early}:
                number = len(self._parts.setdefault(piece, []))
                while (entry := self._early.pop((piece, number), None)) is not None:
                    ready.append(entry)
                    number += 1
            self._noting = bool(ready)
        return ready

    def _clear(self, piece: int, first_part: int) -> None:
        """Makes room for parts that a process was cut off while it wrote them, or that a crash has damaged.

        Raises:
            PackError: they are none of those.
        """
        place = self._place
        # Parts are begun in their order: only a crash can have taken one and left what came after it, before this process.
        if not self._found_shards and not place.has_part(piece, first_part):
            return
        last = max(first_part, self._told.get(piece, 0)) + _MAX_WAITING
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


class _Piece:
    """A piece that is being written."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.unit: UnitWriter | None = None
        """Touched by one thread at a time, in the order in which samples are handed over."""
        self.before: Future[None] | None = None
        """What writes the samples that were handed over last."""

    def abandon(self) -> None:
        """Removes the part that is not finished."""
        if self.unit is not None:
            self.unit.abandon()


def _num_samples(entries: Iterable[ShardEntry]) -> int:
    return sum(entry.num_samples for entry in entries)
