"""Pieces: all samples once for any number of ranks, and what is left is what was not done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardload.inference.pieces import Pieces, default_piece_samples


@given(st.integers(0, 400), st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.data())
def test_ranks_share_what_is_left(num_samples, piece_samples, num_replicas, batch_size, data):
    pieces = Pieces(num_samples, piece_samples)
    done = {piece: data.draw(st.integers(0, pieces.size(piece))) for piece in range(len(pieces))}
    ranks = [pieces.left(num_replicas, rank, done, batch_size) for rank in range(num_replicas)]
    found = [batch for spans in ranks for batch in spans.batches(0, lambda positions: positions)]
    wanted = [i for i in range(num_samples) if i - i // piece_samples * piece_samples >= done[i // piece_samples]]
    assert sorted(i for batch in found for i in batch.positions.tolist()) == wanted
    for spans in ranks:
        mine = [i for batch in spans.batches(0, lambda positions: positions) for i in batch.positions.tolist()]
        assert mine == sorted(mine)
    for batch in found:
        first, last = int(batch.positions[0]), int(batch.positions[-1])
        assert first // piece_samples == last // piece_samples, "no batch is of two pieces"
        assert (first % piece_samples) // batch_size == (last % piece_samples) // batch_size
    # What nobody has begun is shared evenly.
    sizes = [pieces.left(num_replicas, rank, {}, batch_size).num_samples for rank in range(num_replicas)]
    assert max(sizes) - min(sizes) <= piece_samples


@given(st.integers(0, 10**10), st.integers(1, 100_000))
def test_pieces_are_whole_batches(num_samples, batch_size):
    size = default_piece_samples(num_samples, batch_size)
    assert size % batch_size == 0 and size >= 1024
    assert size <= (1 << 16) + batch_size
