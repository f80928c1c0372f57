"""What a directory's storage does with the reads and writes of a plan, at their sizes, past the caches of this machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.capacity.demand import REQUEST_BYTES, Kind
from shardload.capacity.streams import Limit, Stream, run_streams
from shardload.errors import StorageError
from shardload.order.permutation import Permutation
from shardload.quantities import format_decimal
from shardload.storage.probe import ALIGNMENT_BYTES, ProbeFile, aligned_buffer, room_of

Int64 = NDArray[np.int64]

DEFAULT_BYTES = 1 << 30
DEFAULT_SECONDS = 30.0

_FREE_PARTS = 10
"""Of what is free, at most this part is written unless asked for."""
_MAX_STREAMS = 8
"""Large reads and writes at once: one for each GPU of a usual machine."""
_MAX_READS = 64
"""Random reads at once. One at a time shows how long a device takes to answer, not what it can do."""
_MAX_UNDER_WAY_BYTES = 256 << 20
_MAX_SAMPLES = 1 << 18
_PIECE_BYTES = 8 << 20
_SYNC_BYTES = 64 << 20
"""Without direct writes, no more than this waits in memory, so that the time limit holds."""
_RESIDENT = 0.01


@dataclass(frozen=True, slots=True)
class Speed:
    """What was reached in one way of reading or writing."""

    kind: Kind
    request_bytes: int
    """Mean bytes of a request; those of a sample for random reads, whatever was read around it."""
    num_requests: int
    num_bytes: int
    seconds: float
    num_at_once: int
    """Requests under way at once."""
    median_seconds: float
    """Of a request."""
    slow_seconds: float
    """Of the slowest in a hundred."""
    from_memory: bool
    """Whether the bytes stayed in this machine's memory, so that its speed was measured."""
    limited_by_processor: bool
    """Whether this process took all the processor time it could get: the storage may be faster."""

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second over all requests."""
        return self.num_bytes / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Requests a second."""
        return self.num_requests / self.seconds


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in a directory."""

    path: str
    file_system: str
    """Its type; empty if not known."""
    free_bytes: int
    """What may still be written there."""
    direct: bool
    """Whether reads and writes went past the page cache."""
    speeds: Mapping[Kind, Speed]
    notes: tuple[str, ...] = ()
    """What to know about the figures, a sentence each."""

    def speed_of(self, kind: Kind) -> Speed | None:
        """Returns what was reached in one way, or None if that was not measured."""
        return self.speeds.get(kind)


def measure(
    directory: str,
    *,
    sample_bytes: float | None = None,
    num_writers: int | None = None,
    max_bytes: int | None = None,
    max_seconds: float = DEFAULT_SECONDS,
    on_phase: Callable[[Kind], None] | None = None,
) -> Measurement:
    """Writes files without a name, reads them in order and, sample by sample, in random order, and lets them go.

    Whatever ends the process, nothing of them stays.

    Args:
        directory: where.
        sample_bytes: size of the random reads; None for none.
        num_writers: most streams that are written at once; never more than 8.
        max_bytes: most that is written; None for 1 GiB or a tenth of what is free, whichever is less.
        max_seconds: most time, all phases together; the request then under way is waited for.
        on_phase: called before each phase.

    Raises:
        StorageError: there is no room, or reading or writing failed.
    """
    # Before this measurement adds to it.
    room, load = room_of(directory), os.getloadavg()[0]
    sample = None if sample_bytes is None else max(1, round(sample_bytes))
    total_bytes = _total_bytes(directory, room.free_bytes, max_bytes)
    # A file for each stream, of which each holds a sample if that can be.
    most = [_MAX_STREAMS, num_writers or _MAX_STREAMS, total_bytes // REQUEST_BYTES, total_bytes // (sample or 1)]
    num_streams = max(1, min(most))
    file_bytes = total_bytes // num_streams // REQUEST_BYTES * REQUEST_BYTES
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(ProbeFile(directory)) for _ in range(num_streams)]
        if not all(file.direct for file in files):
            files = [stack.enter_context(ProbeFile(directory, direct=False)) for _ in range(num_streams)]
        seconds, tell = max_seconds / (2 if sample_bytes is None else 3), on_phase or (lambda kind: None)
        tell("sequential write")
        found = [_write(files, file_bytes, seconds)]
        tell("sequential read")
        found.append(_read_in_order(files, seconds))
        if sample is not None and sample <= min(file.num_bytes for file in files):
            tell("random read")
            found.append(_read_samples(files, sample, seconds))
        speeds = {speed.kind: speed for speed in found}
        notes = _notes(files, file_bytes, speeds, sample, load)
        return Measurement(directory, room.file_system, room.free_bytes, files[0].direct, speeds, notes)


def place_samples(file_bytes: Sequence[int], sample_bytes: int, most: int, seed: int = 0) -> tuple[Int64, Int64]:
    """Returns which samples are read, each once, in random order, as if files were full of them from their first byte on.

    Args:
        file_bytes: size of each file.
        sample_bytes: size of a sample.
        most: samples at most.
        seed: chooses the order.

    Returns:
        The file of each and its first byte: int64 of shape (samples,), both.
    """
    counts = np.array([num_bytes // sample_bytes for num_bytes in file_bytes], dtype=np.int64)
    stops = np.cumsum(counts)
    total = int(stops[-1])
    slots = Permutation(total, seed=seed, epoch=0).sample_ids(np.arange(min(most, total)))
    chosen = np.searchsorted(stops, slots, side="right")
    return chosen, (slots - (stops - counts)[chosen]) * sample_bytes


def cut_files(file_bytes: Sequence[int], num_parts: int) -> list[tuple[int, int, int]]:
    """Returns the parts in which files are read in order: about so many, a whole number of requests each.

    Args:
        file_bytes: size of each file, a multiple of `REQUEST_BYTES`.
        num_parts: parts wanted; a file is at least one, and a part at least one request.

    Returns:
        The file of each part, its first byte and the byte after it.
    """
    parts = []
    for number, num_bytes in enumerate(file_bytes):
        requests = num_bytes // REQUEST_BYTES
        pieces = max(1, min(requests, num_parts // len(file_bytes)))
        edges = [requests * piece // pieces * REQUEST_BYTES for piece in range(pieces + 1)]
        parts += [(number, start, stop) for start, stop in itertools.pairwise(edges)]
    return parts


def is_limited(user_seconds: float, system_seconds: float, seconds: float, num_cores: int) -> bool:
    """Tells whether a process that used so much processor time could hardly have used more."""
    # Python runs one thread at a time, so that its own work fills one core at most.
    return user_seconds >= 0.7 * seconds or user_seconds + system_seconds >= 0.9 * seconds * num_cores


def _total_bytes(directory: str, free_bytes: int, max_bytes: int | None) -> int:
    """Returns how much is written."""
    wanted = max(REQUEST_BYTES, min(DEFAULT_BYTES, free_bytes // _FREE_PARTS)) if max_bytes is None else max_bytes
    if wanted < REQUEST_BYTES:
        raise ValueError(f"max_bytes must be at least {REQUEST_BYTES:,}, not {wanted:,}: one large request")
    if wanted > free_bytes // _FREE_PARTS * (_FREE_PARTS - 1):
        raise StorageError(
            f"{directory}: {format_decimal(free_bytes, 'B')} are free there, too few to write {format_decimal(wanted, 'B')} "
            "and leave some: measure with less, or elsewhere",
            dataset=directory,
        )
    return wanted


def _write(files: Sequence[ProbeFile], file_bytes: int, seconds: float) -> Speed:
    limit = Limit(seconds)

    def fill(number: int, stream: Stream) -> None:
        file, buffer = files[number], aligned_buffer(REQUEST_BYTES)
        buffer.write(np.random.default_rng(number).bytes(REQUEST_BYTES))
        # Storage that compresses or stores equal blocks once would save what is really written.
        stamps = np.frombuffer(buffer, dtype=np.int64)[:: ALIGNMENT_BYTES // 8]
        while file.num_bytes < file_bytes and not (limit.reached() and file.num_bytes):
            stamps += 1
            stream.timed(lambda: file.append(memoryview(buffer)), REQUEST_BYTES)
            if not file.direct and file.num_bytes % _SYNC_BYTES == 0:
                file.sync()
        if not limit.ended:
            file.sync()
            stream.stop = time.perf_counter()

    return _speed("sequential write", len(files), REQUEST_BYTES, fill, limit, lambda: _stays(files))


def _read_in_order(files: Sequence[ProbeFile], seconds: float) -> Speed:
    limit, stays = Limit(seconds), _stays(files)
    parts = cut_files([file.num_bytes for file in files], _MAX_STREAMS)

    def read(number: int, stream: Stream) -> None:
        buffer = memoryview(aligned_buffer(REQUEST_BYTES))
        chosen, first, stop = parts[number]
        file = files[chosen]
        for start in range(first, stop, REQUEST_BYTES):
            stream.timed(lambda start=start: file.read_into(buffer, start), REQUEST_BYTES)  # type: ignore[misc]
            if limit.reached():
                break

    return _speed("sequential read", len(parts), REQUEST_BYTES, read, limit, lambda: stays)


def _read_samples(files: Sequence[ProbeFile], sample_bytes: int, seconds: float) -> Speed:
    limit, stays = Limit(seconds), _stays(files, random=True)
    chosen, starts = place_samples([file.num_bytes for file in files], sample_bytes, _MAX_SAMPLES)
    firsts = starts // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    lengths = -(-(starts + sample_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - firsts
    piece = min(_PIECE_BYTES, int(lengths.max()))
    num_threads = min(_MAX_READS, len(starts), max(1, _MAX_UNDER_WAY_BYTES // piece))

    def read(number: int, stream: Stream) -> None:
        buffer, mine = memoryview(aligned_buffer(piece)), slice(number, None, num_threads)
        for place in zip(chosen[mine].tolist(), firsts[mine].tolist(), lengths[mine].tolist()):
            stream.timed(lambda place=place: _read_range(files, buffer, *place), sample_bytes)  # type: ignore[misc]
            if limit.reached():
                break

    return _speed("random read", num_threads, sample_bytes, read, limit, lambda: stays)


def _read_range(files: Sequence[ProbeFile], buffer: memoryview, number: int, first: int, length: int) -> None:
    for start in range(first, first + length, len(buffer)):
        files[number].read_into(buffer[: min(len(buffer), first + length - start)], start)


def _speed(
    kind: Kind,
    num_threads: int,
    request_bytes: int,
    work: Callable[[int, Stream], None],
    limit: Limit,
    stays: Callable[[], bool],
) -> Speed:
    """Has threads do their requests, each its own, and returns what they reached together."""
    streams = [Stream() for _ in range(num_threads)]
    before = os.times()
    run_streams(streams, work, limit)
    after = os.times()
    seconds = max(1e-9, max(stream.stop for stream in streams) - min(stream.start for stream in streams))
    durations = np.concatenate([stream.seconds for stream in streams])
    used = after.user - before.user, after.system - before.system
    return Speed(
        kind=kind,
        request_bytes=request_bytes,
        num_requests=len(durations),
        num_bytes=sum(stream.num_bytes for stream in streams),
        seconds=seconds,
        num_at_once=num_threads,
        median_seconds=float(np.median(durations)),
        slow_seconds=float(np.quantile(durations, 0.99)),
        from_memory=stays(),
        limited_by_processor=is_limited(*used, seconds, len(os.sched_getaffinity(0))),
    )


def _stays(files: Sequence[ProbeFile], *, random: bool = False) -> bool:
    """Drops files from memory, and tells whether they are there all the same."""
    return max(file.drop(random=random) for file in files) > _RESIDENT


def _notes(
    files: Sequence[ProbeFile], file_bytes: int, speeds: Mapping[Kind, Speed], sample_bytes: int | None, load: float
) -> tuple[str, ...]:
    notes, written = [], sum(file.num_bytes for file in files)
    if any(speed.from_memory for speed in speeds.values()):
        notes.append("the files stay in this machine's memory, whose speed this is; it says nothing about a device")
    elif not files[0].direct:
        notes.append(
            "this file system does not read and write past the page cache; writes were flushed, and the files dropped from "
            "memory before they were read"
        )
    limited = [speed.kind for speed in speeds.values() if speed.limited_by_processor]
    if limited:
        notes.append(
            f"{' and '.join(limited)}: this process, not the storage, was the limit: at least that much is there"
        )
    if load > (cores := len(os.sched_getaffinity(0))):
        notes.append(
            f"this machine was busy with other work (load {load:.1f} on {cores} cores): the storage may be faster"
        )
    if written < file_bytes * len(files):
        notes.append(f"the time was over after {format_decimal(written, 'B')} were written")
    if sample_bytes is not None and "random read" not in speeds:
        notes.append("samples are larger than the files written here: no random reads were measured")
    notes.append(
        f"{format_decimal(written, 'B')} were written by one process on one machine; the demand is that of all together, and "
        "caches behind the file system (of a controller, a hypervisor, a server) cannot be seen from here"
    )
    return tuple(notes)
