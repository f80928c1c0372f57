"""Counters and timers, as plain values with their unit under each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LoaderStats:
    """What a loader has done since it was made."""

    num_batches: int = 0
    """Batches given to the training loop."""
    num_samples: int = 0
    """Samples in them."""
    num_bytes: int = 0
    """Bytes of their tensors and byte strings."""
    num_faults: int = 0
    """Samples that could not be used and had another one in their place, by `on_error`."""
    num_tokens: int = 0
    """Items in packed sequences, or in batches within a budget (`batch_tokens`)."""
    num_token_places: int = 0
    """Items that those have room for, up to the longest sample of a batch within a budget."""
    stall_seconds: float = 0.0
    """Time the training loop waited in `next`; the first batch of each iteration is left out."""
    loop_seconds: float = 0.0
    """Time between the first and the last batch of each iteration, summed: what the stall is a part of."""
    first_batch_seconds: float = 0.0
    """Time the training loop waited for the first batch of the newest iteration."""
    num_buffers_new: int = 0
    """Buffers that took new memory."""
    num_buffers_reused: int = 0
    """Buffers that were used before."""
    leased_bytes: int = 0
    """Bytes of buffers that are being filled, waiting, or held by the training loop now."""
    num_helper_batches: int = 0
    """Batches that a helper process has read, because the training loop kept the interpreter to itself."""

    device: str = ""
    """The CUDA device that batches are copied to, with its index; empty for others, and before the first `iter`."""
    pinned: bool = False
    """Whether batches go through page-locked memory; False before the first `iter`."""
    engine: str = ""
    """How samples are read: `map`, many ranges of mapped files a call, or `pread`; empty before the first batch."""

    @property
    def fill(self) -> float:
        """Part of the places for items that hold one, 0 to 1; the rest is padding. 0 where samples are not put together."""
        return self.num_tokens / self.num_token_places if self.num_token_places else 0.0

    @property
    def stall_fraction(self) -> float:
        """Part of the loop's time spent waiting for data, 0 to 1."""
        return self.stall_seconds / self.loop_seconds if self.loop_seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples a second over the loop's time."""
        return self.num_samples / self.loop_seconds if self.loop_seconds else 0.0
