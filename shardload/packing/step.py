"""What a unit has come to."""

from __future__ import annotations

from dataclasses import dataclass

from shardload.format.table import ShardEntry
from shardload.packing.progress import Count


@dataclass(frozen=True, slots=True)
class Step:
    """What a unit has come to: all up to here is on the device, or set aside."""

    unit: int
    num_items: int
    """Items of what its reader yields, from the first one on."""
    count: Count
    """What was packed, from the first part on."""
    rejects: tuple[tuple[str, str], ...] = ()
    """Place and reason of what was set aside since the step before."""
    entry: ShardEntry | None = None
    """The shard that was finished with this step, if one was."""
    finished: bool = False
    """Whether this is the last step of the unit."""
    num_outputs: int = 0
    """Samples of the next item, an outcome, that are in the parts up to here."""
