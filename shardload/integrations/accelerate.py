"""Accelerate: a `ShardLoader` that tells the accelerator where an epoch ends and rides in its checkpoints.

`accelerator.prepare` leaves alone what is no torch DataLoader: it does not split it again, but neither does it place its
batches, notice the last one, or save its state. `prepare` here adds those three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardload.errors import ShardloadError
from shardload.integrations import missing, place_in
from shardload.loader import ShardLoader

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.utils import recursively_apply, send_to_device
except ImportError as error:
    raise missing("accelerate") from error


def prepare(accelerator: Accelerator, loader: ShardLoader) -> AcceleratedLoader:
    """Returns the loader as an Accelerate loop expects one, in place of `accelerator.prepare(loader)`.

    Batches come on the accelerator's device, the last step of an epoch ends a gradient accumulation, and
    `accelerator.save_state` and `load_state` carry the loader's state: the next loop goes on with the next sample.

    Raises:
        TypeError: not a ShardLoader.
    """
    if not isinstance(loader, ShardLoader):
        raise TypeError(
            f"prepare() takes a ShardLoader, not a {type(loader).__name__}, which accelerator.prepare splits"
        )
    prepared = AcceleratedLoader(accelerator, loader)
    accelerator.register_for_checkpointing(prepared)
    return prepared


class AcceleratedLoader(DataLoaderStateMixin):  # type: ignore[misc]
    """A loader as Accelerate sees it; one `for` over it is one epoch. Made by `prepare`."""

    # Accelerate would take the remainder to be what its own way to split leaves.
    _drop_last = True

    def __init__(self, accelerator: Accelerator, loader: ShardLoader) -> None:
        self.accelerator = accelerator
        self.loader = loader
        self.gradient_state = accelerator.gradient_state
        # What others ask of a loader.
        self.dataset, self.batch_size, self.set_epoch = loader.dataset, loader.batch_size, loader.set_epoch

    def __iter__(self) -> Iterator[Any]:
        self.begin()
        try:
            # A map keeps no batch alive while the next one is made.
            yield from map(self._deliver, self.loader)
        finally:
            self.end()

    def __len__(self) -> int:
        return len(self.loader)

    def _deliver(self, batch: Any) -> Any:
        # The loader knows its last batch without looking ahead, so its state never counts more than was delivered.
        self.end_of_dataloader = self.loader.remaining == 0
        return send_to_device(batch, self.accelerator.device, non_blocking=True)

    def gather_for_metrics(self, values: Any) -> Any:
        """Returns the values of this step's samples from all ranks, each sample once, in the order of their positions.

        `accelerator.gather_for_metrics` cuts off the end of what it gathered, which is right only for its own way to split.

        Args:
            values: a tensor of shape (batch, ...), or a nested list, tuple or dict of such.
        """
        if self.batch_size is None or self.loader._plan is not None:
            raise ShardloadError(
                "gather_for_metrics needs batches of so many samples each: with packed sequences or batch_tokens= use "
                "accelerator.gather, and tail='mask', whose _valid tells fillers"
            )
        num_values = self.batch_size * self.loader.num_replicas
        if self.end_of_dataloader and (num_batches := len(self.loader)) > 0:
            # The start of an epoch that was delivered whole is no state; it is position 0.
            start = place_in(self.loader.state_at(num_batches - 1))["position"] if num_batches > 1 else 0
            num_values = min(num_values, len(self.dataset) - start)
        padded = self.accelerator.pad_across_processes(values, dim=0)
        return recursively_apply(
            lambda all_ranks: self._in_order(all_ranks, num_values), self.accelerator.gather(padded)
        )

    def _in_order(self, all_ranks: Any, num_values: int) -> Any:
        num_replicas = self.loader.num_replicas
        size = len(all_ranks) // num_replicas
        return all_ranks[[offset % num_replicas * size + offset // num_replicas for offset in range(num_values)]]

    @property
    def sampler(self) -> Any:
        """Nobody's business: `skip_first_batches` asks for it, to skip what the state has passed already.

        Raises:
            ShardloadError: always.
        """
        raise ShardloadError(
            "skip_first_batches is not for a ShardLoader: accelerator.load_state has set it to the next sample already; "
            "leave the call out"
        )

    def state_dict(self) -> dict[str, str]:
        """Returns the state of what was delivered; Accelerate saves it with its own."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state: the next loop goes on from there, at whatever batch size and number of ranks."""
        self.loader.load_state_dict(state)
