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
from hypothesis import given, settings
from hypothesis import strategies as st

import shardload
from shardload.codecs import make_codec, zstd
from shardload.codecs.frames import are_plain_frames
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


def many(frames: list[bytes], gap: bytes = b"") -> tuple[bytes, np.ndarray, np.ndarray]:
    """Frames in one byte string, with other bytes between them, and where they are."""
    lengths = np.array([len(frame) for frame in frames], np.int64)
    stops = np.cumsum(lengths + len(gap))
    return b"".join(gap + frame for frame in frames), stops - lengths, stops


def samples(count: int) -> list[bytes]:
    rng = np.random.default_rng(count)
    return [b"%d " % i * int(rng.integers(1, 400)) + rng.bytes(int(rng.integers(0, 90))) for i in range(count)]


@pytest.mark.parametrize("takes_many", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 700])
@pytest.mark.parametrize("dictionary", [False, True])
def test_many(monkeypatch: pytest.MonkeyPatch, dictionary: bool, count: int, takes_many: bool) -> None:
    monkeypatch.setattr(zstd, "_TAKES_MANY", takes_many)
    data = samples(count)
    trained = zstandard.train_dictionary(2048, samples(300)).as_bytes() if dictionary else b""
    # The size of an id of another kind than ours would be refused; a dictionary without id is what is written.
    codec = ZstdCodec("3", trained)
    frames = [codec.compress(one) for one in data]
    found = codec.decompress_many(*many(frames, b"between"), np.array([len(one) for one in data], np.int64))
    assert b"".join(found) == b"".join(data)
    ends = set(np.cumsum([len(one) for one in data]).tolist())
    assert set(np.cumsum([len(piece) for piece in found]).tolist()) <= ends


def test_many_are_not_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if not zstd._TAKES_MANY:
        pytest.skip("this build of zstandard has no multi_decompress_to_buffer")

    def refuse(*arguments: object) -> bytes:
        raise AssertionError("one by one")

    # Frames with each form of header: sizes of one, two and four bytes.
    data = [bytes(10) * 20, TEXT, np.random.default_rng(0).bytes(1000) * 100, b"x", TEXT * 40]
    frames = [CODEC.compress(one) for one in data]
    assert {frame[4] >> 6 for frame in frames} == {0, 1, 2}
    windowed = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=10))
    frames.append(windowed.compress(TEXT))
    assert not frames[-1][4] & 0x20
    monkeypatch.setattr(ZstdCodec, "decompress", refuse)
    sizes = np.array([*map(len, data), len(TEXT)], np.int64)
    assert b"".join(CODEC.decompress_many(*many(frames), sizes)) == b"".join([*data, TEXT])


def test_frames_by_another_hand_are_taken_one_by_one() -> None:
    # A checksum, more blocks than are looked at, and a size in eight bytes.
    blocks = zstandard.ZstdCompressor().compressobj(size=20 * len(TEXT))
    flushed = b"".join(blocks.compress(TEXT) + blocks.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for _ in range(20))
    plain = b"\x28\xb5\x2f\xfd\xe0" + (3).to_bytes(8, "little") + (3 << 3 | 1).to_bytes(3, "little") + b"abc"
    frames = [frame_of(write_checksum=True), CODEC.compress(TEXT), flushed + blocks.flush(), plain]
    data = [TEXT, TEXT, TEXT * 20, b"abc"]
    for codec_frames, wanted in ((frames, data), (frames[1:3], data[1:3]), (frames[2:], data[2:])):
        found = CODEC.decompress_many(*many(codec_frames), np.array([len(one) for one in wanted], np.int64))
        assert b"".join(found) == b"".join(wanted)


def alike(frames: list[bytes], sizes: list[int]) -> None:
    """Checks that many frames give what they give one by one, content or error."""
    wanted: list[bytes] = []
    failed: tuple[int, str] | None = None
    for i, (frame, size) in enumerate(zip(frames, sizes, strict=True)):
        try:
            wanted.append(CODEC.decompress(frame, size))
        except FormatError as error:
            failed = i, str(error)
            break
    if failed is None:
        assert b"".join(CODEC.decompress_many(*many(frames), np.array(sizes, np.int64))) == b"".join(wanted)
        return
    with pytest.raises(FormatError) as caught:
        CODEC.decompress_many(*many(frames), np.array(sizes, np.int64))
    assert (caught.value.sample_id, str(caught.value)) == failed


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400), st.integers(1, 255)), max_size=3), st.data())
def test_many_damaged_frames_fail_as_one(changes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    texts = [TEXT[:n] for n in (40, 300, 1000, 9000)]
    frames = [bytearray(CODEC.compress(text)) for text in texts]
    for number, place, change in changes:
        # Mostly in the header and the first blocks, where there is something to be understood.
        frames[number][place % min(len(frames[number]), data.draw(st.sampled_from([8, 20, 400])))] ^= change
    alike([bytes(frame) for frame in frames], [len(text) for text in texts])


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(range(0, 256, 16)) | st.integers(0, 255),
    # Windows about the largest.
    st.sampled_from([0x80, 0x87, 0x88, 0x89, 0x8F]) | st.integers(0, 255),
    st.binary(min_size=8, max_size=8),
    st.sampled_from([0, 0, 0, 0, 1, -1]),
    st.binary(max_size=1),
)
def test_headers_are_understood_as_zstd_does(
    descriptor: int, window: int, header: bytes, off: int, behind: bytes
) -> None:
    start = b"\x28\xb5\x2f\xfd" + bytes([descriptor, window]) + header
    try:
        facts = zstandard.get_frame_parameters(start + bytes(9))
        size, good = facts.content_size, not facts.has_checksum and descriptor & 3 == 0 and descriptor >> 6 < 3
        good &= facts.window_size <= MAX_WINDOW_BYTES and size != zstandard.CONTENTSIZE_UNKNOWN
    except zstandard.ZstdError:
        size, good = 0, False
    if size > 1 << 62:
        size, good = 0, False
    # The header as long as it is, then a last block of no bytes.
    length = zstandard.frame_header_size(start + bytes(9)) if good else len(start)
    frame = start[:length] + b"\1\0\0" + behind
    found = are_plain_frames(
        np.frombuffer(frame, np.uint8), np.array([0]), np.array([len(frame)]), np.array([size + off]), MAX_WINDOW_BYTES
    )
    assert found.tolist() == [good and off == 0 and not behind]


def test_one_wrong_frame_among_many_is_named() -> None:
    frame = CODEC.compress(TEXT)
    for wrong in (frame + b"\0", frame + frame, frame[:-1], frame[:6], frame[:4], b"", b"\0" + frame, TEXT[: len(frame)],
                  frame_of(write_content_size=False), frame[:4] + b"\x18" + frame[5:], frame[:9] + b"\x07" + frame[10:],
                  CODEC.compress(TEXT + b"x"), frame + CODEC.compress(b"")):  # fmt: skip
        for place in (0, 3, 299):
            frames = [frame] * 300
            frames[place] = wrong
            alike(frames, [len(TEXT)] * 300)
    alike([frame, frame], [len(TEXT), len(TEXT) + 1])
    alike([frame, frame], [len(TEXT), (1 << 32) - 1])


BOMBS = """
import resource, sys, numpy as np, zstandard
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
            pass
        else:
            sys.exit("not refused")
        ends = np.array([len(bomb), 2 * len(bomb)])
        try:
            codec.decompress_many(bomb * 2, ends - len(bomb), ends, np.array([size, size]))
        except FormatError:
            continue
        sys.exit("not refused among many")
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
            frame, size = CODEC.compress(data[number]), len(data[number])
            if CODEC.decompress(frame, size) != data[number]:
                wrong.append(number)
            if b"".join(CODEC.decompress_many(*many([frame] * 3), np.array([size] * 3))) != data[number] * 3:
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
