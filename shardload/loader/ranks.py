"""Which rank of how many this process is."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from shardload.quantities import as_integer


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process's place among the replicas that share an order."""

    rank: int
    """From 0 to num_replicas - 1."""
    num_replicas: int
    """Processes that share the order."""
    source: str
    """Where the numbers come from."""


def resolve_ranks(num_replicas: int | None, rank: int | None) -> Ranks:
    """Returns the rank: as given, else of the initialised default process group, else of RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        ValueError: only one of the two is given, or they cannot be.
    """
    if (num_replicas is None) != (rank is None):
        raise ValueError(
            f"give both num_replicas and rank, or neither: got num_replicas={num_replicas!r}, rank={rank!r}"
        )
    if num_replicas is not None and rank is not None:
        return _checked(rank, num_replicas, "the arguments")
    # Only a program that has loaded torch.distributed can have a process group.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return _checked(distributed.get_rank(), distributed.get_world_size(), "the default process group")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        try:
            numbers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError:
            raise ValueError(
                f"RANK={os.environ['RANK']!r} and WORLD_SIZE={os.environ['WORLD_SIZE']!r} are not integers"
            ) from None
        return _checked(*numbers, "RANK and WORLD_SIZE")
    return Ranks(0, 1, "nothing: a single process")


def one_of(num_replicas: int | None, world_size: int | None) -> int | None:
    """Returns the number of replicas, which may be given under either name.

    Raises:
        ValueError: both are given and differ.
    """
    if num_replicas is not None and world_size is not None and num_replicas != world_size:
        raise ValueError(f"world_size is another name for num_replicas, but {world_size} and {num_replicas} were given")
    return world_size if num_replicas is None else num_replicas


def _checked(rank: int, num_replicas: int, source: str) -> Ranks:
    rank, num_replicas = as_integer(rank, "rank", None), as_integer(num_replicas, "num_replicas", None)
    if num_replicas < 1 or not 0 <= rank < num_replicas:
        raise ValueError(
            f"rank {rank} of {num_replicas} (from {source}) cannot be: ranks go from 0 to num_replicas - 1"
        )
    return Ranks(rank, num_replicas, source)
