"""What stands in the place of a sample that cannot be read, decoded or transformed.

The place stays taken, so that the order, states and the number of batches of each rank are what they are without faults.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch

from shardload.errors import FormatError, LoaderClosedError, StorageError
from shardload.order.sample_ids import SampleIds
from shardload.storage import UnavailableError

OnError = Literal["raise", "substitute", "mask"]

READ_FAULTS = (FormatError, StorageError)
"""What reading and decoding raise of bytes that are damaged or cannot be had; anything else is no matter of a sample."""

Candidates = Callable[[int, int, int, int], list[int]]
"""Seed, epoch, sample id, how many -> other samples, to be tried in turn."""

_T = TypeVar("_T")
_TRIES = 8
"""Stand-ins tried for a sample: with one sample in twenty bad, all fail once in 2e10 faults; with all bad, at once."""
_NOT_OF_A_SAMPLE = (MemoryError, torch.cuda.OutOfMemoryError, LoaderClosedError, UnavailableError)
"""What ends the run whoever raises it: the next sample would fare no better."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A sample that could not be used, and the one in its place."""

    slot: int
    """Its place in the batch."""
    sample_id: int
    """Itself."""
    epoch: int
    """Its epoch."""
    stand_in: int
    """The sample whose data the batch holds at that place."""
    cause: str
    """Why, in one line."""


def check_policy(on_error: str, max_faults: int | None) -> OnError:
    """Returns the policy.

    Raises:
        ValueError: there is none of that name, or a limit for faults that already end the run.
    """
    if on_error not in typing.get_args(OnError):
        raise ValueError(f"on_error must be 'raise', 'substitute' or 'mask', not {on_error!r}")
    if max_faults is not None and on_error == "raise":
        raise ValueError(
            "max_faults goes with on_error='substitute' or 'mask'; with 'raise' the first fault ends the run"
        )
    return typing.cast(OnError, on_error)


def made_whole(
    ids: SampleIds, candidates: Candidates, make: Callable[[SampleIds], _T]
) -> tuple[_T, SampleIds, tuple[Fault, ...]]:
    """Returns a batch, what it was made from, and the faults found: where one sample cannot be read, another is taken.

    Where a batch fails its halves are tried, down to single samples: those are few, and each read has a price of its own. Of
    256 samples with one fault that comes to about 20 reads of five times the batch.

    Args:
        ids: the samples asked for.
        candidates: what may be tried in the place of a sample: `SampleSource.stand_ins`.
        make: reads and decodes a batch; raises one of `READ_FAULTS` if a sample of it cannot be had.

    Raises:
        Exception: what `make` raises for a sample that none of its stand-ins could replace, or that is no such fault.
    """
    try:
        return make(ids), ids, ()
    except _NOT_OF_A_SAMPLE:
        raise
    except READ_FAULTS:
        pass
    taken, faults, parts = list(ids), [], [(0, len(ids))]
    while parts:
        start, stop = parts.pop()
        num_before = min(max(ids.num_before - start, 0), stop - start)
        part = SampleIds(taken[start:stop], ids.seed, ids.epoch, num_before)
        try:
            make(part)
        except _NOT_OF_A_SAMPLE:
            raise
        except READ_FAULTS as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                parts += [(middle, stop), (start, middle)]
                continue
            alone = SampleIds(part, ids.seed, part.epochs[0])
            _, fault = stand_in(start, alone, candidates, error, make)
            taken[start] = fault.stand_in
            faults.append(fault)
    replaced = SampleIds(taken, ids.seed, ids.epoch, ids.num_before, ids.num_valid)
    return make(replaced), replaced, tuple(faults)


def stand_in(
    slot: int, alone: SampleIds, candidates: Candidates, error: Exception, make: Callable[[SampleIds], _T]
) -> tuple[_T, Fault]:
    """Returns what is made of the first stand-in of a sample that can be used, and the fault.

    Args:
        slot: the sample's place in the batch.
        alone: the sample, by itself.
        candidates: as for `made_whole`.
        error: what came of the sample.
        make: makes a batch of one sample.

    Raises:
        Exception: `error`, if it is not about the sample, or no stand-in can be used either.
    """
    if isinstance(error, _NOT_OF_A_SAMPLE):
        raise error
    sample_id, epoch = alone[0], alone.epochs[0]
    tried = candidates(alone.seed, epoch, sample_id, _TRIES)
    for candidate in tried:
        try:
            made = make(SampleIds([candidate], alone.seed, epoch))
        except _NOT_OF_A_SAMPLE:
            raise
        except Exception:
            continue
        return made, Fault(slot, sample_id, epoch, candidate, _in_one_line(error))
    error.add_note(
        f"nor could any of the {len(tried)} samples be used that were tried in its place: this is not about one sample"
        if tried
        else "there is no other sample in the dataset that could be put in its place"
    )
    raise error


def joined(first: Sequence[Fault], later: Sequence[Fault]) -> tuple[Fault, ...]:
    """Returns the faults of a batch in which some stand-ins were then replaced themselves, by place.

    What was asked for at first, and why it was not given, is what counts.
    """
    faults = {fault.slot: fault for fault in first}
    for fault in later:
        slot = fault.slot
        faults[slot] = replace(faults[slot], stand_in=fault.stand_in) if slot in faults else fault
    return tuple(faults[slot] for slot in sorted(faults))


def refuse(slot: int, error: Exception) -> Any:
    """Raises the error of a stand-in, so that the next one is tried."""
    raise error


def _in_one_line(error: Any) -> str:
    lines = [str(error), *getattr(error, "__notes__", ())]
    return f"{type(error).__name__}: " + "; ".join(" ".join(line.split()) for line in lines if line)
