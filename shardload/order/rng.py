"""Randomness that belongs to a sample, not to whoever happens to process it."""

from __future__ import annotations

import hashlib

import numpy as np


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """Returns the generator of one sample in one epoch: equal for any thread, worker, rank and resume.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by `sample_key`.
    """
    return _philox(sample_key(seed, epoch, sample_id))


def sample_key(seed: int, epoch: int, sample_id: int) -> bytes:
    """Returns the key of one sample in one epoch: the first 16 bytes of a BLAKE2b over the three numbers."""
    return hashlib.blake2b(f"shardload sample {seed} {epoch} {sample_id}".encode(), digest_size=16).digest()


def decode_rng(seed: int, epoch: int, sample_id: int, field: str) -> np.random.Generator:
    """Returns the generator for decoding one field of a sample in one epoch; another one than the transform's."""
    text = f"shardload decode {seed} {epoch} {sample_id} {field}"
    return _philox(hashlib.blake2b(text.encode(), digest_size=16).digest())


def batch_rng(seed: int, epoch: int, cursor: int, rank: int) -> np.random.Generator:
    """Returns the generator of one rank's batch, by the cursor after it: equal for any thread and resume."""
    text = f"shardload batch {seed} {epoch} {cursor} {rank}"
    return _philox(hashlib.blake2b(text.encode(), digest_size=16).digest())


def stand_in_ids(seed: int, epoch: int, sample_id: int, num_samples: int, count: int) -> list[int]:
    """Returns different samples to be tried in the place of one that cannot be used, in turn: any but itself.

    They depend on nothing else, so that a resume and any number of ranks find the same; and they are drawn, not neighbours,
    since damage lies in patches.
    """
    text = f"shardload stand-in {seed} {epoch} {sample_id}"
    rng = _philox(hashlib.blake2b(text.encode(), digest_size=16).digest())
    drawn = rng.choice(num_samples - 1, min(count, num_samples - 1), replace=False)
    return [i + (i >= sample_id) for i in drawn.tolist()]


def _philox(key: bytes) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)))
