"""A pool of batch buffers that come back by themselves."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardload.memory.arena import SharedArena

if TYPE_CHECKING:
    import torch

_ROUND_BYTES = 4096
_LINE_BYTES = 64
_NOTHING = contextlib.nullcontext()


class BufferPool:
    """Leases arrays and reuses their memory once the last array or tensor that shares it has died.

    Touching memory for the first time costs more than the copy into it, so batches are built in memory that was used
    before. A leased array belongs to whoever holds it or any view of it: numpy views, tensors made by
    `torch.from_numpy`, and what they give out keep it alive, and only then does its memory return. Arrays that are kept
    make the pool grow; nothing is ever overwritten under a holder. Memory that is idle beyond `max_idle_bytes` is freed.
    Safe for several threads.
    """

    def __init__(
        self,
        max_idle_bytes: int,
        *,
        copies: torch.cuda.Stream | None = None,
        strict: bool = False,
        arena: SharedArena | None = None,
    ) -> None:
        """Makes an empty pool.

        Args:
            max_idle_bytes: most bytes kept for reuse.
            copies: lease page-locked memory, from which this stream, and nothing else that is not waited for, copies to its
                CUDA device. None for plain memory.
            strict: know the leased arrays by their address, so that `take_back` can end a lease.
            arena: where memory is taken from, so that a child process can fill it; None for this process's own.
        """
        self._arena = arena
        self._max_idle_bytes = max_idle_bytes
        self._copies = copies
        self._strict = strict
        # By the address of an array: the page-locked block that it is in, and where in it.
        self._locked: dict[int, tuple[_Block, int]] = {}
        self._held: dict[int, weakref.finalize[..., Any]] = {}
        self._idle: defaultdict[int, list[_Block]] = defaultdict(list)
        self._lock = threading.RLock()
        self.idle_bytes = 0
        """Bytes waiting to be leased again."""
        self.leased_bytes = 0
        """Bytes that somebody holds."""
        self.num_reused = 0
        """Leases served without new memory."""
        self.num_new = 0
        """Leases that took new memory."""

    def lease(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns a writable, C-contiguous array with undefined content.

        Raises:
            MemoryError: there is none.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        capacity = max(_ROUND_BYTES, -(-num_bytes // _ROUND_BYTES) * _ROUND_BYTES)
        with self._device():
            block = self._take(capacity)
        # An array made from a buffer is the root of all its views (numpy shortens chains of views only down to it), so
        # its end is the end of the last of them. The block itself stays with the finalizer.
        root = np.frombuffer(block.memory, dtype=np.uint8)
        block.lend()
        address: int = root.__array_interface__["data"][0]
        held = weakref.finalize(root, self._give_back, block, address)
        held.atexit = False
        if self._strict:
            with self._lock:
                self._held[address] = held
        if self._copies is not None:
            with self._lock:
                self._locked[address] = block, 0
        return root[:num_bytes].view(dtype).reshape(shape)

    def lease_together(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        """Returns arrays as `lease` does, that lie one behind the other where that can be, so that one gather fills them all.

        They belong to their holders one by one, and their memory returns when the last of them has died.

        Raises:
            MemoryError: there is none.
        """
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
        alone = self._strict or self._arena is not None
        if alone or len(sizes) < 2 or any(size == 0 or size % _ROUND_BYTES for size in sizes):
            return [self.lease(shape, dtype) for shape in shapes]
        with self._device():
            block = self._take(sum(sizes))
        pieces = _Pieces(len(sizes))
        arrays: list[NDArray[Any]] = []
        start = 0
        for shape, size in zip(shapes, sizes, strict=True):
            root = np.frombuffer(block.memory[start : start + size], dtype=np.uint8)
            address: int = root.__array_interface__["data"][0]
            weakref.finalize(root, self._give_piece_back, block, pieces, address).atexit = False
            if self._copies is not None:
                with self._lock:
                    self._locked[address] = block, start
            arrays.append(root.view(dtype).reshape(shape))
            start += size
        return arrays

    def page_locked(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Returns a tensor made from a leased array as torch's own page-locked memory; None if it is of no such array.

        To copy from. Of a tensor made by `torch.from_numpy` torch does not know whose memory it is; of this one it does, and
        notes each copy, so that the memory outlives it also where this pool frees it.

        Args:
            tensor: of any dtype and shape, in host memory.
        """
        with self._lock:
            found = self._locked.get(tensor.untyped_storage().data_ptr())
        if found is None:
            return None
        block, start = found
        whole: torch.Tensor = block.tensor.view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), start // tensor.itemsize + tensor.storage_offset())

    def take_back(self, addresses: Iterable[int]) -> None:
        """Ends the lease of arrays at once, whoever still holds them: what they show from now on is undefined.

        Args:
            addresses: of the arrays' first bytes; of any other address nothing happens. Only pools that are `strict` know.
        """
        with self._lock:
            # All of them before any comes back: another thread could lease it, under the same address.
            ended = [self._held.pop(address, None) for address in addresses]
        for held in ended:
            if held is not None:
                held()

    def close(self) -> None:
        """Frees what is idle and keeps nothing that comes back later."""
        with self._lock:
            self._max_idle_bytes = 0
            idle, self._idle = self._idle, defaultdict(list)
            self.idle_bytes = 0
        for blocks in idle.values():
            for block in blocks:
                block.free()

    def _device(self) -> contextlib.AbstractContextManager[Any]:
        """Makes the device of the copies the thread's current one for a while: calls to CUDA make a context on whichever is."""
        if self._copies is None:
            return _NOTHING
        import torch

        return torch.cuda.device(self._copies.device)

    def _take(self, capacity: int) -> _Block:
        with self._lock:
            self.leased_bytes += capacity
            idle = self._idle[capacity]
            # Oldest first: the longest gone is the likeliest to be free of copies still under way.
            for i, block in enumerate(idle):
                if block.ready():
                    self.idle_bytes -= capacity
                    self.num_reused += 1
                    return idle.pop(i)
        try:
            block = _Block(capacity, self._copies, self._arena)
        except MemoryError:
            with self._lock:
                self.leased_bytes -= capacity
            raise
        with self._lock:
            self.num_new += 1
        return block

    def _give_piece_back(self, block: _Block, pieces: _Pieces, address: int) -> None:
        with self._lock:
            self._locked.pop(address, None)
            pieces.num_held -= 1
            last = not pieces.num_held
        if last:
            self._give_back(block, address)

    def _give_back(self, block: _Block, address: int) -> None:
        # Runs wherever the last reference dies, also inside this pool's own methods: hence the re-entrant lock.
        with self._device():
            block.release()
        with self._lock:
            self._held.pop(address, None)
            self._locked.pop(address, None)
            self.leased_bytes -= block.capacity
            if block.forked():
                return
            if self.idle_bytes + block.capacity <= self._max_idle_bytes:
                self._idle[block.capacity].append(block)
                self.idle_bytes += block.capacity
                return
        block.free()


def _whole_lines(num_bytes: int) -> NDArray[np.uint8]:
    """Returns memory that starts on a line of the processor's caches: what goes past these goes line by line."""
    spare = np.empty(num_bytes + _LINE_BYTES, dtype=np.uint8)
    start = -spare.__array_interface__["data"][0] % _LINE_BYTES
    return spare[start : start + num_bytes]


class _Pieces:
    """How many arrays of one block somebody holds."""

    def __init__(self, num_held: int) -> None:
        self.num_held = num_held


class _Block:
    """A piece of memory, page-locked, shared or plain."""

    def __init__(self, capacity: int, copies: torch.cuda.Stream | None, arena: SharedArena | None) -> None:
        self.capacity = capacity
        self._released: torch.cuda.Event | None = None
        self._copies = copies
        self._arena = arena
        self.tensor: Any = None
        """The same memory, where it is page-locked."""
        if arena is not None:
            self._start = arena.take(capacity)
            self._num_forks = 0
            self.memory = arena.view[self._start : self._start + capacity]
            return
        if copies is None:
            self.memory = _whole_lines(capacity).data
            return
        import torch

        self.tensor = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
        self.memory = self.tensor.numpy().data

    def release(self) -> None:
        """Notes where the stream of the copies stands: one from this memory may still be under way."""
        if self._copies is not None:
            import torch

            self._released = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._released.record(self._copies)

    def lend(self) -> None:
        """Notes that the memory belongs to an array from now on."""
        if self._arena is not None:
            self._num_forks = self._arena.num_forks

    def forked(self) -> bool:
        """Tells whether a forked child may still hold this memory, which is shared with it: then nobody may write to it."""
        return self._arena is not None and self._arena.num_forks != self._num_forks

    def free(self) -> None:
        """Gives memory back that no array shares any more."""
        if self._arena is not None:
            self._arena.give_back(self._start, self.capacity)

    def ready(self) -> bool:
        """Tells whether all copies begun before the release are done."""
        return self._released is None or bool(self._released.query())  # type: ignore[no-untyped-call]
