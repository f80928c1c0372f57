from __future__ import annotations

import contextlib
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import shardload
from shardload.codecs import make_codec
from shardload.codecs.dictionary import check_dictionary, choose_dictionary
from shardload.codecs.zstd import ZstdCodec
from shardload.errors import FormatError, PackError
from shardload.format import layout
from shardload.format.schema import parse_schema
from shardload.writer.encode import SampleEncoder
from shardload.writer.first import KEPT_BYTES, SAMPLE_BYTES, FirstSamples

WORDS = ["the", "of", "and", "to", "in", "is", "you", "that", "he", "was", "for", "are", "with", "his", "they", "have"]


def texts(count: int, seed: int = 0, length: int = 120) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [
        b'{"url":"https://example.org/%d","text":"%s"}' % (n, " ".join(rng.choice(WORDS, length)).encode())
        for n in range(count)
    ]


TEXTS = texts(1000)
NOISE = [np.random.default_rng(n).bytes(600) for n in range(1000)]


def test_auto_keeps_what_pays() -> None:
    dictionary = choose_dictionary(TEXTS, "zstd:3", "auto", 64 << 20)
    assert 0 < len(dictionary) <= 112_640
    plain, better = ZstdCodec("3"), ZstdCodec("3", dictionary)
    new = texts(50, seed=9)
    assert sum(len(better.compress(t)) for t in new) < 0.95 * sum(len(plain.compress(t)) for t in new)
    assert choose_dictionary(TEXTS, "zstd:3", "auto", 64 << 20) == dictionary
    assert len(choose_dictionary(TEXTS, "zstd:3", "auto", 1 << 20)) <= (1 << 20) // 64


def test_auto_leaves_out_what_does_not_pay() -> None:
    assert choose_dictionary(NOISE, "zstd:3", "auto", 64 << 20) == b""
    assert choose_dictionary(TEXTS[:200], "zstd:3", "auto", 64 << 20) == b""  # few
    assert choose_dictionary([b"short"] * 1000, "zstd:3", "auto", 64 << 20) == b""
    assert choose_dictionary([], "zstd:3", "auto", 64 << 20) == b""


def test_on_and_off() -> None:
    assert choose_dictionary(TEXTS, "zstd:3", "off", 64 << 20) == b""
    assert choose_dictionary(TEXTS, "none", "auto", 64 << 20) == b""
    assert choose_dictionary(NOISE, "zstd:3", "on", 64 << 20)
    for few in ([], [b""] * 100, TEXTS[:3]):
        with pytest.raises(PackError, match=r"cannot be trained: .* are too little"):
            choose_dictionary(few, "zstd:3", "on", 64 << 20)


def test_modes() -> None:
    assert check_dictionary("on", "zstd:3") == "on" and check_dictionary("auto", "none") == "auto"
    for mode, compression, message in (
        ("yes", "zstd:3", "must be one of auto, on, off"),
        ("on", "none", "needs compression"),
    ):
        with pytest.raises(ValueError, match=message):
            check_dictionary(mode, compression)
        with pytest.raises(ValueError, match=message):
            shardload.ShardWriter("nowhere", {"a": "str"}, dictionary=mode, compression=compression)  # type: ignore[arg-type]


DICTIONARY = choose_dictionary(TEXTS, "zstd:3", "on", 1 << 20)


def test_frames_need_their_dictionary() -> None:
    codec = make_codec("zstd:3", DICTIONARY)
    assert codec is not None
    frame = codec.compress(TEXTS[0])
    assert codec.decompress(frame, len(TEXTS[0])) == TEXTS[0]
    facts = zstandard.get_frame_parameters(frame)
    assert facts.dict_id == 0 and facts.content_size == len(TEXTS[0]) and not facts.has_checksum
    other = choose_dictionary(texts(1000, seed=5, length=60), "zstd:3", "on", 1 << 20)
    for wrong in (ZstdCodec("3"), ZstdCodec("3", other)):
        with contextlib.suppress(FormatError):
            assert wrong.decompress(frame, len(TEXTS[0])) != TEXTS[0]


def test_a_pickled_codec_has_its_dictionary() -> None:
    codec = ZstdCodec("-3", DICTIONARY)
    frame = codec.compress(TEXTS[0])
    again = pickle.loads(pickle.dumps(codec))
    assert (again.level, again.dictionary) == (-3, DICTIONARY)
    assert again.compress(TEXTS[0]) == frame and again.decompress(frame, len(TEXTS[0])) == TEXTS[0]


def write(path: Path, samples: list[bytes], **options: Any) -> shardload.ShardDataset:
    with shardload.ShardWriter(path, {"text": "bytes"}, **{"compression": "zstd:3"} | options) as writer:
        for sample in samples:
            writer.write({"text": sample})
    return shardload.open(path)


def test_every_shard_carries_it(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a", TEXTS, shard_size="64KiB", dictionary="on")
    digest = dataset.manifest.generations[0].dictionary
    assert len(dataset.table) > 2
    for entry in dataset.table:
        data = (tmp_path / "a" / entry.name).read_bytes()
        section = next(
            s for s in dataset._process_access().shard(0).head.sections if s.kind == layout.SECTION_DICTIONARY
        )
        assert section.digest.hex() == digest and section.num_bytes <= (1 << 16) // 64
        head = dataset._process_access().shard([e.name for e in dataset.table].index(entry.name)).head
        section = head.section(layout.SECTION_DICTIONARY)
        assert hashlib.sha256(data[section.start : section.stop]).hexdigest() == digest
    assert [sample["text"] for sample in dataset] == TEXTS


def test_a_shard_with_its_dictionary_has_at_most_the_shard_size(tmp_path: Path) -> None:
    """Sections start on 4,096 bytes: of these sizes, some leave less room than the dictionary takes."""
    for size in range(65_536, 65_536 + 4096, 512):
        dataset = write(tmp_path / str(size), TEXTS[:500], shard_size=size, dictionary="on")
        assert len(dataset.table) > 1 and max(entry.num_bytes for entry in dataset.table) <= size


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, TEXTS, shard_size="64KiB")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(("samples", "kept"), [(texts(3000), True), (NOISE, False), (TEXTS[:50], False)])
def test_what_a_writer_does_by_itself(tmp_path: Path, samples: list[bytes], kept: bool) -> None:
    dataset = write(tmp_path / "d", samples)
    assert bool(dataset.manifest.generations[0].dictionary) == kept
    assert [sample["text"] for sample in dataset] == samples


def test_on_with_too_little_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="too little"):
        write(tmp_path / "d", TEXTS[:2], dictionary="on")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("last", [{}, {"compression": "none"}, {"dictionary": "on", "shard_size": "128KiB"}])
def test_each_generation_has_its_own(tmp_path: Path, last: dict[str, Any]) -> None:
    """A dictionary, none, another, no compression: whichever comes last, each is read by its own codec."""
    path, on = tmp_path / "d", {"dictionary": "on", "shard_size": "128KiB"}
    write(path, TEXTS[:300], **on)
    write(path, TEXTS[300:320], append=True)
    dataset = write(path, texts(300, 3), append=True, compression="zstd:9", **on)
    first, second, third = (generation.dictionary for generation in dataset.manifest.generations)
    assert first and not second and third and first != third
    dataset = write(path, TEXTS[320:400], append=True, **last)
    want = [*TEXTS[:320], *texts(300, 3), *TEXTS[320:400]]
    ids = np.random.default_rng(0).permutation(700).tolist()
    assert [sample["text"] for sample in dataset.__getitems__(ids)] == [want[i] for i in ids]


@pytest.mark.parametrize("placed", [False, True])
def test_a_damaged_dictionary_is_told(tmp_path: Path, placed: bool) -> None:
    dataset = write(tmp_path / "d", TEXTS[:300], dictionary="on", shard_size="4MiB")
    section = dataset._process_access().shard(0).head.section(layout.SECTION_DICTIONARY)
    path = tmp_path / "d" / dataset.table[0].name
    data = bytearray(path.read_bytes())
    data[section.start + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(shardload.ChecksumError, match="section") as caught:
        shardload.open(tmp_path / "d")[0]
    assert caught.value.shard == dataset.table[0].name
    if placed:
        assert (caught.value.start, caught.value.stop) == (section.start, section.stop)
        assert str(caught.value).count("is damaged") == 1


def test_tiny_samples_do_not_fill_the_memory_while_they_wait() -> None:
    """What is kept for the training is bounded with what an object costs, not by bytes of text alone."""
    schema = parse_schema({"text": "str"}, "zstd")
    first, sample = FirstSamples(schema, "zstd:3", "auto", 1 << 28), SampleEncoder(schema).encode({"text": "tiny"}, "s")
    while first.add(sample, "s"):
        assert len(first.samples) * SAMPLE_BYTES <= KEPT_BYTES
    assert first.full and len(first.samples) > 10_000
