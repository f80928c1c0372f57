"""Do the ranks agree, and did they together train on what the order says? Only on request: each check is one collective."""

from __future__ import annotations

import collections
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardload.errors import StateMismatchError
from shardload.loader.progress import Progress
from shardload.loader.ranks import Ranks
from shardload.order.cursor import Partition
from shardload.order.units import UnitPartition

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Int64 = NDArray[np.int64]

KEPT_BATCHES = 64
"""Batches whose samples wait to be summed up."""
_CHUNK_POSITIONS = 1 << 20


class Delivered:
    """How many samples went to the training loop, and a sum over them that does not depend on their order.

    Adding a batch only keeps it: the training loop, which does that, waits for nothing. Whoever makes batches sums up by `fold`
    what has come together meanwhile.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0
        self._replaced = 0
        self._waiting: list[Int64] = []
        self._process_id = os.getpid()
        self._folding = threading.Lock()

    def add(self, sample_ids: Int64) -> None:
        """Adds the samples of a batch; the array is kept for a while and must not change."""
        self._waiting.append(sample_ids)

    def fold(self, least: int = KEPT_BATCHES) -> None:
        """Sums up what was added, if it is so many batches: together that costs a tenth of doing it batch by batch."""
        if len(self._waiting) < least:
            return
        if self._process_id != os.getpid():
            # Whoever was summing up when this process was forked is not here to give the lock back.
            self._process_id, self._folding = os.getpid(), threading.Lock()
        with self._folding:
            # Others may be added meanwhile. They wait until they are in the sum: a fork or an error in between loses none.
            num_batches = len(self._waiting)
            ids = np.concatenate([np.empty(0, np.int64), *self._waiting[:num_batches]])
            count, total = self._count + len(ids), (self._sum + mixed_sum(ids)) % (1 << 64)
            self._count, self._sum = count, total
            del self._waiting[:num_batches]

    def replace(self, sample_ids: Sequence[int], stand_ins: Sequence[int]) -> None:
        """Notes samples that were added and had others in their place, one for one."""
        given, missed = (np.array(ids, dtype=np.int64) for ids in (stand_ins, sample_ids))
        self._replaced += mixed_sum(missed) - mixed_sum(given)

    def retold(self, batches: Iterable[ArrayLike]) -> Delivered:
        """Returns these batches as the training loop tells them: -1 for fillers, and stand-ins by their own ids."""
        told = Delivered()
        told._sum = self._replaced % (1 << 64)
        for ids in batches:
            known = np.asarray(ids, dtype=np.int64)
            told.add(known[known >= 0])
            told.fold()
        return told

    def totals(self) -> tuple[int, int]:
        """Returns the number of samples and their sum modulo 2^64."""
        self.fold(0)
        with self._folding:
            return self._count, self._sum

    def __getstate__(self) -> tuple[tuple[int, int], int]:
        return self.totals(), self._replaced

    def __setstate__(self, state: tuple[tuple[int, int], int]) -> None:
        # A lock cannot be copied.
        Delivered.__init__(self)
        (self._count, self._sum), self._replaced = state


def mixed_sum(sample_ids: Int64) -> int:
    """Returns the sum modulo 2^64 of a mixing function of the ids (the finaliser of SplitMix64, Steele, Lea, Flood 2014)."""
    z = sample_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class _Report:
    """What one process tells the others."""

    rank: int
    shared: dict[str, Any]
    """What must be equal everywhere."""
    delivered: tuple[int, int] = (0, 0)
    expected: tuple[int, int] = (0, 0)
    """Count and sum of this process's part of what the order says for all ranks."""


def check_ranks(progress: Progress, partition: Partition, ranks: Ranks, group: ProcessGroup | None) -> None:
    """Compares what all processes of a group were told; one collective.

    Args:
        progress: order and place of this process.
        partition: how it is split.
        ranks: this process among the replicas.
        group: the replicas, or with a mesh all its processes; None for the default group, or this process alone.

    Raises:
        StateMismatchError: they disagree; all processes raise it, with the same words.
    """
    reports = _gather(_Report(_known(ranks), _shared(progress, partition)), group)
    _compare(reports, ranks)


def audit_ids(
    delivered: Delivered, progress: Progress, partition: Partition, ranks: Ranks, group: ProcessGroup | None
) -> None:
    """Compares what all processes trained on, since the epoch was entered, with what the order says; one collective.

    Args:
        delivered: what this process trained on, without fillers.
        progress: order and place of this process.
        partition: how it is split.
        ranks: this process among the replicas.
        group: as for `check_ranks`.

    Raises:
        StateMismatchError: something else was trained on; says what it looks like. All processes raise it.
    """
    size, number = _place_in(group)
    part = _expected(progress, partition, number, size)
    reports = _gather(_Report(_known(ranks), _shared(progress, partition), delivered.totals(), part), group)
    num_copies = _compare(reports, ranks)
    expected = _total(report.expected for report in reports)
    found = _total(report.delivered for report in reports)
    wanted = (expected[0] * num_copies, expected[1] * num_copies % (1 << 64))
    if found != wanted:
        raise StateMismatchError(
            f"the order has {wanted[0]:,} samples for all ranks since epoch {progress.entered.epoch} was entered, but what was "
            f"trained on is something else ({found[0]:,} samples): {_cause(reports, expected[0], found[0], num_copies)}"
        )


def _shared(progress: Progress, partition: Partition) -> dict[str, Any]:
    facts = {**asdict(progress.key), **partition.facts, "seed in force": progress.seed}
    facts["weights of the mixture"] = progress.segment
    return facts | {"epoch": progress.place.epoch, "position": progress.place.position}


def _known(ranks: Ranks) -> int:
    if ranks.rank is None:
        raise ValueError("num_replicas was given without rank: this process reads nothing, and cannot be checked")
    return ranks.rank


def _place_in(group: ProcessGroup | None) -> tuple[int, int]:
    """Returns the size of a group and this process's number in it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1, 0
    return distributed.get_world_size(group), distributed.get_rank(group)


def _gather(report: _Report, group: ProcessGroup | None) -> list[_Report]:
    size, _ = _place_in(group)
    if size == 1:
        return [report]
    from torch import distributed

    reports: list[Any] = [None] * size
    distributed.all_gather_object(reports, report, group=group)
    return reports


def _compare(reports: Sequence[_Report], ranks: Ranks) -> int:
    """Refuses ranks that disagree; returns how many processes read the same."""
    num_replicas, first = ranks.num_replicas, reports[0]
    for number, report in enumerate(reports):
        for name, value in first.shared.items():
            if report.shared.get(name) != value:
                raise StateMismatchError(
                    f"the processes disagree on {name}: process 0 of the group has {value!r:.80}, process {number} "
                    f"{report.shared.get(name)!r:.80}"
                )
    if len(reports) not in (num_replicas, num_replicas * ranks.num_copies):
        raise StateMismatchError(
            f"the loaders share the order among {num_replicas} replicas, but the group has {len(reports)} processes: "
            + (
                "were the ranks of one node (LOCAL_RANK) taken for those of all?"
                if len(reports) > num_replicas
                else "are all of them in it?"
            )
            + " Give the data-parallel group, or make the loaders with mesh= and mesh_dims="
        )
    num_copies = len(reports) // num_replicas
    counts = collections.Counter(report.rank for report in reports)
    for rank in range(num_replicas):
        if counts[rank] != num_copies:
            numbers = [number for number, report in enumerate(reports) if report.rank == rank]
            raise StateMismatchError(
                f"rank {rank} of {num_replicas} is there {counts[rank]} times instead of {num_copies} (processes {numbers} of the "
                f"group; their ranks are {[report.rank for report in reports]}): was a local rank taken for the global one?"
            )
    return num_copies


def _expected(progress: Progress, partition: Partition, number: int, size: int) -> tuple[int, int]:
    """Returns count and sum of one of `size` parts of the samples that all ranks together should have had."""
    start, stop = progress.entered.position, progress.place.position
    split = progress.in_epoch(partition, progress.entered.epoch)
    if isinstance(split, UnitPartition):
        parts = [ids for i, ids in enumerate(split.delivered(start, stop)) if i % size == number]
        return sum(map(len, parts)), sum(map(mixed_sum, parts)) % (1 << 64)
    order = progress.order(progress.entered.epoch)
    begin, end = (start + (stop - start) * i // size for i in (number, number + 1))
    total = 0
    for first in range(begin, end, _CHUNK_POSITIONS):
        total += mixed_sum(order(np.arange(first, min(first + _CHUNK_POSITIONS, end), dtype=np.int64)))
    repeated = _repeated(partition, start, stop) if number == 0 else np.empty(0, np.int64)
    if len(repeated):
        total += mixed_sum(order(repeated))
    left_out = _left_out(partition, start, stop) if number == 0 else np.empty(0, np.int64)
    if len(left_out):
        total -= mixed_sum(order(left_out))
    return end - begin + len(repeated) - len(left_out), total % (1 << 64)


def _repeated(partition: Partition, start: int, stop: int) -> Int64:
    """Returns the positions that `pad` repeats at the end of an epoch."""
    rest = (partition.num_samples - start) % partition.num_replicas
    if partition.tail != "pad" or stop < partition.num_samples or rest == 0:
        return np.empty(0, np.int64)
    return np.arange(partition.num_replicas - rest, dtype=np.int64) % partition.num_samples


def _left_out(partition: Partition, start: int, stop: int) -> Int64:
    """Returns the positions that `drop` leaves out at the end of an epoch."""
    num_dropped = (partition.num_samples - start) % partition.global_batch
    if partition.tail != "drop" or stop < partition.num_samples:
        return np.empty(0, np.int64)
    return np.arange(partition.num_samples - num_dropped, partition.num_samples, dtype=np.int64)


def _total(pairs: Any) -> tuple[int, int]:
    counts, sums = zip(*pairs, strict=True)
    return sum(counts), sum(sums) % (1 << 64)


def _cause(reports: Sequence[_Report], expected: int, found: int, num_copies: int) -> str:
    """Says what a wrong total looks like."""
    num_replicas = len(reports) // num_copies
    by_totals: dict[tuple[int, int], set[int]] = {}
    for report in reports:
        if report.delivered[0]:
            by_totals.setdefault(report.delivered, set()).add(report.rank)
    same = next((sorted(ranks) for ranks in by_totals.values() if len(ranks) > 1), None)
    if num_replicas > 1 and all(report.delivered[0] == expected for report in reports):
        return "every rank had all of them, so nothing has split them over the ranks"
    if same is not None:
        return f"ranks {same} had the same ones"
    counts, wanted = [report.delivered[0] for report in reports], expected * num_copies
    # Whole batches are split, so that few of them come out uneven.
    if num_replicas > 1 and min(counts) and found <= 1.5 * wanted / num_replicas:
        return f"every rank had about 1/{num_replicas} of its part, so something has split each part over the ranks a second time"
    if found == wanted:
        return f"the numbers are right and the samples are not: {counts} by process"
    kind = "some are missing" if found < wanted else "some came more than once"
    return f"{kind}; by process {counts}"
