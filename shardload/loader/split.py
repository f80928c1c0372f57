"""How a loader's order is split: among which ranks, and with which end of an epoch."""

from __future__ import annotations

from typing import Any

from shardload.loader.ranks import FixedRanks, RankChoice, Ranks
from shardload.order.cursor import Partition, Tail
from shardload.order.unit_blocks import UnitPlan
from shardload.order.units import UnitPartition


class Split:
    """Batch size, ranks and tail of one loader."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        shuffle: bool,
        choice: RankChoice,
        tail: Tail | None,
        drop_last: bool | None,
        plan: UnitPlan | None = None,
    ) -> None:
        """Describes the split.

        Args:
            num_samples: positions of an epoch.
            batch_size: samples, or units of the plan, a batch and rank.
            shuffle: whether the order is a permutation, on which the default tail depends.
            choice: what the program said of its ranks.
            tail: what becomes of the end of an epoch; None for what `drop_last` says, or the default.
            drop_last: torch's word: True is `drop`, False is `short` with one replica and `pad` with several.
            plan: what samples are put together to; None where each is by itself.

        Raises:
            ValueError: both tail and drop_last are given, or there is no batch.
        """
        if tail is not None and drop_last is not None:
            raise ValueError(f"tail={tail!r} and drop_last={drop_last!r} say the same thing twice: leave one out")
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._plan = plan
        self._ranks = FixedRanks(choice)
        # `torch` for drop_last=False, which depends on the number of ranks.
        self._tail: str | None = tail if drop_last is None else "drop" if drop_last else "torch"
        self.partition().check()

    def ranks(self) -> Ranks:
        """Returns this process's place, which may change until `fix_rank`."""
        return self._ranks.now()

    def fix_rank(self) -> int:
        """Returns the rank, which stays from now on, and tells once where it comes from."""
        return self._ranks.fix()

    def partition(self) -> Partition:
        """Returns how the epoch is cut into batches and split over the ranks.

        Raises:
            ValueError: the tail must be named.
        """
        num_replicas, tail = self.ranks().num_replicas, self._tail
        if tail is None and self._shuffle:
            tail = "drop"
        elif tail is None and num_replicas > 1:
            raise ValueError(
                f"with {num_replicas} replicas and shuffle=False the tail must be named: 'drop' leaves samples out, 'short' gives "
                "ranks batches of different sizes, 'pad' repeats samples, 'mask' flags such repeats, 'carry' opens the next epoch "
                "with what is left"
            )
        elif tail in (None, "torch"):
            tail = "pad" if num_replicas > 1 else "short"
        settings: Any = self._num_samples, self._batch_size, num_replicas, tail
        return Partition(*settings) if self._plan is None else UnitPartition(*settings, plan=self._plan)
