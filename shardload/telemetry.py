"""Counters and timers, as plain values with their unit under each."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Transfers:
    """What was fetched from a store that is a request away."""

    num_requests: int = 0
    """Requests for ranges."""
    requested_bytes: int = 0
    """Bytes that came by them."""
    needed_bytes: int = 0
    """Bytes that were read of these, or from a cache in their place, with heads and rows of shards."""
    num_rereads: int = 0
    """Ranges that were fetched once more because their content was damaged."""

    def __add__(self, other: Transfers) -> Transfers:
        return Transfers(
            self.num_requests + other.num_requests,
            self.requested_bytes + other.requested_bytes,
            self.needed_bytes + other.needed_bytes,
            self.num_rereads + other.num_rereads,
        )


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
    num_source_samples: dict[str, int] = field(default_factory=dict)
    """Samples by the name of their source in a `Mixture`; empty for others."""
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

    num_requests: int = 0
    """Requests for ranges to the store of a remote dataset, by this process and those that read for it; 0 for local ones."""
    requested_bytes: int = 0
    """Bytes that came by them."""
    needed_bytes: int = 0
    """Bytes that were read of these, or from a cache in their place."""
    num_rereads: int = 0
    """Ranges that were fetched once more because their content was damaged."""
    num_retries: dict[str, int] = field(default_factory=dict)
    """Requests that were made again, by what had gone wrong: the kinds of `AnswerError`, such as throttled or stalled."""

    device: str = ""
    """The CUDA device that batches are copied to, with its index; empty for others, and before the first `iter`."""
    pinned: bool = False
    """Whether batches go through page-locked memory; False before the first `iter`."""
    engine: str = ""
    """How samples are read: `map`, many ranges of mapped files a call, `pread`, or `ranges` of a store; empty before the first
    batch."""

    num_cache_hits: int = 0
    """Blocks of 4 KiB of shards that this process read from the cache (`cache_dir`)."""
    num_cache_misses: int = 0
    """Blocks that had to be fetched."""
    num_cache_evicted: int = 0
    """Blocks that gave way to others, by this process."""
    num_cache_damaged: int = 0
    """Blocks of the cache found damaged, and fetched again."""
    cache_bytes: int = 0
    """Bytes that the cache takes on its disk now, by all processes that use it."""

    @property
    def fill(self) -> float:
        """Part of the places for items that hold one, 0 to 1; the rest is padding. 0 where samples are not put together."""
        return self.num_tokens / self.num_token_places if self.num_token_places else 0.0

    @property
    def amplification(self) -> float:
        """Bytes that came from a store for each one that was needed, less than 1 where a cache had them; 0 for local datasets."""
        return self.requested_bytes / self.needed_bytes if self.needed_bytes else 0.0

    @property
    def stall_fraction(self) -> float:
        """Part of the loop's time spent waiting for data, 0 to 1."""
        return self.stall_seconds / self.loop_seconds if self.loop_seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples a second over the loop's time."""
        return self.num_samples / self.loop_seconds if self.loop_seconds else 0.0


@dataclass(slots=True)
class CheckpointStats:
    """What a checkpointer has done since it was made. Bytes and writing are this rank's own."""

    num_saved: int = 0
    """Checkpoints published."""
    num_bytes: int = 0
    """Bytes that this rank has written."""
    write_seconds: float = 0.0
    """Time it took this rank to write them and bring them to the device; in a thread of its own if asynchronous."""
    blocked_seconds: float = 0.0
    """Time that the training loop waited in `save`, `wait` and `close`."""
    elapsed_seconds: float = 0.0
    """Time from making the checkpointer to the end of the newest save, restores left out."""
    num_failed: int = 0
    """Checkpoints that could not be written."""
    restored_bytes: int = 0
    """Bytes of the checkpoint restored last, of all ranks."""
    check_seconds: float = 0.0
    """Time in which the restore read and summed this rank's part of them."""
    restore_seconds: float = 0.0
    """Time of the whole restore."""

    @property
    def share(self) -> float:
        """Part of the time that the training loop waited for checkpoints, 0 to 1; the rule is at most 0.05."""
        return self.blocked_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0

    @property
    def writer_gb_per_second(self) -> float:
        """10^9 bytes a second that this rank wrote, while it did."""
        return self.num_bytes / 1e9 / self.write_seconds if self.write_seconds else 0.0


@dataclass(slots=True)
class CacheStats:
    """What a process has done with its cache. A block is 4 KiB of a file."""

    num_hits: int = 0
    """Blocks read that were there."""
    num_misses: int = 0
    """Blocks read that were not."""
    num_evicted: int = 0
    """Blocks that this process put others in the place of."""
    num_damaged: int = 0
    """Blocks found to be other than they were written, and dropped: they were fetched again."""
    num_failures: int = 0
    """1 after the file system of the cache has failed: it is not used any more."""
    held_bytes: int = 0
    """Bytes that the cache takes on its disk, by whichever process."""

    def __add__(self, other: CacheStats) -> CacheStats:
        return CacheStats(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))
