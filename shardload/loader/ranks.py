"""Which rank of how many this process is."""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.quantities import as_integer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

_DATA_PARALLEL = re.compile(r"(^|_)(dp|ddp|fsdp|hsdp|data|batch|replicate|replica|replicas|shard)(_|$)")
"""Names that people give the dimensions of a mesh along which the data differs."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process's place among the replicas that share an order."""

    rank: int | None
    """From 0 to num_replicas - 1; None for a process that only plans and reads nothing."""
    num_replicas: int
    """Processes that share the order."""
    source: str
    """Where the numbers come from."""
    num_copies: int = 1
    """Processes that read the same, as tensor- and pipeline-parallel ones do, where a mesh tells."""
    inferred: bool = False
    """Whether they come from the surroundings, not from what the program said."""


@dataclass(frozen=True)
class RankChoice:
    """What a program said of its ranks. The first that was given counts, in the order of the attributes."""

    num_replicas: int | None = None
    """Processes that share the order, with `rank`."""
    rank: int | None = None
    """This process."""
    mesh: DeviceMesh | None = None
    """A device mesh, with the names of its data-parallel dimensions."""
    mesh_dims: str | Sequence[str] | None = None
    """Name or names; None for the only dimension of the mesh."""
    process_group: ProcessGroup | None = None
    """The group of the replicas."""

    def __post_init__(self) -> None:
        if self.mesh_dims is not None and self.mesh is None:
            raise ValueError(f"mesh_dims={self.mesh_dims!r} names dimensions of a mesh: give mesh too")
        if self.rank is not None and self.num_replicas is None:
            raise ValueError(f"give both num_replicas and rank, or neither: got rank={self.rank!r} alone")

    def resolve(self) -> Ranks:
        """Returns the ranks: as given, else of the default process group, else of RANK and WORLD_SIZE, else 0 of 1.

        Raises:
            ValueError: they cannot be.
        """
        if self.num_replicas is not None:
            return _checked(self.rank, self.num_replicas, "the arguments")
        if self.mesh is not None:
            return _of_mesh(self.mesh, self.mesh_dims)
        if self.process_group is not None:
            return _of_group(self.process_group)
        return _inferred()

    def settled(self) -> RankChoice:
        """Returns a choice that gives the same in another process, where no mesh and no process group is."""
        if self.num_replicas is not None or (self.mesh is None and self.process_group is None):
            return self
        ranks = self.resolve()
        return RankChoice(ranks.num_replicas, ranks.rank)


class FixedRanks:
    """Ranks that may change until they are fixed, which is when the first batch is asked for."""

    def __init__(self, choice: RankChoice) -> None:
        self._choice = choice
        self._fixed: Ranks | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Meshes and groups stay with the process that made them.
        return {"_fixed": None, "_choice": self._choice.settled()}

    def now(self) -> Ranks:
        """Returns this process's place."""
        return self._fixed or self._choice.resolve()

    def fix(self) -> int:
        """Returns the rank, which stays from now on, and tells once where it comes from."""
        if self._fixed is None:
            self._fixed = self.now()
            announce(self._fixed, stacklevel=5)
        if self._fixed.rank is None:
            raise ValueError(
                "this loader was given num_replicas without rank: it tells lengths and states, but no batches"
            )
        return self._fixed.rank


def one_of(num_replicas: int | None, world_size: int | None) -> int | None:
    """Returns the number of replicas, which may be given under either name.

    Raises:
        ValueError: both are given and differ.
    """
    if num_replicas is not None and world_size is not None and num_replicas != world_size:
        raise ValueError(f"world_size is another name for num_replicas, but {world_size} and {num_replicas} were given")
    return world_size if num_replicas is None else num_replicas


def announce(ranks: Ranks, stacklevel: int = 4) -> None:
    """Says where ranks come from that nobody gave, and warns if they may be the wrong ones."""
    if not ranks.inferred or ranks.num_replicas == 1:
        return
    sys.stderr.write(f"shardload: rank {ranks.rank} of {ranks.num_replicas}, from {ranks.source}\n")
    names = _model_parallel_dims()
    if names:
        warnings.warn(
            f"every process reads samples of its own (rank {ranks.rank} of {ranks.num_replicas}, from {ranks.source}), but there "
            f"is a device mesh with the dimension {names[0]!r}, along which processes usually need the same ones: give mesh= and "
            "mesh_dims= (the data-parallel dimensions), or num_replicas= and rank=",
            UserWarning,
            stacklevel=stacklevel,
        )


def _of_mesh(mesh: DeviceMesh, dims: str | Sequence[str] | None) -> Ranks:
    names = mesh.mesh_dim_names or ()
    if dims is None:
        if mesh.ndim != 1:
            raise ValueError(
                f"the mesh has {mesh.ndim} dimensions {tuple(names)}: name the data-parallel ones, such as mesh_dims=('dp',)"
            )
        rank, num_replicas, chosen = mesh.get_local_rank(), mesh.size(), "its only one"
    else:
        wanted = (dims,) if isinstance(dims, str) else tuple(dims)
        if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= set(names):
            raise ValueError(f"mesh_dims={dims!r} must name dimensions of the mesh, each once; it has {tuple(names)}")
        # In the order of the mesh, whatever the order of the names: the same ranks either way.
        wanted = tuple(name for name in names if name in wanted)
        sizes = [mesh.size(names.index(name)) for name in wanted]
        rank = functools.reduce(
            lambda rank, one: rank * one[1] + mesh.get_local_rank(one[0]), zip(wanted, sizes, strict=True), 0
        )
        num_replicas, chosen = functools.reduce(int.__mul__, sizes), " x ".join(wanted)
    ranks = _checked(rank, num_replicas, f"dimension {chosen} of the mesh")
    return Ranks(ranks.rank, num_replicas, ranks.source, num_copies=mesh.size() // num_replicas)


def _of_group(group: ProcessGroup) -> Ranks:
    from torch import distributed

    rank = distributed.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not in the process group that was given")
    return _checked(rank, distributed.get_world_size(group), "the process group given")


def _inferred() -> Ranks:
    # Only a program that has loaded torch.distributed can have a process group.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        numbers = distributed.get_rank(), distributed.get_world_size()
        return _checked(*numbers, "the default process group", inferred=True)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        try:
            numbers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError:
            raise ValueError(
                f"RANK={os.environ['RANK']!r} and WORLD_SIZE={os.environ['WORLD_SIZE']!r} are not integers"
            ) from None
        return _checked(*numbers, "RANK and WORLD_SIZE", inferred=True)
    return Ranks(0, 1, "nothing: a single process", inferred=True)


def _checked(rank: int | None, num_replicas: int, source: str, inferred: bool = False) -> Ranks:
    num_replicas = as_integer(num_replicas, "num_replicas", None)
    if rank is not None:
        rank = as_integer(rank, "rank", None)
    if num_replicas < 1 or (rank is not None and not 0 <= rank < num_replicas):
        raise ValueError(
            f"rank {rank} of {num_replicas} (from {source}) cannot be: ranks go from 0 to num_replicas - 1"
        )
    return Ranks(rank, num_replicas, source, inferred=inferred)


def _model_parallel_dims() -> list[str]:
    """Returns the dimensions of living device meshes along which the data is probably the same."""
    module = sys.modules.get("torch.distributed.device_mesh")
    if module is None:
        return []
    # torch keeps no public list of meshes. This is done once, before the first batch. By their types, since isinstance asks
    # the objects, some of which answer with a warning.
    meshes = [thing for thing in gc.get_objects() if issubclass(type(thing), module.DeviceMesh)]
    return sorted(
        name
        for mesh in meshes
        for name in mesh.mesh_dim_names or ()
        if mesh.size(mesh.mesh_dim_names.index(name)) > 1 and not _DATA_PARALLEL.search(name.lower())
    )
