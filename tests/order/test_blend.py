"""Shares of sources: within one sample of what was asked for at every position, and the same from wherever it is looked at."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.blend import FINE, FINE_BITS, LEAST_SHARE, TABLE_MAX, Blend


def random_weights(number: int) -> list[float]:
    """Weights as people have them: any floats, steep ones, whole numbers, decimals, powers of sizes."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(1, 13))
    kind = number % 5
    if kind == 0:
        return rng.random(count).tolist()
    if kind == 1:
        return (rng.dirichlet(np.full(count, 0.3)) + 1e-5).tolist()
    if kind == 2:
        return rng.integers(1, 40, count).tolist()
    if kind == 3:
        return [round(float(w), 2) for w in rng.random(count) + 0.01]
    return (rng.integers(1_000, 10_000_000, count) ** 0.7).tolist()


def one_after_the_other(parts: tuple[int, ...], num_positions: int) -> list[int]:
    """The rule of the module, slot by slot with exact fractions."""
    period, gap = sum(parts), max(1, 2 * len(parts) - 2)
    margin = Fraction(1, gap) if period <= TABLE_MAX else Fraction(period // gap, period)
    shares = [Fraction(part, period) for part in parts]
    counts, chosen = [0] * len(parts), []
    for slot in range(num_positions):
        open_draws = [
            ((count + 1 - margin) // share, source)
            for source, (share, count) in enumerate(zip(shares, counts, strict=True))
            if share * (slot + 1) - count >= margin
        ]
        last, source = min(open_draws)
        assert last >= slot
        counts[source] += 1
        chosen.append(source)
    return chosen


def begun_anew(parts: tuple[int, ...], num_positions: int) -> list[int]:
    """The rule with rounds of a short period that begin at other places, position by position."""
    base, period = one_after_the_other(parts, sum(parts)), sum(parts)
    ahead = [[base[:p].count(s) * period - part * p for s, part in enumerate(parts)] for p in range(period)]
    good = []
    for begin in range(period):
        off = [[later[s] - ahead[begin][s] for s in range(len(parts))] for later in ahead]
        if max(map(max, off)) <= period and min(map(min, off)) >= -period:
            good.append(begin)
    good = good[:: -(-len(good) // 64)]
    chosen = []
    for number in range(-(-num_positions // period)):
        begin = good[splitmix(number) % len(good)]
        chosen += base[begin:] + base[:begin]
    return chosen[:num_positions]


def splitmix(z: int) -> int:
    modulus = 1 << 64
    z = (z + 0x9E3779B97F4A7C15) % modulus
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % modulus
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % modulus
    return z ^ (z >> 31)


@pytest.mark.parametrize("number", range(100))
def test_no_beginning_is_off_by_more_than_one(number):
    weights = random_weights(number)
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    size = 1_200
    blend = Blend.of(weights)
    sources, draws = blend.draws(np.arange(size))
    least = 1 if blend.period <= TABLE_MAX else 1 - 1 / max(1, 2 * len(weights) - 2)
    for source, share in enumerate(shares):
        counts = np.concatenate([[0], np.cumsum(sources == source)])
        assert draws[sources == source].tolist() == list(range(counts[-1]))
        # Exact: counts and positions as multiples of the denominator.
        off = max(abs(int(count) * share.denominator - p * share.numerator) for p, count in enumerate(counts))
        assert Fraction(off, share.denominator) <= least + Fraction(size, FINE)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_the_rule_slot_by_slot(number):
    blend = Blend.of(random_weights(number))
    sources, draws = blend.draws(np.arange(500))
    short = blend.period <= 128
    expected = begun_anew(blend.parts, 500) if short else one_after_the_other(blend.parts, 500)
    if not short and blend.period <= TABLE_MAX:
        return
    assert sources.tolist() == expected
    assert draws.tolist() == [expected[:i].count(source) for i, source in enumerate(expected)]
    place = number % 500
    assert blend.counts(place) == [expected[:place].count(source) for source in range(len(blend.parts))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 10**13), min_size=1, max_size=40))
def test_far_places_in_any_order_and_pieces(number, places):
    blend = Blend.of(random_weights(number))
    sources, draws = blend.draws(np.array(places))
    for place, source, draw in zip(places, sources.tolist(), draws.tolist(), strict=True):
        before, after = blend.counts(place), blend.counts(place + 1)
        assert before[source] == draw
        assert after == [count + (i == source) for i, count in enumerate(before)]
        assert sum(before) == place
        for count, part in zip(before, blend.parts, strict=True):
            assert abs(count * blend.period - part * place) <= blend.period
    near = np.arange(places[0], places[0] + 300)
    whole = np.stack(blend.draws(near))
    pieces = [np.stack(blend.draws(piece)) for piece in np.array_split(near, 7)]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    assert np.array_equal(np.stack(blend.draws(near[::-3])), whole[:, ::-3])


def test_short_periods_are_exact_and_long_ones_fine():
    assert Blend.of([3, 1]).parts == (3, 1)
    assert Blend.of([0.7, 0.2, 0.1]).parts == (7, 2, 1)
    assert Blend.of([1 / 3, 1 / 3, 1 / 3]).parts == (1, 1, 1)
    assert Blend.of([65_535, 1]).period == TABLE_MAX
    odd = Blend.of([65_536, 65_537])
    assert odd.period == FINE == 1 << FINE_BITS
    # However they are held, shares have the same rule.
    for parts in ((3, 1), (1, 1, 2), (5, 2, 1, 8)):
        fine = Blend(tuple(part * (FINE // sum(parts)) for part in parts))
        assert fine.draws(np.arange(800))[0].tolist() == one_after_the_other(parts, 800)


RATIOS = [(3, 1), (1, 1), (1, 1, 1), (7, 2, 1), (1, 1, 1, 1), (5, 3, 2), (15, 1), (501, 499), (7501, 2499), (1.0001, 1)]


@pytest.mark.parametrize("weights", RATIOS)
@pytest.mark.parametrize("num_replicas", [2, 3, 4, 8])
def test_every_rank_has_every_source_in_its_share(weights, num_replicas):
    sources, _ = Blend.of(weights).draws(np.arange(48_000))
    for rank in range(num_replicas):
        found = np.bincount(sources[rank::num_replicas], minlength=len(weights)) / (48_000 / num_replicas)
        assert np.abs(found - np.array(weights) / sum(weights)).max() < 0.03
        # Nor are its batches far from it: on average at most three times as far as by independent draws, which is 0.025.
        mine = sources[rank::num_replicas][: 48_000 // num_replicas // 256 * 256].reshape(-1, 256)
        off = (mine == 0).mean(axis=1) - weights[0] / sum(weights)
        assert np.abs(off).mean() < 0.075


def test_a_source_without_a_share_never_comes():
    blend = Blend.of([0, 2, 0, 1])
    sources, _ = blend.draws(np.arange(9))
    assert np.bincount(sources, minlength=4).tolist() == [0, 6, 0, 3] == blend.counts(9)
    assert np.array_equal(sources, np.array([1, 3])[Blend.of([2, 1]).draws(np.arange(9))[0]])


GOLDEN = {
    (3, 1): "9084342993debfae",
    (7, 2, 1): "b329bae08bb66b2e",
    (2.718281828, 3.14159265, 1.41421356, 0.57721566): "80d25ad41812a8da",
    (1e-4, 1, 1): "3d0838ba4e152ae4",
}


@pytest.mark.parametrize("weights", GOLDEN, ids=str)
def test_golden(weights):
    positions = np.concatenate([np.arange(5_000), np.arange(10**10, 10**10 + 5_000)])
    drawn = np.stack(Blend.of(weights).draws(positions)).astype("<i8")
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == GOLDEN[weights]


def test_some_by_hand():
    assert "".join("ab"[i] for i in Blend.of([3, 1]).draws(np.arange(24))[0]) == "aaababaabaaaabaabaaabaaa"
    assert "".join("abc"[i] for i in Blend.of([1, 1, 1]).draws(np.arange(15))[0]) == "bcacabbcaabcbca"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "no shares"),
        ((0, 0), "no shares"),
        ((-1, 2), "no shares"),
        ((1,) * 65, "no shares"),
        ((LEAST_SHARE * 4, FINE - LEAST_SHARE * 4 - 1, 1), "less than"),
        ((70_000, 1), "parts together"),
    ],
)
def test_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Blend(parts)
