"""How the samples of a scan that is written back are cut into pieces: by the samples alone, not by the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardload.order.spans import Span, Spans

NUM_PIECES = 1024
MIN_SAMPLES, MAX_SAMPLES = 1024, 1 << 16
"""Samples of a piece unless told otherwise: a 1024th of all, within these numbers."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Ranges of samples, each of which becomes one unit of the output. Rank r of R has the pieces r, r + R, r + 2 R, ...

    So the ranks go through the samples together, and what is left after they were cut off is shared evenly by any number of
    ranks.
    """

    num_samples: int
    """All samples."""
    piece_samples: int
    """Samples of a piece; the last one may have fewer."""

    def __len__(self) -> int:
        return -(-self.num_samples // self.piece_samples)

    def size(self, piece: int) -> int:
        """Returns the samples of a piece."""
        return min(self.piece_samples, self.num_samples - piece * self.piece_samples)

    def left(self, num_replicas: int, rank: int, done: Mapping[int, int], batch_size: int) -> Spans:
        """Returns what a rank has to do.

        Args:
            num_replicas: ranks that share the pieces.
            rank: one of them.
            done: samples that are written, from the start of each piece on.
            batch_size: most samples of a batch.
        """
        spans = []
        for piece in range(rank, len(self), num_replicas):
            origin, size = piece * self.piece_samples, self.size(piece)
            if (start := done.get(piece, 0)) < size:
                spans.append(Span(origin + start, origin + size, origin))
        return Spans(tuple(spans), batch_size)


def default_piece_samples(num_samples: int, batch_size: int) -> int:
    """Returns the samples of a piece: whole batches."""
    wanted = min(max(-(-num_samples // NUM_PIECES), MIN_SAMPLES), MAX_SAMPLES)
    return -(-wanted // batch_size) * batch_size
