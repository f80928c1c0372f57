"""Records and frames of hostile writers: bombs, lies about sizes, foreign dictionaries (F12), all checksums right."""

from __future__ import annotations

import struct

import pytest
import zstandard
from hostile.judge import bounded_memory, check_error, refused

import shardload
from shardload.format import layout
from shardload.format.manifest import decode_manifest

TEXT = b"x" * 4000
NO_DICTIONARY = 1
"""Number of a shard of the generation without a dictionary, from the end."""


def frame(data: bytes, level: int = 3, **options: object) -> bytes:
    options = {"write_content_size": True, "write_checksum": False, "write_dict_id": False} | options
    return zstandard.ZstdCompressor(level=level, **options).compress(data)


def stated(size: int, blocks: bytes, window: int = 0) -> bytes:
    """A frame by hand: states a size in eight bytes, then blocks as they are. A window of 0 is that of the size."""
    if not window:
        return b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", size) + blocks
    exponent = window.bit_length() - 11
    return b"\x28\xb5\x2f\xfd" + b"\xc0" + bytes([exponent << 3]) + struct.pack("<Q", size) + blocks


def runs(size: int) -> bytes:
    """Blocks that say so many times the letter x: 4 bytes for 128 KiB each."""
    whole, rest = divmod(size, 1 << 17)
    sizes = [1 << 17] * whole + [rest] * bool(rest)
    return b"".join(
        struct.pack("<I", size << 3 | 1 << 1 | (i == len(sizes) - 1))[:3] + b"x" for i, size in enumerate(sizes)
    )


UNKNOWN_SIZE = frame(TEXT, write_content_size=False)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 16) + bytes(16)
DICTIONARY = zstandard.train_dictionary(
    1024, [b"%d words and words %d" % (i, i * i) * 9 for i in range(400)], dict_id=7
)

FRAMES = {
    "nothing but a magic": (b"\x28\xb5\x2f\xfd", 4000),
    "noise": (b"noise" * 20, 4000),
    "zeros": (bytes(100), 4000),
    "cut by one": (frame(TEXT)[:-1], 4000),
    "cut in half": (frame(TEXT)[: len(frame(TEXT)) // 2], 4000),
    "a byte behind": (frame(TEXT) + b"\0", 4000),
    "two frames": (frame(TEXT) * 2, 4000),
    "two frames of half": (frame(TEXT[:2000]) * 2, 4000),
    "an empty frame behind": (frame(TEXT) + frame(b""), 4000),
    "a skippable frame behind": (frame(TEXT) + SKIPPABLE, 4000),
    "a skippable frame before": (SKIPPABLE + frame(TEXT), 4000),
    "a skippable frame": (SKIPPABLE, 4000),
    "no size": (UNKNOWN_SIZE, 4000),
    "one more than said": (frame(TEXT + b"x"), 4000),
    "one less than said": (frame(TEXT[1:]), 4000),
    "states one more than it has": (stated(4000, runs(3999)), 4000),
    "states one less than it has": (stated(4000, runs(4001)), 4000),
    "states 0": (stated(0, runs(4000)), 4000),
    "states 2^63": (stated(1 << 63, runs(4000)), 4000),
    "states 2^64-1": (stated((1 << 64) - 1, runs(4000)), 4000),
    "bomb of 1 GiB for 4,000": (stated(1 << 30, runs(1 << 30)), 1 << 16),
    "bomb behind a size of 64 KiB": (stated(1 << 16, runs(1 << 30)), 1 << 16),
    "1 GiB stated and said, 4,000 there": (stated(1 << 30, runs(4000)), 1 << 30),
    "4 GiB stated and said, 4,000 there": (stated((1 << 32) - 1000, runs(4000)), (1 << 32) - 1000),
    "1 GiB stated and said in a window of 1 MiB": (stated(1 << 30, runs(4000), 1 << 20), 1 << 30),
    "window 2^31": (stated(4000, runs(4000), 1 << 31), 4000),
    "window 2^41": (stated(4000, runs(4000), 1 << 41), 4000),
    "window 2^28": (stated(4000, runs(4000), 1 << 28), 4000),
    "a block of the reserved type": (stated(4000, struct.pack("<I", 4000 << 3 | 3 << 1 | 1)[:3] + b"x"), 4000),
    "a block over 128 KiB": (stated(4000, struct.pack("<I", (1 << 21) - 1 << 3 | 1)[:3] + b"x" * 4000), 4000),
    "the last block is not": (stated(4000, struct.pack("<I", 4000 << 3 | 1 << 1)[:3] + b"x"), 4000),
    "names a dictionary": (frame(TEXT, dict_data=DICTIONARY, write_dict_id=True), 4000),
    "names a dictionary that it does not use": (
        b"\x28\xb5\x2f\xfd\xe1\x07" + struct.pack("<Q", 4000) + runs(4000),
        4000,
    ),
    "a checksum of its own, wrong": (frame(TEXT, write_checksum=True)[:-1] + b"\0", 4000),
}


def put(forged, data: bytes, size: int, framed: bool = True, shard: int = -NO_DICTIONARY) -> int:
    """Gives the last sample of a shard a record of the given packed bytes; returns its id."""
    one = forged.shards[shard]
    fields = [field.name for field in one.schema.record_fields]
    lengths = dict.fromkeys(fields, 0) | {"text": size, "tags": 4, "facts": 1, "blobs": 0}
    header = struct.pack(f"<{len(fields)}I", *lengths.values())
    body = header + b"1" + bytes(4) + data
    one.set_last_record(body, 4 + len(header) + 5 + size, framed)
    place = shard % len(forged.shards)
    return sum(shard.num_samples for shard in forged.shards[: place + 1]) - 1


@pytest.mark.parametrize("name", FRAMES)
def test_frames(forge, judge, name):
    forged = forge()
    data, size = FRAMES[name]
    sample_id = put(forged, data, size)
    path = forged.save()
    with bounded_memory(), pytest.raises(shardload.FormatError, match=rf"sample {sample_id}\b") as caught:
        # With nothing else in the batch; fields that are not compressed need no frame.
        shardload.open(path, fields=["text"])[sample_id]
    check_error(caught.value, path)
    before = range(max(0, sample_id - 30), sample_id)
    with bounded_memory(), pytest.raises(shardload.FormatError) as among:
        shardload.open(path, fields=["text"]).__getitems__([sample_id, *before])
    assert str(among.value) == str(caught.value)
    if name not in ("nothing but a magic", "noise", "zeros"):
        assert caught.value.shard == forged.names[-1]
    judge(path, by=f"item {sample_id}")


def test_a_right_frame_by_the_same_means(forge):
    """What the cases above start from is sound: they are refused for what they say in the table."""
    forged = forge()
    sample_id = put(forged, stated(4000, runs(4000)), 4000)
    forged.shards[-1].section(layout.SECTION_HEAP)
    assert shardload.open(forged.save(), fields=["text"])[sample_id]["text"] == "x" * 4000


@pytest.mark.parametrize(
    "data, size, framed",
    [(b"", 0, True), (TEXT, 4000, True), (TEXT, 3999, False), (TEXT, 4001, False), (frame(TEXT), 10, True)],
    ids=["a frame of nothing", "no smaller than what it holds", "less than the row says", "more", "larger than that"],
)
def test_records_whose_flag_cannot_be(forge, judge, data, size, framed):
    forged = forge()
    sample_id = put(forged, data, size, framed)
    path = forged.save()
    with pytest.raises(shardload.FormatError, match=rf"sample {sample_id}\b"):
        # The other fields of this record are wrong by themselves.
        shardload.open(path, fields=["text"])[sample_id]
    judge(path)


def test_a_frame_that_names_its_own_dictionary(forge, judge):
    """It would decompress; a frame holds no id, so there is one form of it."""
    forged = forge()
    own = zstandard.ZstdCompressionDict(bytes(forged.shards[0].section(layout.SECTION_DICTIONARY).data))
    told = {False: "x" * 4000, True: None}
    for named, value in told.items():
        sample_id = put(forged, frame(TEXT, dict_data=own, write_dict_id=named), 4000, shard=0)
        dataset = shardload.open(forged.save(), fields=["text"])
        if value is not None:
            assert dataset[sample_id]["text"] == value
            continue
        with pytest.raises(shardload.FormatError, match="dictionary 1"):
            dataset[sample_id]


def _dictionaries(own: bytes) -> dict[str, bytes]:
    return {
        "cut": own[:-1],
        "another": DICTIONARY.as_bytes(),
        "a magic and no more": own[:8],
        "no zstd dictionary": b"these bytes are no dictionary " * 20,
        "zeros": bytes(512),
        "one byte": b"\0",
        "tables damaged": own[:8] + b"\xff" * 64 + own[72:],
    }


@pytest.mark.parametrize("name", _dictionaries(b""))
def test_dictionaries(forge, judge, sound, name):
    """The manifest names the dictionary that is there, only no frame was made with it, or it is none."""
    forged = forge()
    for shard in forged.shards:
        if shard.has(layout.SECTION_DICTIONARY):
            section = shard.section(layout.SECTION_DICTIONARY)
            section.data = bytearray(_dictionaries(bytes(section.data))[name])
    path = forged.save()
    if name not in ("cut", "another"):
        # These are dictionaries; nothing tells that the frames were made with another.
        with pytest.raises(shardload.FormatError, match="dictionary"):
            shardload.open(path, fields=["text"])[0]
    judge(path)


@pytest.mark.parametrize("digest", ["", "0" * 64, "own of another generation"])
def test_dictionaries_that_the_manifest_does_not_name(forge, digest):
    forged = forge()
    forged.edit_manifest = lambda manifest: manifest["generations"][0].__setitem__("dictionary", digest[:64])
    refused(forged.save())


def test_a_dictionary_of_a_generation_without_codec(forge):
    forged = forge()
    forged.edit_manifest = lambda manifest: manifest["generations"][0].__setitem__("codec", "none")
    refused(forged.save(), "open")


@pytest.mark.parametrize("codec", ["none", "zstd:22", "zstd:-100"])
def test_codecs_of_a_generation_with_frames(forge, sound, codec):
    """Levels say nothing to a reader; without a codec a frame is an error."""
    forged = forge()
    forged.edit_manifest = lambda manifest: manifest["generations"][1].__setitem__("codec", codec)
    dataset = shardload.open(forged.save())
    if codec == "none":
        with pytest.raises(shardload.FormatError, match="codec is none"):
            dataset[-1]
    else:
        assert dataset[-1]["text"] == sound[f"item {len(dataset) - 1}"]["text"]
    assert decode_manifest((forged.path / "manifest.json").read_bytes(), "").generations[1].codec == codec
