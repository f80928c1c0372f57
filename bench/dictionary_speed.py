"""zstd text of about 1 KB with a trained dictionary against without: bytes and microseconds (P26 of the design).

A case of `bench.pack_speed`. The dictionary is trained on the first 16 MiB of the samples and measured on samples after them,
frame by frame as in records: no dictionary id, no checksum, content size stated. A figure is one call, mean CPU time over all
held-out samples (a few MB, so neither text nor frames sit in the processor's nearest caches alone), one thread, contexts
made once and reused, the dictionary prepared once; the last rows make a context a call, to show why nobody should.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import zstandard

from shardload.codecs.dictionary import choose_dictionary

TRAINING_BYTES = 16 << 20
LEVEL = 3
HELD_OUT = 4096


def train(samples: list[bytes]) -> bytes:
    """Returns the dictionary that shardload would train on these samples."""
    return choose_dictionary(samples, f"zstd:{LEVEL}", "on", shard_size=256 << 20)


def split(samples: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Returns the samples to train on and as many as are timed of those after them."""
    total = 0
    for i, sample in enumerate(samples):
        total += len(sample)
        if total >= TRAINING_BYTES:
            rest = samples[i + 1 :]
            return samples[: i + 1], rest[:: max(1, len(rest) // HELD_OUT)][:HELD_OUT]
    raise ValueError(f"{total} bytes of text are not enough to train on {TRAINING_BYTES} and hold some out")


def compressor(dictionary: bytes | None) -> zstandard.ZstdCompressor:
    """Returns a compressor whose frames are as those of records."""
    settings: dict[str, Any] = {"level": LEVEL, "write_checksum": False, "write_dict_id": False}
    if dictionary is not None:
        settings["dict_data"] = zstandard.ZstdCompressionDict(dictionary)
        settings["dict_data"].precompute_compress(level=LEVEL)
    return zstandard.ZstdCompressor(**settings)


def decompressor(dictionary: bytes | None) -> zstandard.ZstdDecompressor:
    """Returns a decompressor; its dictionary is prepared at the first call and kept."""
    if dictionary is None:
        return zstandard.ZstdDecompressor()
    return zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary))


def mean_microseconds(call: Callable[[bytes], object], values: list[bytes]) -> float:
    """Returns the mean CPU time of one call over all values; nothing here waits, so that leaves out other programs alone."""
    start = time.thread_time()
    for value in values:
        call(value)
    return (time.thread_time() - start) / len(values) * 1e6


def _calls(frames: dict[str, list[bytes]], held: list[bytes], dictionary: bytes) -> dict[tuple[str, str], Any]:
    """Returns what is timed, by (what, arm)."""
    calls: dict[tuple[str, str], Any] = {}
    for arm, used in (("plain", None), ("dictionary", dictionary)):
        calls["compress", arm] = compressor(used).compress, held
        calls["decompress", arm] = decompressor(used).decompress, frames[arm]
    prepared = zstandard.ZstdCompressionDict(dictionary)
    few = slice(0, 256)
    calls["decompress, a context a call", "plain"] = (
        lambda frame: zstandard.ZstdDecompressor().decompress(frame),
        frames["plain"][few],
    )
    calls["decompress, a context a call", "dictionary"] = (
        lambda frame: zstandard.ZstdDecompressor(dict_data=prepared).decompress(frame),
        frames["dictionary"][few],
    )
    return calls


def measure(samples: list[bytes], repeats: int, max_spread: float) -> list[dict[str, Any]]:
    """Returns one row a figure: with the dictionary, without, and the ratio."""
    training, held = split(samples)
    start = time.perf_counter()
    dictionary = train(training)
    seconds = time.perf_counter() - start
    repeated = train(training) == dictionary
    raw_bytes = sum(map(len, held))
    frames = {
        "plain": [compressor(None).compress(sample) for sample in held],
        "dictionary": list(map(compressor(dictionary).compress, held)),
    }
    expand = decompressor(dictionary).decompress
    assert [expand(frame) for frame in frames["dictionary"]] == held
    stored = {arm: sum(map(len, made)) / raw_bytes for arm, made in frames.items()}
    rows: list[dict[str, Any]] = [
        {"what": "training", "seconds": seconds, "bytes": len(dictionary), "same_bytes_again": str(repeated)},
        {"what": "stored / raw bytes"} | stored | {"ratio": stored["dictionary"] / stored["plain"], "claim": True},
    ]
    calls = _calls(frames, held, dictionary)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for repeat in range(repeats + 1):
        for key, (call, values) in calls.items():
            microseconds = mean_microseconds(call, values)
            if repeat:
                times[key].append(microseconds)
    for what in dict.fromkeys(what for what, _ in calls):
        medians = {arm: statistics.median(times[what, arm]) for arm in frames}
        spreads = {arm: (max(times[what, arm]) - min(times[what, arm])) / medians[arm] for arm in frames}
        row = (
            {"what": f"microseconds to {what}"} | medians | {f"{arm}_spread": spread for arm, spread in spreads.items()}
        )
        ratio = medians["dictionary"] / medians["plain"]
        rows.append(row | {"ratio": ratio, "claim": max(spreads.values()) <= max_spread})
    return rows
