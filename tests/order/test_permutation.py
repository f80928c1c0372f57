"""The keyed permutation: a bijection with an inverse, fixed for ever, and whatever else it promises but randomness."""

import hashlib
import json
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardload.order import RECIPE, Permutation, permutation

GOLDEN = json.loads(Path(__file__).with_name("golden_permutation.json").read_text())
MAX = 2**63 - 1
EDGES = sorted({1, 2, 3, *(2**w + d for w in (2, 3, 8, 12, 16, 17, 18, 20) for d in (-1, 0, 1)), 65_535, 65_537, 10**6})


class Reference:
    """Recipe 1 in plain Python integers, written from the module docstring alone."""

    def __init__(self, n, seed, epoch):
        text = f"shardload order recipe=1 num_samples={n} seed={seed} epoch={epoch}"
        stream = hashlib.shake_256(text.encode()).digest(72)
        self.n, w = n, (n - 1).bit_length()
        if n <= 65_536:
            k0, k1 = (int.from_bytes(stream[i : i + 8], "little") for i in (0, 8))
            self.table = sorted(range(n), key=lambda i: self.mix(self.mix((i + k0) % 2**64) ^ k1))
        self.k = max(w // 2, w - 31)
        self.radix = (n + 2**self.k - 1) // 2**self.k
        self.words = [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 72, 4)]

    @staticmethod
    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def hash(self, v, i):
        h = (v ^ self.words[2 * i]) * 0x7FEB352D % 2**32
        return (h ^ h >> 16) * (self.words[2 * i + 1] | 1) % 2**32

    def reduce(self, h):
        return h * self.radix >> 32 if self.radix > 4096 else (h >> 12) * self.radix >> 20

    def once(self, x, rounds, sign):
        a, b = x % 2**self.k, x >> self.k
        for i in rounds:
            if i % 2 == 0:
                a ^= self.hash(b, i) >> (32 - self.k)
            else:
                b = (b + sign * self.reduce(self.hash(a, i))) % self.radix
        return b * 2**self.k + a

    def sample_id(self, x):
        if self.n <= 65_536:
            return self.table[x]
        x = self.once(x, range(9), 1)
        return x if x < self.n else self.sample_id(x)

    def position(self, x):
        if self.n <= 65_536:
            return self.table.index(x)
        x = self.once(x, range(8, -1, -1), -1)
        return x if x < self.n else self.position(x)


def order(n, seed=0, epoch=0):
    return Permutation(n, seed=seed, epoch=epoch).sample_ids(np.arange(n))


def network_ids(n, seed, positions=None):
    """What the network gives for any size, also below the threshold, where its weaknesses would show first."""
    source = np.arange(n, dtype=np.uint64) if positions is None else positions.astype(np.uint64)
    target, back = np.empty_like(source), np.empty_like(source)
    network = permutation._Network(n, seed, 0)
    network.map_block(source, target, inverse=False)
    network.map_block(target, back, inverse=True)
    np.testing.assert_array_equal(back, source)
    return target.astype(np.int64)


# ------------------------------------------------------------------------------------------------ the recipe is fixed


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['num_samples']}-{row['seed']}-{row['epoch']}")
def test_golden_vectors(row):
    n, start, want = row["num_samples"], row["start"], row["sample_ids"]
    order = Permutation(n, seed=row["seed"], epoch=row["epoch"], recipe=row["recipe"])
    positions = np.arange(start, start + len(want), dtype=np.int64)
    assert order.sample_ids(positions).tolist() == want
    assert order.positions(np.array(want)).tolist() == positions.tolist()
    reference = Reference(n, row["seed"], row["epoch"])
    assert [reference.sample_id(x) for x in positions.tolist()] == want
    assert [reference.position(x) for x in want] == positions.tolist()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 2**64 - 1), st.integers(0, MAX))
def test_equals_reference(data, seed, epoch):
    n = data.draw(st.one_of(st.integers(1, 300), st.integers(65_537, 2**26), st.integers(65_537, MAX)))
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    reference = Reference(n, seed, epoch)
    ids = Permutation(n, seed=seed, epoch=epoch).sample_ids(positions)
    assert ids.tolist() == [reference.sample_id(x) for x in positions]


# ---------------------------------------------------------------------------------------------------------- bijection


@pytest.mark.parametrize(("num_small", "num_large"), [(200, 400), pytest.param(600, 1400, marks=pytest.mark.slow)])
def test_bijection_for_many_sizes(num_small, num_large):
    rng = np.random.default_rng(1)
    sizes = [*EDGES, *rng.integers(1, 65_537, num_small), *rng.integers(65_537, 200_000, num_large)]
    for i, n in enumerate(map(int, sizes)):
        counts = np.bincount(order(n, seed=i), minlength=n)
        assert len(counts) == n, n
        assert (counts == 1).all(), n


def test_network_bijection_for_every_tiny_size():
    for n in range(3, 700):  # the domain is up to a third too large here, so there is much walking
        assert sorted(network_ids(n, n).tolist()) == list(range(n))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, MAX), st.integers(0, 2**64 - 1), st.integers(0, MAX), st.data())
@example(MAX, 2**64 - 1, MAX, None)
def test_inverse(n, seed, epoch, data):
    edge = {0, n // 2, n - 1}
    x = np.array([*edge, *(data.draw(st.lists(st.integers(0, n - 1), max_size=30)) if data else [])], dtype=np.int64)
    p = Permutation(n, seed=seed, epoch=epoch)
    ids, positions = p.sample_ids(x), p.positions(x)
    assert ((ids >= 0) & (ids < n) & (positions >= 0) & (positions < n)).all()
    np.testing.assert_array_equal(p.positions(ids), x)
    np.testing.assert_array_equal(p.sample_ids(positions), x)


@pytest.mark.parametrize("world_size", [1, 3, 8, 17])
def test_ranks_cover_every_sample_once(world_size):
    n = 100_003
    p = Permutation(n, seed=7, epoch=1)
    per_rank = [p.sample_ids(np.arange(rank, n, world_size)) for rank in range(world_size)]
    np.testing.assert_array_equal(np.sort(np.concatenate(per_rank)), np.arange(n))


# ----------------------------------------------------------------------------------------------- requests and results


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1000, 65_537, 200_000, 10**10]), st.lists(st.integers(0, 200_000), max_size=6))
def test_any_slicing_gives_the_same_ids(n, cuts):
    p = Permutation(n, seed=3, epoch=4)
    positions = np.arange(min(n, 200_000))
    pieces = np.split(positions, sorted(cut for cut in cuts if cut <= len(positions)))
    np.testing.assert_array_equal(np.concatenate([p.sample_ids(piece) for piece in pieces]), p.sample_ids(positions))


@pytest.mark.parametrize("block", [1, 2, 7, 4096, 1 << 20])
def test_block_size_does_not_matter(block, monkeypatch):
    p, positions = Permutation(70_000, seed=3, epoch=4), np.arange(60_000, 70_000)
    want = p.sample_ids(positions)
    monkeypatch.setattr(permutation, "BLOCK", block)
    np.testing.assert_array_equal(p.sample_ids(positions), want)


@pytest.mark.parametrize("n", [1000, 70_000])
def test_forms_of_input(n):
    p = Permutation(n, seed=0, epoch=0)
    want = p.sample_ids(np.arange(24))
    for given_ in (
        list(range(24)),
        np.arange(24, dtype=">i4"),
        np.arange(24, dtype=np.uint64),
        np.arange(48)[::2] // 2,
    ):
        np.testing.assert_array_equal(p.sample_ids(given_), want)
    square = p.sample_ids(np.arange(24).reshape(4, 6))
    np.testing.assert_array_equal(square, want.reshape(4, 6))
    assert square.dtype == np.int64
    assert square.flags.writeable
    square[:] = -1  # the caller's own: the next request is not touched by it
    np.testing.assert_array_equal(p.sample_ids(np.arange(24)), want)
    assert p.sample_ids([]).dtype == np.int64
    assert p.sample_ids(np.empty((0, 3), dtype=np.int64)).shape == (0, 3)
    source = np.arange(24)
    p.positions(p.sample_ids(source))
    np.testing.assert_array_equal(source, np.arange(24))


def test_value_semantics():
    p = Permutation(10**10, seed=1, epoch=2)
    copy = pickle.loads(pickle.dumps(p))
    assert copy == p
    assert hash(copy) == hash(p)
    assert len(pickle.dumps(p)) < 300
    np.testing.assert_array_equal(copy.sample_ids([0, 1, 2]), p.sample_ids([0, 1, 2]))
    assert (p.num_samples, p.seed, p.epoch, p.recipe) == (10**10, 1, 2, RECIPE)
    with pytest.raises(AttributeError):
        p.epoch = 3


@pytest.mark.parametrize("n", [5, 70_000])
@pytest.mark.parametrize("bad", [-1, -(2**63), 70_000, MAX, 2**63, 2**64 - 1])
def test_out_of_range_names_the_first_bad_one(n, bad):
    p = Permutation(n, seed=0, epoch=0)
    values = [0, 1, bad, bad] if bad < 2**63 else np.array([0, 1, bad, bad], dtype=np.uint64)
    with pytest.raises(IndexError, match=f"position {bad} is out of range for {n} samples"):
        p.sample_ids(values)
    with pytest.raises(IndexError, match=f"sample id {n} is out of range"):
        p.positions([n - 1, n, n + 1])


def test_empty_and_single():
    with pytest.raises(IndexError, match="position 0 is out of range for 0 samples"):
        Permutation(0, seed=0, epoch=0).sample_ids([0])
    assert Permutation(0, seed=0, epoch=0).sample_ids([]).shape == (0,)
    assert Permutation(1, seed=9, epoch=9).sample_ids([0, 0]).tolist() == [0, 0]


@pytest.mark.parametrize("values", [[1.0], [True], ["1"], [2**64], [None]])
def test_positions_must_be_integers(values):
    with pytest.raises(TypeError, match="positions must be integers"):
        Permutation(100, seed=0, epoch=0).sample_ids(values)


@pytest.mark.parametrize("name, stop", [("num_samples", 2**63), ("seed", 2**64), ("epoch", 2**63)])
def test_arguments_are_checked(name, stop):
    good = {"num_samples": 5, "seed": 0, "epoch": 0}
    Permutation(**good | {name: stop - 1})
    for bad in (-1, stop):
        with pytest.raises(ValueError, match=f"{name} must be between 0 and .*, not {bad}"):
            Permutation(**good | {name: bad})
    for bad in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match=f"{name} must be an int, not {type(bad).__name__}"):
            Permutation(**good | {name: bad})
    for bad in (0, 2, True, 1.0):
        with pytest.raises(ValueError, match="knows recipe 1"):
            Permutation(**good, recipe=bad)


# ------------------------------------------------------------------------------------------------- memory and threads


def test_memory_is_small_and_flat():
    peaks = {}

    def measure(n):  # in a fresh thread, which has no scratch yet
        tracemalloc.start()
        Permutation(n, seed=0, epoch=0).sample_ids(np.arange(n - 1000, n))
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    for n in (10**6, 10**10):
        thread = threading.Thread(target=measure, args=(n,))
        thread.start()
        thread.join()
    assert peaks[10**10] < 200_000
    assert abs(peaks[10**10] - peaks[10**6]) < 20_000


def test_threads_do_not_disturb_each_other():
    jobs = [(n, seed) for seed in range(12) for n in (50, 65_536, 70_001, 10**10)]

    def work(job):
        n, seed = job
        return Permutation(n, seed=seed, epoch=1).sample_ids(np.arange(min(n, 70_000)))

    want = [work(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(work, jobs * 3), want * 3):
            np.testing.assert_array_equal(got, expected)


def test_a_request_within_a_request(monkeypatch):
    p, plain = Permutation(70_000, seed=0, epoch=0), permutation._hash
    want = p.sample_ids(np.arange(5000))
    busy = []

    def interrupted(*args):
        plain(*args)
        if not busy:  # as a signal handler or a finalizer might
            busy.append(None)
            busy.append(p.sample_ids(np.arange(5000, 10_000)))

    monkeypatch.setattr(permutation, "_hash", interrupted)
    np.testing.assert_array_equal(p.sample_ids(np.arange(5000)), want)
    np.testing.assert_array_equal(p.positions(busy[1]), np.arange(5000, 10_000))
