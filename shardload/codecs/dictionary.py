"""Trained zstd dictionaries: short records compress far better against what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import zstandard

from shardload.codecs import make_codec
from shardload.errors import PackError

DictionaryMode = Literal["auto", "on", "off"]

TRAINING_BYTES = 16 << 20
"""A dictionary is trained on so many bytes at the start of the first unit."""
DICTIONARY_BYTES = 112_640
"""Size of a dictionary, zstd's own default, ..."""
SHARD_FRACTION = 64
"""... but at most this fraction of a shard, since every shard carries it."""

# One in so many samples is held out, to be measured on.
_HELD_OUT = 8
_MIN_SAVING = 0.05
# Fewer, or shorter altogether, and what is learnt is the samples themselves.
_MIN_SAMPLES = 256
_MIN_BYTES = 256 << 10
# Segment and d-mer length of zstd's cover algorithm. Fixed, as a search for better ones takes longer than it saves.
_SEGMENT_BYTES, _MATCH_BYTES = 200, 8


def check_dictionary(mode: str, compression: str) -> DictionaryMode:
    """Returns the mode.

    Raises:
        ValueError: there is no such mode, or a dictionary is asked for without compression.
    """
    if mode not in get_args(DictionaryMode):
        raise ValueError(f"dictionary must be one of {', '.join(get_args(DictionaryMode))}, not {mode!r}")
    if mode == "on" and compression == "none":
        raise ValueError("dictionary='on' needs compression, such as zstd:3, but that is none")
    return mode  # type: ignore[return-value]


def choose_dictionary(samples: Sequence[bytes], compression: str, mode: DictionaryMode, shard_size: int) -> bytes:
    """Returns a dictionary for samples like the given ones, or nothing where it does not pay.

    The same samples always give the same bytes, with one version of libzstd.

    Args:
        samples: what is compressed of each sample; some are held out from the training to measure on.
        compression: `zstd:<level>`.
        mode: `auto` keeps a dictionary if it makes the held-out samples at least 5 % smaller; `on` keeps any.
        shard_size: most bytes of a shard.

    Raises:
        PackError: a dictionary is asked for (`on`), and there is too little to train it on.
    """
    if mode == "off" or compression == "none":
        return b""
    training = [sample for i, sample in enumerate(samples) if i % _HELD_OUT and sample]
    held_out = [sample for i, sample in enumerate(samples) if i % _HELD_OUT == 0 and sample]
    size = min(DICTIONARY_BYTES, shard_size // SHARD_FRACTION)
    enough = len(training) >= _MIN_SAMPLES and sum(map(len, training)) >= _MIN_BYTES
    dictionary = _train(training, size) if enough or mode == "on" else b""
    if mode == "on" and not dictionary:
        raise PackError(
            f"a dictionary cannot be trained: {len(training)} samples of {sum(map(len, training))} bytes for a dictionary "
            f"of {size} bytes are too little; use --dictionary auto or off"
        )
    if mode == "auto" and dictionary and not _pays(held_out, compression, dictionary):
        return b""
    return dictionary


def _train(samples: Sequence[bytes], size: int) -> bytes:
    try:
        trained = zstandard.train_dictionary(size, list(samples), k=_SEGMENT_BYTES, d=_MATCH_BYTES, dict_id=1)
    except (zstandard.ZstdError, MemoryError, ValueError):
        return b""
    return bytes(trained.as_bytes())


def _pays(samples: Sequence[bytes], compression: str, dictionary: bytes) -> bool:
    without, with_ = make_codec(compression), make_codec(compression, dictionary)
    assert without is not None and with_ is not None
    sizes = [sum(min(len(codec.compress(s)), len(s)) for s in samples) for codec in (without, with_)]
    return sizes[1] <= (1 - _MIN_SAVING) * sizes[0]
