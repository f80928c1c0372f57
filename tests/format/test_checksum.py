from __future__ import annotations

import struct

import numpy as np
import pytest
from google_crc32c import value
from hypothesis import given
from hypothesis import strategies as st

from shardload.format.checksum import block_sum, data_sums, identity_sum, identity_sums, joined_sums, rows_match

NUMBERS = st.integers(0, (1 << 32) - 1)
IDENTITIES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)


def bitwise(data: bytes) -> int:
    """CRC32C as its definition says, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def plain_sums(rows: np.ndarray) -> np.ndarray:
    return np.array([value(row.tobytes()) for row in rows], dtype=np.uint32)


def random_rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


def test_known_sums() -> None:
    assert bitwise(b"123456789") == value(b"123456789") == 0xE3069283
    assert block_sum(b"data", identity_sum(1, 2, 3, 4, 5)) == bitwise(struct.pack("<5I", 1, 2, 3, 4, 5) + b"data")


@given(IDENTITIES, NUMBERS, st.binary(max_size=99))
def test_a_sum_is_over_identity_and_data(identity: tuple[int, int, int, int], local_id: int, data: bytes) -> None:
    expected = bitwise(struct.pack("<5I", *identity, local_id) + data)
    assert block_sum(data, identity_sum(*identity, local_id)) == expected
    assert block_sum(np.frombuffer(data, np.uint8), identity_sum(*identity, local_id)) == expected


@given(IDENTITIES, st.lists(NUMBERS, max_size=40))
def test_many_identities(identity: tuple[int, int, int, int], local_ids: list[int]) -> None:
    sums = identity_sums(*identity, np.array(local_ids, dtype=np.int64))
    assert sums.dtype == np.uint32
    assert sums.tolist() == [identity_sum(*identity, local_id) for local_id in local_ids]


@given(IDENTITIES, st.integers(0, 3000), st.integers(0, 6), st.integers(0, 99))
def test_identity_is_taken_out(identity: tuple[int, int, int, int], size: int, count: int, seed: int) -> None:
    """Of blocks of one shard, and of several."""
    generation, unit, part, field = identity
    rows, local_ids = random_rows(count, size, seed), np.arange(count) * 77_777
    for units in (np.zeros(count, int), np.arange(count) % 3):
        sums = [identity_sums(generation, unit ^ own, part, field, local_ids) for own in range(3)]
        bases = np.array(
            [identity_sum(generation, unit ^ own, part, field, 0) for own in units.tolist()], dtype=np.uint32
        )
        own = (int(sums[own][i]) for i, own in enumerate(units.tolist()))
        stored = np.array([block_sum(row, i) for row, i in zip(rows, own, strict=True)], dtype=np.uint32)
        assert data_sums(stored, bases, local_ids, size).tolist() == plain_sums(rows).tolist()


@pytest.mark.parametrize("size", [1, 2, 511, 512, 4096, 150_528])
def test_identity_is_taken_out_of_sums_over_large_blocks(size: int) -> None:
    rows = random_rows(3, size)
    identities = identity_sums(1, 2, 3, 4, np.arange(3))
    stored = np.array([block_sum(row, int(i)) for row, i in zip(rows, identities, strict=True)], dtype=np.uint32)
    bases = np.full(3, identity_sum(1, 2, 3, 4, 0), dtype=np.uint32)
    assert data_sums(stored, bases, np.arange(3), size).tolist() == plain_sums(rows).tolist()


@given(st.integers(0, 40), st.integers(1, 600), st.integers(0, 99))
def test_whole_buffers(count: int, size: int, seed: int) -> None:
    rows = random_rows(count, size, seed)
    sums = plain_sums(rows)
    assert rows_match(rows, sums)
    if count == 0:
        return
    rng = np.random.default_rng(seed)
    row, place, bit = int(rng.integers(count)), int(rng.integers(size)), int(rng.integers(8))
    flipped = rows.copy()
    flipped[row, place] ^= 1 << bit
    assert not rows_match(flipped, sums)
    wrong = sums.copy()
    wrong[row] ^= np.uint32(1 << int(rng.integers(32)))
    assert not rows_match(rows, wrong)


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 3), st.integers(0, 99))
def test_sums_of_rows_are_joined(count: int, size: int, num_buffers: int, seed: int) -> None:
    """Of several buffers at once, however many rows a buffer has."""
    rows = random_rows(num_buffers * count, size, seed)
    joined = joined_sums(plain_sums(rows).reshape(num_buffers, count), size)
    assert joined.tolist() == [block_sum(whole.reshape(-1), 0) for whole in rows.reshape(num_buffers, count, size)]


def test_every_flipped_bit() -> None:
    rows = random_rows(4, 40)
    sums = plain_sums(rows)
    for place in range(rows.size):
        for bit in range(8):
            flipped = rows.copy()
            flipped.reshape(-1)[place] ^= 1 << bit
            assert not rows_match(flipped, sums)


def test_rows_and_sums_of_other_places() -> None:
    rows = random_rows(9, 512)
    sums = plain_sums(rows)
    for one, other in ((0, 1), (0, 8), (3, 7)):
        order = np.arange(9)
        order[[one, other]] = order[[other, one]]
        assert not rows_match(np.ascontiguousarray(rows[order]), sums)
        assert not rows_match(rows, sums[order])
        assert rows_match(np.ascontiguousarray(rows[order]), sums[order])
    assert not rows_match(np.ascontiguousarray(np.roll(rows, 1, axis=0)), sums)


def test_a_sound_row_of_another_place_fails() -> None:
    """Two rows of equal content: their stored sums differ by identity, so one cannot stand for the other."""
    rows = np.ascontiguousarray(np.repeat(random_rows(1, 512), 2, axis=0))
    identities = identity_sums(1, 0, 0, 2, np.arange(2))
    stored = np.array([block_sum(row, int(i)) for row, i in zip(rows, identities, strict=True)], dtype=np.uint32)

    def plain(stored: np.ndarray, *identity: int) -> np.ndarray:
        return data_sums(stored, np.full(2, identity_sum(*identity, 0), dtype=np.uint32), np.arange(2), 512)

    assert rows_match(rows, plain(stored, 1, 0, 0, 2))
    assert not rows_match(rows, plain(stored[::-1].copy(), 1, 0, 0, 2))
    for other in ((2, 0, 0, 2), (1, 1, 0, 2), (1, 0, 1, 2), (1, 0, 0, 3)):
        assert not rows_match(rows, plain(stored, *other))
