from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import shardload
from shardload.codecs import make_codec
from shardload.codecs.zstd import MAX_WINDOW_BYTES, ZstdCodec, library_version
from shardload.errors import FormatError
from shardload.format import layout

CODEC = ZstdCodec("3")
TEXT = b"the quick brown fox " * 500


def frame_of(data: bytes = TEXT, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["-100", "-5", "0", "1", "3", "19", "22"])
@pytest.mark.parametrize(
    "data", [b"", b"x", TEXT, np.random.default_rng(0).bytes(300_000)], ids=["0", "1", "text", "random"]
)
def test_round_trip(level: str, data: bytes) -> None:
    codec = ZstdCodec(level)
    frame = codec.compress(data)
    assert codec.decompress(frame, len(data)) == codec.decompress(memoryview(frame), len(data)) == data
    assert frame == codec.compress(data) == ZstdCodec(level).compress(data)
    facts = zstandard.get_frame_parameters(frame)
    assert facts.content_size == len(data) and not facts.has_checksum and facts.dict_id == 0


@given(st.binary(max_size=3000))
def test_round_trip_of_anything(data: bytes) -> None:
    assert CODEC.decompress(CODEC.compress(data), len(data)) == data


def test_highest_level_stays_below_the_window() -> None:
    frame = zstandard.ZstdCompressor(level=22).compress(bytes(1 << 20))
    assert zstandard.get_frame_parameters(frame).window_size <= MAX_WINDOW_BYTES
    parameters = zstandard.ZstdCompressionParameters.from_level(22)
    assert 1 << parameters.window_log <= MAX_WINDOW_BYTES


@pytest.mark.parametrize("size", [0, 1, len(TEXT) - 1, len(TEXT) + 1, (1 << 32) - 1, 1 << 64])
def test_another_size(size: int) -> None:
    with pytest.raises(FormatError, match=f"of {len(TEXT)} bytes .* stands where one of {size} was written"):
        CODEC.decompress(CODEC.compress(TEXT), size)


def test_frames_that_are_not_one_whole_frame() -> None:
    frame = CODEC.compress(TEXT)
    for wrong in (
        frame + b"\0",
        frame + b"trailing",
        frame + frame,
        frame + frame_of(b""),
        frame + b"\x50\x2a\x4d\x18\x00\x00\x00\x00",  # a frame to be skipped
        frame[:-1],
        frame[: len(frame) // 2],
        frame[:6],
        frame[:4],
        frame[:1],
        b"",
        b"\0" + frame,
        TEXT,
        b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
        b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + frame,
    ):
        with pytest.raises(FormatError):
            CODEC.decompress(wrong, len(TEXT))
    with pytest.raises(FormatError):
        CODEC.decompress(b"", 0)


def test_every_cut_is_refused() -> None:
    frame = CODEC.compress(TEXT)
    for stop in range(len(frame)):
        with pytest.raises(FormatError):
            CODEC.decompress(frame[:stop], len(TEXT))


def test_a_frame_without_its_size() -> None:
    with pytest.raises(FormatError):
        CODEC.decompress(frame_of(write_content_size=False), len(TEXT))


def test_a_frame_with_a_dictionary() -> None:
    dictionary = zstandard.train_dictionary(1024, [TEXT[n : n + 90] + bytes([n]) for n in range(200)])
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    assert zstandard.get_frame_parameters(frame).dict_id
    with pytest.raises(FormatError, match="dictionary"):
        CODEC.decompress(frame, len(TEXT))


def test_a_window_over_the_limit() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1 << 28)
    frame = compressor.compress(bytes(1 << 18)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert zstandard.get_frame_parameters(frame).window_size > MAX_WINDOW_BYTES
    with pytest.raises(FormatError, match="window"):
        CODEC.decompress(frame, 1 << 28)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damage_never_gives_another_length(place: int, change: int) -> None:
    frame = bytearray(CODEC.compress(TEXT))
    frame[place % len(frame)] ^= change
    with contextlib.suppress(FormatError):
        assert len(CODEC.decompress(bytes(frame), len(TEXT))) == len(TEXT)


BOMBS = """
import resource, sys, zstandard
from shardload.codecs.zstd import ZstdCodec
from shardload.errors import FormatError
GIB = 1 << 30
compressor = zstandard.ZstdCompressor(level=3).compressobj(size=GIB)
frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compressor.flush()
assert len(frame) < 1 << 17 and zstandard.get_frame_parameters(frame).content_size == GIB
# The same blocks under a header that states 1,000 bytes: magic, descriptor with a size of 4 bytes, window, size.
plain = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
blocks = b"".join(plain.compress(bytes(1 << 20)) for _ in range(1 << 10)) + plain.flush()
assert blocks[4] & 0xE0 == 0
liar = blocks[:4] + bytes([blocks[4] | 0x80]) + blocks[5:6] + (1000).to_bytes(4, "little") + blocks[6:]
assert zstandard.get_frame_parameters(liar).content_size == 1000
codec = ZstdCodec("3")
codec.decompress(codec.compress(bytes(1000)), 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in (frame, liar):
    for size in (1000, 0, 1 << 20):
        try:
            codec.decompress(bomb, size)
        except FormatError:
            continue
        sys.exit("not refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_take_no_memory() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(shardload.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", BOMBS], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10  # KiB


def test_threads() -> None:
    wrong: list[int] = []
    # More threads than cores and a codec that is shared: contexts must not be.
    data = [np.random.default_rng(number).bytes(200) * 200 for number in range(8)]

    def work(number: int) -> None:
        for _ in range(40):
            if CODEC.decompress(CODEC.compress(data[number]), len(data[number])) != data[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_codecs_by_name() -> None:
    assert make_codec("none") is None
    codec = make_codec("zstd:-5")
    assert isinstance(codec, ZstdCodec) and codec.level == -5
    again = pickle.loads(pickle.dumps(codec))
    assert again.level == -5 and again.compress(TEXT) == codec.compress(TEXT)
    for name in ("zstd", "zstd:", "zstd:a", "zstd:23", "zstd:-101", "zstd:--3", "zstd:1.5", "zstd:0003", "zstd:+3", "zstd: 3",
                 "zstd:3\n", "zstd:٣", "zstd:²", "zstd:" + "9" * 5000, "lz4:1", "", "NONE", "none:1"):  # fmt: skip
        with pytest.raises(FormatError):
            make_codec(name)


def test_levels_are_those_that_a_manifest_may_name() -> None:
    for level in (layout.MIN_ZSTD_LEVEL, layout.MAX_ZSTD_LEVEL):
        assert ZstdCodec(str(level)).level == level
    for level in (layout.MIN_ZSTD_LEVEL - 1, layout.MAX_ZSTD_LEVEL + 1):
        with pytest.raises(FormatError, match="must be an integer from -100 to 22"):
            ZstdCodec(str(level))


def test_library_version() -> None:
    assert library_version() == ".".join(map(str, zstandard.ZSTD_VERSION))
