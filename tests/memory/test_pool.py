"""Buffers come back when nobody holds them, and never before."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from shardload.memory import BufferPool

INT32 = np.dtype(np.int32)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_reused_after_the_last_reference():
    pool = BufferPool(1 << 20)
    array = pool.lease((4, 8), INT32)
    where = address(array)
    del array
    assert address(pool.lease((4, 8), INT32)) == where
    assert (pool.num_new, pool.num_reused) == (1, 1)


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a)[2:3],
        lambda a: torch.from_numpy(a).view(torch.uint8).view(-1, 4),
        lambda a: torch.from_numpy(a).numpy(),
        lambda a: a[1:2],
        lambda a: a.reshape(-1)[5:].view(np.uint8),
        lambda a: memoryview(a),
    ],
)
def test_any_view_keeps_the_memory(keep):
    pool = BufferPool(1 << 20)
    array = pool.lease((4, 8), INT32)
    where = address(array)
    view = keep(array)
    del array
    gc.collect()
    other = pool.lease((4, 8), INT32)
    assert address(other) != where
    del view
    gc.collect()
    assert address(pool.lease((4, 8), INT32)) == where


def test_idle_memory_is_bounded_and_closing_frees_it():
    pool = BufferPool(8192)
    kept = [pool.lease((4096,), np.dtype(np.uint8)) for _ in range(5)]
    assert pool.leased_bytes == 5 * 4096
    kept.clear()
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 8192)
    late = pool.lease((10,), INT32)
    pool.close()
    del late
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 0)


def test_an_empty_array_can_be_leased():
    array = BufferPool(0).lease((0, 7), INT32)
    assert array.shape == (0, 7)


def test_threads_never_share_a_buffer():
    pool = BufferPool(1 << 20)
    wrong = []

    def work(mark: int) -> None:
        for _ in range(300):
            array = pool.lease((64,), np.dtype(np.int64))
            array[:] = mark
            tensor = torch.from_numpy(array)
            del array
            if not bool((tensor == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert pool.leased_bytes == 0


def test_plain_buffers_are_not_page_locked():
    array = BufferPool(1 << 20).lease((4, 8), INT32)
    assert BufferPool(1 << 20).page_locked(torch.from_numpy(array)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here")
def test_a_locked_buffer_is_known_as_torch_s_own():
    pool = BufferPool(1 << 30, copies=torch.cuda.Stream())
    array = pool.lease((6, 1 << 10), INT32)
    array[:] = np.arange(array.size).reshape(array.shape)
    tensor = torch.from_numpy(array)[2:, ::2]
    locked = pool.page_locked(tensor)
    assert locked is not None and locked.is_pinned()
    assert locked.data_ptr() == tensor.data_ptr() and torch.equal(locked, tensor)
    assert pool.page_locked(torch.zeros(3)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here")
def test_arrays_leased_together_are_locked_each_and_come_back_together():
    stream = torch.cuda.Stream()
    pool = BufferPool(1 << 30, copies=stream)
    arrays = pool.lease_together([(4, 1 << 10), (2, 1 << 10), (1, 1 << 10)], INT32)
    tensors = [torch.from_numpy(array) for array in arrays]
    assert [address(array) - address(arrays[0]) for array in arrays] == [0, 4 << 12, 6 << 12]
    for mark, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        array[:] = np.arange(array.size).reshape(array.shape) + mark
        locked = pool.page_locked(tensor[:, 5:])
        assert locked.is_pinned() and locked.data_ptr() == tensor[:, 5:].data_ptr()
        assert torch.equal(locked, tensor[:, 5:])
    del array, arrays, tensor, locked
    where = tensors[0].data_ptr()
    del tensors[0]
    gc.collect()
    assert pool.leased_bytes == 7 << 12 and pool.page_locked(tensors[0]) is not None
    tensors.clear()
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 7 << 12)
    stream.synchronize()
    assert pool.lease_together([(7, 1 << 10), (0, 1 << 10)], INT32)[0].size and pool.num_new == 2
    assert address(pool.lease((7, 1 << 10), INT32)) == where


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here")
def test_locked_memory_waits_for_the_copies_of_its_stream():
    stream = torch.cuda.Stream()
    pool = BufferPool(1 << 30, copies=stream)
    copies = []
    for mark in range(50):
        array = pool.lease((1 << 20,), np.dtype(np.uint8))
        array[:] = mark
        with torch.cuda.stream(stream):
            if mark == 0:
                # About a tenth of a second in which copies wait: a buffer that came back at once would be written before.
                torch.cuda._sleep(200_000_000)
            copies.append(pool.page_locked(torch.from_numpy(array)).to("cuda", non_blocking=True))
        del array
    stream.synchronize()
    assert [(int(copy.min()), int(copy.max())) for copy in copies] == [(mark, mark) for mark in range(50)]


def test_what_is_taken_back_is_leased_again_while_somebody_holds_it():
    pool = BufferPool(1 << 20, strict=True)
    array = pool.lease((4, 8), INT32)
    array[:] = 1
    tensor, where = torch.from_numpy(array), address(array)
    pool.take_back([where, where, 12345])
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 4096)
    pool.take_back([where])
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 4096)
    other = pool.lease((4, 8), INT32)
    assert address(other) == where
    other[:] = 2
    assert bool((tensor == 2).all())
    # The end of the old holder is not the end of the new one's lease.
    del array, tensor
    gc.collect()
    assert (pool.leased_bytes, pool.idle_bytes) == (4096, 0)
    del other
    gc.collect()
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 4096)


def test_memory_outlives_its_taking_back_where_the_pool_keeps_none():
    pool = BufferPool(0, strict=True)
    array = pool.lease((1 << 20,), np.dtype(np.uint8))
    array[:] = 7
    pool.take_back([address(array)])
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 0)
    gc.collect()
    new = [pool.lease((1 << 20,), np.dtype(np.uint8)) for _ in range(4)]
    for other in new:
        other[:] = 9
    assert bool((array == 7).all())


def test_a_pool_that_is_not_strict_takes_nothing_back():
    pool = BufferPool(1 << 20)
    array = pool.lease((4, 8), INT32)
    pool.take_back([address(array)])
    assert (pool.leased_bytes, pool.idle_bytes) == (4096, 0)


def test_a_strict_pool_forgets_what_has_died():
    pool = BufferPool(8192, strict=True)
    kept = [pool.lease((4096,), np.dtype(np.uint8)) for _ in range(5)]
    assert len(pool._held) == 5
    pool.take_back([address(kept[0])])
    kept.clear()
    gc.collect()
    assert not pool._held
    assert (pool.leased_bytes, pool.idle_bytes) == (0, 8192)


def test_arrays_leased_together_adjoin_and_come_back_when_the_last_of_them_has_died():
    pool = BufferPool(1 << 20)
    arrays = pool.lease_together([(2, 1024), (1, 1024), (2, 1024)], INT32)
    assert [array.shape for array in arrays] == [(2, 1024), (1, 1024), (2, 1024)]
    starts = [address(array) for array in arrays]
    assert starts == [starts[0], starts[0] + 8192, starts[0] + 12288]
    kept = torch.from_numpy(arrays.pop(1))
    kept[...] = 7
    del arrays
    for array in pool.lease_together([(2, 1024), (1, 1024), (2, 1024)], INT32):
        array[...] = 8
    assert kept.eq(7).all() and pool.num_new == 2 and pool.leased_bytes == 40960
    del array
    assert pool.leased_bytes == 20480
    del kept
    assert pool.leased_bytes == 0 and pool.idle_bytes == 40960
    pool.lease((5, 1024), INT32)
    assert (pool.num_new, pool.num_reused) == (2, 1)


def test_arrays_of_odd_sizes_and_of_strict_pools_are_leased_one_by_one():
    pool = BufferPool(1 << 20)
    assert len(pool.lease_together([(0, 1024), (1, 1024)], INT32)) == 2 and pool.num_new == 2
    assert [a.nbytes for a in pool.lease_together([(3,), (5,)], INT32)] == [12, 20]
    strict = BufferPool(1 << 20, strict=True)
    arrays = strict.lease_together([(1, 1024), (1, 1024)], INT32)
    strict.take_back([address(arrays[1])])
    assert strict.leased_bytes == 4096
