"""Randomness that belongs to a sample, not to whoever happens to process it."""

from __future__ import annotations

import hashlib

import numpy as np


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """Returns the generator of one sample in one epoch: equal for any thread, worker, rank and resume.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the first 128 bits of a
    BLAKE2b over seed, epoch and sample id.
    """
    key = hashlib.blake2b(f"shardload sample {seed} {epoch} {sample_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)))
