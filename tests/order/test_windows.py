"""Windows over a stream: which fit, where they start, and where they are moved to in each epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.blocks import BlockShuffle
from shardload.order.epoch import Reseed
from shardload.order.shuffle import make_orders
from shardload.order.windows import PhasedOrders, WindowGrid, phase_of

GOLDEN_PHASES = [1696, 1185, 437, 905, 707, 1114]
GOLDEN_LARGE = [4770676617, 9443294736, 5431959431]
GOLDEN_ORDER = [37608, 37423, 37449, 37658, 37821, 37539]
GOLDEN_NEXT = [61296, 61448, 61026, 61984, 61762, 61834]

GRIDS = st.builds(
    WindowGrid,
    st.integers(0, 300),
    length=st.integers(1, 40),
    stride=st.integers(1, 50),
    shift=st.integers(0, 6),
    moves=st.booleans(),
)


def fitting(grid: WindowGrid, phase: int) -> list[int]:
    """The starts of all windows of a phase that fit, found one by one."""
    size = grid.length + grid.shift
    return [start for start in range(phase, grid.num_items, grid.stride) if start + size <= grid.num_items]


@given(GRIDS)
@settings(max_examples=300, deadline=None)
def test_as_many_windows_as_fit_at_every_phase(grid):
    counts = [len(fitting(grid, phase)) for phase in range(grid.stride if grid.moves else 1)]
    # Of a stream so short that some phases have no window, only the others are phases.
    counts = [count for count in counts if count] or [0]
    assert grid.num_phases == len(counts) and grid.num_windows == min(counts)
    if not grid.num_windows:
        return
    ids = np.arange(grid.num_phases * grid.num_windows).reshape(grid.num_phases, -1)
    want = [fitting(grid, phase)[: grid.num_windows] for phase in range(grid.num_phases)]
    assert grid.starts(ids).tolist() == want
    covered = {item for start in want[-1] for item in range(start, start + grid.length)}
    if grid.stride <= grid.length:
        assert grid.num_items - len(covered) < (1 + grid.moves) * grid.stride + grid.shift


def test_many_items():
    grid = WindowGrid(10**13, 2048, 2048, 1, moves=True)
    assert (grid.num_phases, grid.num_windows) == (2048, (10**13 - 2048) // 2048)
    last = np.array([grid.num_phases * grid.num_windows - 1])
    assert 0 <= 10**13 - (grid.starts(last)[0] + 2049) < 2048


def test_golden_phases():
    """A run that goes on with a later version must see the same windows."""
    assert [phase_of(0, epoch, 2048) for epoch in range(6)] == GOLDEN_PHASES
    assert [phase_of(seed, 3, 10**10) for seed in (0, 1, 2**64 - 1)] == GOLDEN_LARGE
    assert {phase_of(5, epoch, 7) for epoch in range(200)} == set(range(7)) and phase_of(5, 9, 1) == 0


def test_golden_orders():
    orders = PhasedOrders(1000, make_orders(1000, 4096, True), 64)
    assert orders.order(0, seed=3)(np.arange(6)).tolist() == GOLDEN_ORDER
    assert orders.order(1, seed=3)(np.arange(6)).tolist() == GOLDEN_NEXT
    assert (orders.name, orders.num_positions) == ("phase of 64, shuffle True", 1000)


@pytest.mark.parametrize("shuffle", [True, False, BlockShuffle(20, 4)], ids=str)
def test_an_epoch_has_every_window_of_its_phase_once(shuffle):
    orders = PhasedOrders(500, make_orders(500, 4096, shuffle), 100)
    phases = []
    for epoch in range(5):
        ids = orders.order(epoch, seed=8)(np.arange(500))
        phases.append(phase_of(8, epoch, 100))
        assert sorted(ids.tolist()) == list(range(500 * phases[-1], 500 * phases[-1] + 500))
        assert bool((ids == np.sort(ids)).all()) is (shuffle is False)
    assert len(set(phases)) > 1


def test_a_seed_that_comes_within_an_epoch_moves_no_window_of_it():
    orders, everything = PhasedOrders(500, make_orders(500, 4096, True), 100), np.arange(500)
    reseeds = [Reseed(1, 200, 77)]
    before, after = (orders.order(1, 8, some)(everything) for some in ((), reseeds))
    assert before[:200].tolist() == after[:200].tolist() and before[200:].tolist() != after[200:].tolist()
    assert sorted(before.tolist()) == sorted(after.tolist())
    later = orders.order(2, 8, reseeds)(everything)
    assert later.tolist() == orders.order(2, 77)(everything).tolist()
    assert orders.order(1, 8, [Reseed(1, 0, 77)])(everything).tolist() == orders.order(1, 77)(everything).tolist()
