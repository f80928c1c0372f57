"""The keyed permutation is a shuffle that statistics cannot tell from a true one.

Seeds are fixed, so every test gives one and the same answer on every machine. A test takes one p-value a seed and holds
all of them against the uniform distribution (Kolmogorov-Smirnov). Each was seen to pass for numpy's own permutations
(`test_control`) and to fail for too few rounds, or for keys that forget the seed, the epoch or the round.
"""

import itertools
from math import factorial

import numpy as np
import pytest
from scipy import stats

from shardload.order import Permutation, permutation

SUSPICIOUS = 1e-4  # about a hundred and fifty p-values of p-values are looked at
BATCH, SHARDS = 256, 1024


def share(values, n, bins):
    """Which of `bins` equal shares of [0, n) each value lies in."""
    return np.minimum((values.astype(np.float64) * (bins / n)).astype(np.int64), bins - 1)


def table_p(rows, columns, num_rows, num_columns):
    """Independence of two labels, with both margins fixed: exact mean and variance of chi-square (Dawson 1954)."""
    seen = np.bincount(rows * num_columns + columns, minlength=num_rows * num_columns)
    seen = seen.reshape(num_rows, num_columns).astype(np.float64)
    seen = seen[seen.any(axis=1)][:, seen.any(axis=0)]
    total, by_row, by_column = seen.sum(), seen.sum(1), seen.sum(0)
    expected = by_row[:, None] * by_column / total
    chi2 = ((seen - expected) ** 2 / expected).sum()
    (v1, u1), (v2, u2) = (
        ((len(m) - 1) * (total - len(m)) / (total - 1), (total * (1 / m).sum() - len(m) ** 2) / (total - 2))
        for m in (by_row, by_column)
    )
    mean = total / (total - 1) * (len(by_row) - 1) * (len(by_column) - 1)
    variance = 2 * total / (total - 3) * (v1 - u1) * (v2 - u2) + total**2 / (total - 1) * u1 * u2
    if mean > 3000:  # then it is normal
        return stats.norm.sf((chi2 - mean) / variance**0.5)
    return stats.chi2.sf(chi2 * 2 * mean / variance, 2 * mean**2 / variance)


def flat_p(labels, bins):
    return stats.chisquare(np.bincount(labels, minlength=bins)).pvalue


def correlation_p(x, y):
    z = np.corrcoef(x.astype(np.float64), y.astype(np.float64))[0, 1] * (len(x) - 1) ** 0.5
    return 2 * stats.norm.sf(abs(z))


def difference_p(x, y, n):
    gap = x - y  # at most 2**63 in size, and wrapping is right for it
    return flat_p(share(np.where(gap < 0, gap + n, gap), n, 64), 64)


def diversity_p(ids, n):
    """Q3: distinct shards in batches, mean against the hypergeometric expectation."""
    batches = np.sort(share(ids[: len(ids) // BATCH * BATCH], n, SHARDS).reshape(-1, BATCH))
    distinct = (np.diff(batches) > 0).sum(1) + 1
    one, two = (np.exp(np.log1p(-np.arange(BATCH) / n - j / SHARDS).sum() - _falling(n)) for j in (1, 2))
    mean, variance = SHARDS * (1 - one), SHARDS * one * (1 - one) + SHARDS * (SHARDS - 1) * (two - one * one)
    return 2 * stats.norm.sf(abs(distinct.mean() - mean) / (variance / len(distinct)) ** 0.5)


def _falling(n):
    return np.log1p(-np.arange(BATCH) / n).sum()


def p_values(ids, n, low_bits, next_epoch, next_seed):
    """By name, p-values of one order (or one stretch of it) and of its neighbours in epoch and seed."""
    place, low = np.arange(len(ids)), ids & (2**low_bits - 1)
    found = {
        "position, source": table_p(share(place, len(ids), 32), share(ids, n, 32), 32, 32),
        "next, pair": table_p(share(ids[:-1], n, 16), share(ids[1:], n, 16), 16, 16),
        "next, difference": difference_p(ids[1:], ids[:-1], n),
        "next, xor": table_p(share(place[1:], len(ids), 4), (low[1:] ^ low[:-1]) >> (low_bits - 5), 4, 32),
        "next, lowest bits of xor": table_p(share(place[1:], len(ids), 4), (low[1:] ^ low[:-1]) & 31, 4, 32),
        "lag 1": correlation_p(ids[1:], ids[:-1]),
        "lag 8": correlation_p(ids[8:], ids[:-8]),
        "diversity": diversity_p(ids, n),
    }
    for m in (2, 7, 8, 64):
        found[f"rank of {m}, source"] = table_p(place % m, share(ids, n, 16), m, 16)
        found[f"rank of {m}, id mod {m}"] = table_p(place % m, ids % m, m, m)
        found[f"id mod {m}, next"] = table_p(ids[:-1] % m, ids[1:] % m, m, m)
    for name, other in {"epoch": next_epoch, "seed": next_seed}.items():
        found[f"{name}, correlation"] = correlation_p(ids, other)
        found[f"{name}, source"] = table_p(share(ids, n, 16), share(other, n, 16), 16, 16)
        found[f"{name}, difference"] = difference_p(ids, other, n)
    return found


def sides_p(ids, n, low_bits):
    """Pairs that share a side before and after the network, which is where too few rounds show first."""
    place, mask, radix = np.arange(n), 2**low_bits - 1, -(-n // 2**low_bits)
    a, b, c, d = place & mask, place >> low_bits, ids & mask, ids >> low_bits
    lows, highs = {"a": a, "c": c, "a^c": a ^ c}, {"b": b, "d": d, "d-b": (d - b) % radix}
    pairs = [pair for pair in itertools.product(lows, highs) if pair not in (("a", "b"), ("c", "d"))]
    found = {f"{x}, {y}": table_p(highs[y], lows[x], radix, mask + 1) for x, y in pairs}
    half = np.roll(ids, -(2 ** (low_bits - 1)))
    return found | {
        "a, c": table_p(a, c, mask + 1, mask + 1),
        "half a row": difference_p(half, ids, n),
        "a row": difference_p(np.roll(ids, -(mask + 1)), ids, n),
        "half of all": difference_p(np.roll(ids, -(n // 2 - 1)), ids, n),
        "displacement": displacement_p(ids, n),
    }


def displacement_p(ids, n):
    """Q4: the mean |id - position| / n is a third; variance of Spearman's footrule (Diaconis and Graham 1977)."""
    total = np.abs(ids - np.arange(n)).sum()
    return 2 * stats.norm.sf(abs(total - (n * n - 1) / 3) / ((n + 1) * (2 * n * n + 7) / 45) ** 0.5)


def assert_uniform(rows):
    """Each row is one seed's p-values by name."""
    bad = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if (p := stats.kstest(values, "uniform").pvalue) < SUSPICIOUS or min(values) < SUSPICIOUS / len(values):
            bad[name] = (f"Kolmogorov-Smirnov {p:.1e}", f"least {min(values):.1e}")
    assert not bad


def order(n, seed, epoch):
    return Permutation(n, seed=seed, epoch=epoch).sample_ids(np.arange(n))


def low_bits_of(n):
    width = (n - 1).bit_length()
    return max(width // 2, width - 31)


def check_whole(n, seeds, order):
    bits, rows = low_bits_of(n), []
    for seed in range(seeds):
        ids = order(n, seed, 0)
        rows.append(p_values(ids, n, bits, order(n, seed, 1), order(n, seed + 1, 0)) | sides_p(ids, n, bits))
    assert_uniform(rows)


@pytest.mark.parametrize("n, seeds", [(50_000, 50), pytest.param(70_001, 200, marks=pytest.mark.slow)])
def test_whole_order(n, seeds):
    check_whole(n, seeds, order)


@pytest.mark.slow
def test_control():
    check_whole(70_001, 200, lambda n, seed, epoch: np.random.default_rng([seed, epoch]).permutation(n))


@pytest.mark.slow
@pytest.mark.parametrize("n, seeds", [(65_537 + 120, 400), (131_071, 200), (131_072, 200), (131_200, 200), (10**6, 60)])
def test_whole_order_of_more_sizes(n, seeds):
    check_whole(n, seeds, order)


def check_stretches(n, seeds, positions):
    rows, bits = [], low_bits_of(n)
    for seed in range(seeds):
        places = positions(np.random.default_rng(seed), n, 2**bits)
        ids, *others = (
            Permutation(n, seed=s, epoch=e).sample_ids(places) for s, e in ((seed, 0), (seed, 1), (seed + 1, 0))
        )
        rows.append(p_values(ids, n, bits, *others))
    assert_uniform(rows)


def in_a_row(rng, n, row):
    return int(rng.integers(0, n - 2**15)) + np.arange(2**15)


def in_a_column(rng, n, row):
    """One position of each row: as a rank takes them whose world size is a power of two."""
    length = min(2**15, n // row - 1)
    return int(rng.integers(0, row)) + row * np.arange(length)


def half_apart(rng, n, row):
    start = int(rng.integers(0, n // 2 - 2**14))
    return (start + np.arange(2**14)[:, None] + np.array([0, n // 2])).reshape(-1)


@pytest.mark.parametrize("n", [10**10, 2**63 - 1])
@pytest.mark.parametrize("positions", [in_a_row, in_a_column])
def test_stretches(n, positions):
    check_stretches(n, 50, positions)


@pytest.mark.slow
@pytest.mark.parametrize(
    "n", [2**24, 2**25 + 12_345, 2**31 - 1, 2**31, 2**31 + 1, 10**9, 2**62, 3 * 2**60 + 5, 2**63 - 1]
)
@pytest.mark.parametrize("positions", [in_a_row, in_a_column, half_apart])
def test_stretches_of_more_sizes(n, positions):
    check_stretches(n, 200, positions)


def test_network_with_short_sides():
    """Below the threshold the network is not used; its faults show there with the least data. Six rounds fail."""
    for n, seeds in ((4_140, 1000), (16_384, 150)):
        rows = []
        for seed in range(seeds):
            source, target = np.arange(n, dtype=np.uint64), np.empty(n, dtype=np.uint64)
            permutation._Network(n, seed, 0).map_block(source, target, inverse=False)
            rows.append(sides_p(target.astype(np.int64), n, low_bits_of(n)))
        assert_uniform(rows)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_tiny_order_is_equally_likely(n):
    found = [tuple(order(n, seed, epoch).tolist()) for seed in range(60) for epoch in range(60)]
    counts = [found.count(one) for one in itertools.permutations(range(n))]
    assert len(counts) == factorial(n)
    assert stats.chisquare(counts).pvalue > SUSPICIOUS


@pytest.mark.parametrize("n", [6, 12, 20])
def test_every_place_is_equally_likely(n):
    orders = np.array([order(n, seed, 3) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=n) for column in orders.T])
    chi2 = ((counts - len(orders) / n) ** 2).sum() / (len(orders) / n)
    assert stats.chi2.sf(chi2 * (n - 1) / n, (n - 1) ** 2) > SUSPICIOUS


@pytest.mark.parametrize("n", [65_537, 10**6, 10**10, 2**63 - 1])
def test_fixed_positions_over_many_keys(n):
    """One position's id over seeds and epochs, and the difference of two positions' ids, are uniform."""
    row = 2 ** low_bits_of(n)
    places = np.array([0, 1, 2, row, 2 * row, n // 2, n - 1])
    ids = np.array([Permutation(n, seed=s, epoch=e).sample_ids(places) for s in range(1500) for e in range(3)])
    rows = {f"{i}": flat_p(share(ids[:, i], n, 64), 64) for i in range(len(places))}
    for i, j in itertools.combinations(range(len(places)), 2):
        rows[f"{i} {j}"] = difference_p(ids[:, i], ids[:, j], n)
    for i in range(len(places)):
        rows[f"epochs {i}"] = difference_p(ids[1:, i], ids[:-1, i], n)
        rows[f"seeds {i}"] = difference_p(ids[3:, i], ids[:-3, i], n)
    assert min(rows.values()) > SUSPICIOUS, min(rows, key=rows.get)
    assert stats.kstest(list(rows.values()), "uniform").pvalue > SUSPICIOUS


def test_neighbours_share_as_few_positions_as_chance_has_it():
    n, shared = 70_001, 0
    for seed in range(100):
        ids = order(n, seed, 0)
        shared += int((ids == order(n, seed, 1)).sum() + (ids == order(n, seed + 1, 0)).sum())
    assert 140 < shared < 260  # Poisson, mean 200


def entropy(gaps):
    """Q2: bits of the distribution of the sizes of the gaps, in 256 equal shares of their range."""
    share_of = np.bincount((np.abs(gaps) * 256 // (np.abs(gaps).max() + 1)).astype(np.int64)) / len(gaps)
    return -(share_of[share_of > 0] * np.log2(share_of[share_of > 0])).sum()


def shuffle_entropy(ids, n):
    return stats.hmean([entropy(np.diff(ids)), entropy(np.diff(share(ids, n, SHARDS)))])


@pytest.mark.parametrize("n", [50_000, 70_001, 10**6])
def test_entropy_equals_that_of_a_true_permutation(n):
    truth = shuffle_entropy(np.random.default_rng(0).permutation(n), n)
    assert shuffle_entropy(order(n, 0, 0), n) == pytest.approx(truth, rel=0.002)
