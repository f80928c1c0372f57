"""Batches on their way to the training loop: page-locked, or copied to a CUDA device on a stream of their own.

Both are done where batches are finished, which is the prefetch thread, so that the copy of a batch runs beside the training
steps of those before it. What waits has been copied already; the bounds of what waits are the bounds of the device memory
it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from shardload.loader.batches import Delivery
from shardload.loader.collate import batch_bytes, moved, to_device
from shardload.memory import BufferPool

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""The dtype of the same size that torch computes with; it does so with hardly an unsigned one."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch whose copies have been issued."""

    batch: Any
    ready: tuple[torch.cuda.Event, ...]
    """What comes after these on a stream may use the batch."""
    tensors: tuple[torch.Tensor, ...]
    """The device memory that the batch's tensors are in."""
    complete: bool
    """Whether nothing is left that has to move itself."""


class CudaTransfer:
    """Copies batches to one CUDA device. No other device is used, so that none gets a context."""

    def __init__(self, device: torch.device, pinned: bool, narrow: frozenset[str]) -> None:
        """Makes the stream.

        Args:
            device: the device, with its index.
            pinned: whether what is not page-locked yet is made so before it is copied.
            narrow: fields whose unsigned integers arrive as stored and become int64 on the device.
        """
        self.device = device
        # torch takes a number as it is, and looks longer at a device.
        self._index: int = device.index
        self._pinned = pinned
        self._narrow = narrow
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with self._on_stream():
            self._masks = masks(device)

    def sent(self, deliveries: Generator[Delivery], pool: BufferPool) -> Generator[Delivery]:
        """Yields deliveries whose batch is a `Sent`.

        Args:
            deliveries: batches in host memory.
            pool: where their buffers are from.
        """
        with contextlib.closing(deliveries):
            for delivery in deliveries:
                batch = self.send(delivery.batch, pool)
                delivery = replace(delivery, batch=batch, num_bytes=batch_bytes(batch.batch))
                yield delivery
                # Device memory must not live on in this frame while the next batch is made.
                del batch, delivery

    def send(self, batch: Any, pool: BufferPool) -> Sent:
        """Issues the copies of a batch. It need not be kept: its memory is not used again before they are done."""
        tensors: list[torch.Tensor] = []
        left: list[Any] = []

        def copied(part: Any) -> Any:
            if not _plain(part):
                left.append(part)
                return part
            # Whether a copy from other memory is done when the call returns depends on the machine: that is waited for.
            tensors.append(self._source(part, pool).to(self.device, non_blocking=self._pinned))
            return tensors[-1]

        def widened(part: Any) -> Any:
            narrow = copied(part)
            if isinstance(narrow, torch.Tensor) and narrow.device == self.device:
                tensors[-1] = widened_to_int64(narrow, self._masks)
                return tensors[-1]
            return narrow

        with self._on_stream():
            if type(batch) is dict:
                made: Any = {
                    name: moved(value, widened if name in self._narrow else copied) for name, value in batch.items()
                }
            else:
                made = moved(batch, copied)
            ready = [_passed(self.stream)]
        if left:
            # A batch_transform may have computed on the device, on the stream that is this thread's own.
            ready.append(_passed(torch.cuda.current_stream(self._index)))
        made_here = [part for part in left if isinstance(part, torch.Tensor) and part.device == self.device]
        return Sent(made, tuple(ready), (*tensors, *made_here), len(left) == len(made_here))

    def receive(self, sent: Sent) -> Any:
        """Returns a batch that the thread's current stream may use from here on. Waits for nothing on the host."""
        stream = torch.cuda.current_stream(self._index)
        for event in sent.ready:
            stream.wait_event(event)
        for tensor in sent.tensors:
            # The memory belongs to the stream of the copies, which may use it again once this one is done with it.
            tensor.record_stream(stream)
        # The batch classes of frameworks move themselves, and only here it is known for which stream.
        return sent.batch if sent.complete else to_device(sent.batch, self.device)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        # The device first: leaving the stream would else make the thread's former device current, and give it a context.
        with torch.cuda.device(self._index):
            # What torch.cuda.stream does, in a third of the time: as many small batches a second as that allows are copied.
            before = torch.cuda.current_stream(self._index)
            torch.cuda.set_stream(self.stream)
            try:
                yield
            finally:
                torch.cuda.set_stream(before)

    def _source(self, tensor: torch.Tensor, pool: BufferPool) -> torch.Tensor:
        if not self._pinned:
            return tensor
        if not tensor.is_contiguous():
            # Else torch would copy by way of memory that is not page-locked.
            tensor = tensor.clone()
        locked = pool.page_locked(tensor)
        return tensor.pin_memory() if locked is None else locked


class Pinning:
    """Copies batches to page-locked memory of torch's, which knows what copies from it are under way on any stream."""

    def __init__(self, device: torch.device) -> None:
        """Notes the device in whose context memory is locked: the current one, which another thread would not know."""
        self._device = device

    def pinned(self, deliveries: Generator[Delivery]) -> Generator[Delivery]:
        """Yields deliveries with their batch in page-locked memory."""
        with contextlib.closing(deliveries):
            for delivery in deliveries:
                with torch.cuda.device(self._device):
                    delivery = replace(delivery, batch=moved(delivery.batch, _pin))
                yield delivery
                del delivery


def cuda_device(device: torch.device | None) -> torch.device:
    """Returns a CUDA device with its index: the one asked for, else the calling thread's current one.

    Raises:
        RuntimeError: there is none, or not this one.
    """
    wanted = "pin_memory=True" if device is None else f"device='{device}'"
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"{wanted} needs a CUDA device, and torch sees none here: leave it out, and batches are delivered in host memory"
        )
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise RuntimeError(
            f"{wanted} is not there: torch sees {torch.cuda.device_count()} CUDA devices, numbered from 0 (see "
            "CUDA_VISIBLE_DEVICES)"
        )
    return torch.device("cuda", index)


def masks(device: torch.device) -> dict[torch.dtype, torch.Tensor]:
    """Returns what `widened_to_int64` needs on a device: by dtype the bits of a value, int64 of shape (1,)."""
    bits = {torch.uint16: 0xFFFF, torch.uint32: 0xFFFF_FFFF}
    return {dtype: torch.full((1,), mask, dtype=torch.int64, device=device) for dtype, mask in bits.items()}


def widened_to_int64(narrow: torch.Tensor, masks: Mapping[torch.dtype, torch.Tensor]) -> torch.Tensor:
    """Returns unsigned integers as int64, by a single kernel.

    Args:
        narrow: uint16, uint32 or uint64 below 2^63, of any shape. Of uint64 the result shares the memory.
        masks: what `masks` has returned for its device.
    """
    signed = narrow.view(_SIGNED[narrow.dtype])
    if narrow.dtype is torch.uint64:
        return signed
    # With a mask that has a dimension the result is int64: negative numbers are widened, and lose the bits of the sign. Of a
    # tensor without dimensions it would be one of shape (1,).
    return torch.bitwise_and(signed, masks[narrow.dtype]).view(narrow.shape)


def _passed(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Returns an event for all that a stream has been given so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _plain(part: Any) -> bool:
    """Tells whether something is a tensor in host memory that a copy of its numbers is all there is to."""
    return (
        type(part) is torch.Tensor
        and part.device.type == "cpu"
        and part.layout is torch.strided
        and not part.requires_grad
    )


def _pin(part: Any) -> Any:
    # As torch's DataLoader does: batch classes may know how to.
    return (
        part.pin_memory()
        if _plain(part) or (not isinstance(part, torch.Tensor) and hasattr(part, "pin_memory"))
        else part
    )
