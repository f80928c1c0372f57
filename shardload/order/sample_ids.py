"""A batch of sample ids that knows where it comes from, on its way from the sampler to whoever reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class UseWatch:
    """Notices when some of the batches of one iteration are used and others between them are thrown away."""

    def __init__(self) -> None:
        self._first_used: int | None = None
        self._last_used = -1
        self._left_out: int | None = None

    @property
    def left_out(self) -> int | None:
        """Number of a batch that nobody looked at though one before and one after it were used; None if there is none."""
        return self._left_out if self._left_out is not None and self._last_used > self._left_out else None

    def used(self, number: int) -> None:
        """Notes that a batch was read or sent to a worker process."""
        if self._first_used is None or number < self._first_used:
            self._first_used = number
        self._last_used = max(self._last_used, number)

    def dropped(self, number: int) -> None:
        """Notes that a batch is gone and was not used."""
        if self._left_out is None and self._first_used is not None and number > self._first_used:
            self._left_out = number


class SampleIds(list[int]):
    """Sample ids that know the order they come from; they carry it to worker processes with every request.

    So a worker cannot hold a stale epoch. They also know whether anybody has looked at them.
    """

    def __init__(
        self,
        ids: Sequence[int],
        seed: int,
        epoch: int,
        num_before: int = 0,
        num_valid: int | None = None,
        watched: tuple[UseWatch, int] | None = None,
        issued: Any = None,
    ) -> None:
        """Makes the list.

        Args:
            ids: the ids.
            seed: seed of the order there.
            epoch: epoch of the ids.
            num_before: how many of them, at the start, belong to the epoch before.
            num_valid: how many are no fillers, which come last; None where the tail of the order has no fillers.
            watched: who is told of the use of this list, and its number there.
            issued: what tells a reader in this process which batches follow; see `reader.issued`.
        """
        super().__init__(ids)
        self.seed = seed
        self.epoch = epoch
        self.num_before = num_before
        self.num_valid = num_valid
        self.issued = issued
        self._watched = watched

    @property
    def epochs(self) -> list[int]:
        """The epoch of each sample."""
        return [self.epoch - 1] * self.num_before + [self.epoch] * (len(self) - self.num_before)

    def __iter__(self) -> Iterator[int]:
        # Reading a batch and pickling it for a worker process both come through here.
        watched, self._watched = self._watched, None
        if watched is not None:
            watched[0].used(watched[1])
        return super().__iter__()

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleIds, (list(self), self.seed, self.epoch, self.num_before, self.num_valid)

    def __del__(self) -> None:
        if self._watched is not None:
            self._watched[0].dropped(self._watched[1])
