"""The ranks that save and restore together, over a process group of their own, so that a thread may use it beside the training."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import distributed

from shardload.errors import StateMismatchError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


class RankGroup:
    """All ranks of the default process group, or this process alone where there is none."""

    def __init__(self, timeout_seconds: float) -> None:
        """Forms the group: a collective of all ranks.

        Args:
            timeout_seconds: the longest that one rank waits for another.
        """
        self.handle: ProcessGroup | None = None
        self._default = _default_group()
        self.rank, self.size = 0, 1
        if self._default is not None:
            # Always gloo: what is exchanged lies in host memory, and torch's async_save asks for it.
            self.handle = distributed.new_group(
                backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds), group_desc="shardload checkpoint"
            )
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this rank gives the checkpoints their names."""
        return self.rank == 0

    @property
    def is_current(self) -> bool:
        """Whether the processes are those that formed it."""
        return self._default is _default_group()

    def broadcast(self, value: Value) -> Value:
        """Returns the value of the leading rank."""
        if self.handle is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.handle)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """Returns the values of all ranks."""
        if self.handle is None:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.handle)
        return values

    def agreed(self, work: Callable[[], Value]) -> Value:
        """Does something that may fail on one rank, and returns its result; if it fails on any, all of them raise.

        Raises:
            StateMismatchError: on the ranks on which it did not fail itself.
        """
        error: Exception | None = None
        try:
            value = work()
        except Exception as found:
            error = found
        told = self.gather("" if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(told):
            if text:
                raise StateMismatchError(f"rank {rank}: {text}")
        return value

    def close(self) -> None:
        """Leaves the group, if the processes are still together."""
        handle, self.handle = self.handle, None
        if handle is not None and not sys.is_finalizing() and self.is_current:
            distributed.destroy_process_group(handle)


def _default_group() -> ProcessGroup | None:
    return distributed.group.WORLD if distributed.is_available() and distributed.is_initialized() else None
