from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from shardload.errors import ChecksumError, FormatError
from shardload.format.manifest import FieldEntry, Generation, Manifest, Writer
from shardload.format.table import ShardEntry, ShardTable, decode_table, make_table, table_bytes, table_name

FIRST = ShardEntry(1, 2, 3, 4, 5, bytes(range(32)), bytes(range(32, 64)))
GOLDEN = bytes.fromhex(
    "534852445441424c 02000000 58000000 0200000000000000 0000000000000000"
    "01000000 02000000 03000000 04000000 0500000000000000"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    "01000000 02000000 04000000 ffffffff ffffffffffff0000".replace(" ", "")
) + bytes(64)  # fmt: skip
SECOND = ShardEntry(1, 2, 4, 0xFFFFFFFF, (1 << 48) - 1, bytes(32), bytes(32))


def generation(number: int, num_samples: int, num_fields: int = 1) -> Generation:
    return Generation("none", "", number, num_fields, num_samples, 1, 1, Writer("1", "1", "1"))


def manifest_of(data: bytes, entries: list[ShardEntry]) -> Manifest:
    samples: dict[int, int] = {1: 0}
    for entry in entries:
        samples[entry.generation] = samples.get(entry.generation, 0) + entry.num_samples
    return Manifest(
        generations=[generation(number, count) for number, count in sorted(samples.items())],
        key="",
        metadata={},
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_samples=sum(entry.num_samples for entry in entries),
        num_shards=len(entries),
        schema=[FieldEntry("none", "x", "int8")],
        table=hashlib.sha256(data).hexdigest(),
        version=1,
    )


def test_golden_bytes() -> None:
    data = make_table([SECOND, FIRST]).encode()
    assert data == GOLDEN and len(data) == table_bytes(manifest_of(data, [FIRST, SECOND]))
    table = decode_table(data, manifest_of(data, [FIRST, SECOND]), "t")
    assert [table[0], table[1]] == [FIRST, SECOND]
    assert table.first_sample_ids.tolist() == [0, 4, 4 + 0xFFFFFFFF]
    assert FIRST.name == "shards/0001-000002-00003.shard"
    assert replace(FIRST, generation=10**5, unit=10**7, part=10**6).name == "shards/100000-10000000-1000000.shard"
    assert table_name("ab") == "tables/ab"


def test_digests_that_end_in_zeros() -> None:
    entry = replace(FIRST, head_digest=bytes(31) + b"\1", file_digest=b"\1" + bytes(31))
    assert make_table([entry])[0] == entry


def test_items_of_streams() -> None:
    entries = [replace(FIRST, num_items=(7,)), replace(SECOND, generation=2, num_items=((1 << 64) - 1, 5))]
    data = make_table(entries[::-1], 2).encode()
    size = 32 + 2 * (88 + 16)
    assert data[12:16] == (88 + 16).to_bytes(4, "little") and len(data) == size
    assert data[32 + 88 : 32 + 104] == (7).to_bytes(8, "little") + bytes(8)
    assert data[-16:] == bytes([255] * 8) + (5).to_bytes(8, "little")
    fields = [
        FieldEntry("none", "x", "int8[*]"),
        FieldEntry("zstd", "z", "int8[*]?"),
        FieldEntry("none", "y", "int8[*]?"),
    ]
    samples = [generation(1, 4), generation(2, 0xFFFFFFFF, 3)]
    manifest = msgspec.structs.replace(manifest_of(data, entries), schema=fields, generations=samples)
    assert table_bytes(manifest) == size
    table = decode_table(data, manifest, "t")
    assert table[0] == replace(entries[0], num_items=(7, 0)) and table[1] == entries[1]
    # The number of streams is that of the schema, whatever the table says.
    for streams in (fields[:1], fields[:2], [*fields, FieldEntry("none", "w", "int8[*]?")]):
        with pytest.raises(FormatError, match="no table of 2 shards"):
            decode_table(data, msgspec.structs.replace(manifest, schema=streams), "t")


def test_no_shards() -> None:
    data = make_table([]).encode()
    table = decode_table(data, manifest_of(data, []), "t")
    assert len(table) == 0 and table.first_sample_ids.tolist() == [0]


def test_every_changed_byte_is_refused() -> None:
    manifest = manifest_of(GOLDEN, [FIRST, SECOND])
    for place in range(len(GOLDEN)):
        with pytest.raises(ChecksumError):
            decode_table(GOLDEN[:place] + bytes([GOLDEN[place] ^ 128]) + GOLDEN[place + 1 :], manifest, "t")
    for data in (b"", GOLDEN[:-1], GOLDEN + b"\0", GOLDEN[:32]):
        with pytest.raises(ChecksumError):
            decode_table(data, manifest, "t")


@pytest.mark.parametrize("place", [0, 7, 8, 12, 16, 23, 24, 31])
def test_a_wrong_header_under_the_right_digest(place: int) -> None:
    data = GOLDEN[:place] + bytes([GOLDEN[place] ^ 2]) + GOLDEN[place + 1 :]
    with pytest.raises(FormatError, match="not a shard table"):
        decode_table(data, manifest_of(data, [FIRST, SECOND]), "t")


@pytest.mark.parametrize("data", [b"", GOLDEN[:31], GOLDEN[:-1], GOLDEN + b"\0", GOLDEN + bytes(88), GOLDEN[:-88]])
def test_a_wrong_length_under_the_right_digest(data: bytes) -> None:
    with pytest.raises(FormatError, match="no table of 2 shards"):
        decode_table(data, manifest_of(data, [FIRST, SECOND]), "t")


def _raw(*entries: ShardEntry) -> bytes:
    """A table in the order given."""
    parts = [make_table([entry]).entries for entry in entries]
    return ShardTable(np.concatenate(parts)).encode()


@pytest.mark.parametrize("name", ["generation", "unit", "part"])
def test_order(name: str) -> None:
    later = replace(FIRST, **{name: getattr(FIRST, name) + 1})
    for entries, good in (((FIRST, later), True), ((later, FIRST), False), ((FIRST, FIRST), False)):
        data = _raw(*entries)
        if good:
            assert len(decode_table(data, manifest_of(data, list(entries)), "t")) == 2
        else:
            with pytest.raises(FormatError, match="out of order"):
                decode_table(data, manifest_of(data, list(entries)), "t")


def test_order_compares_the_first_number_first() -> None:
    entries = [
        replace(FIRST, unit=1, part=9),
        replace(FIRST, unit=2, part=0),
        replace(FIRST, generation=2, unit=0, part=0),
    ]
    data = _raw(*entries)
    assert len(decode_table(data, manifest_of(data, entries), "t")) == 3
    for wrong in (entries[::-1], [entries[1], entries[0], entries[2]], [entries[0], entries[2], entries[1]]):
        data = _raw(*wrong)
        with pytest.raises(FormatError, match="out of order"):
            decode_table(data, manifest_of(data, wrong), "t")


def test_numbers_that_cannot_be() -> None:
    for wrong in (
        replace(FIRST, num_samples=0),
        replace(FIRST, num_bytes=1 << 48),
        replace(FIRST, num_bytes=(1 << 64) - 1),
    ):
        data = _raw(wrong)
        with pytest.raises(FormatError, match="no samples or over"):
            decode_table(data, manifest_of(data, [wrong]), "t")


def test_sums_are_compared_with_the_manifest() -> None:
    manifest = manifest_of(GOLDEN, [FIRST, SECOND])
    for change in (
        {"num_samples": manifest.num_samples - 1},
        {"num_bytes": manifest.num_bytes + 1},
        {"generations": [generation(1, 5), generation(2, manifest.num_samples - 5)]},
        {"generations": [generation(2, manifest.num_samples)]},
    ):
        with pytest.raises(FormatError, match=r"samples|does not name"):
            decode_table(GOLDEN, msgspec.structs.replace(manifest, **change), "t")  # type: ignore[arg-type]


def test_sums_do_not_wrap() -> None:
    """2^17 shards of 2^47 bytes are 2^64 bytes: a sum of 64 bits would be 0."""
    entries = np.repeat(make_table([replace(FIRST, num_bytes=1 << 47)]).entries, 1 << 17)
    entries["unit"] = np.arange(1 << 17)
    data = ShardTable(entries).encode()
    base = manifest_of(data, [replace(FIRST, num_samples=4 << 17, num_bytes=0)])
    with pytest.raises(FormatError, match="the manifest says"):
        decode_table(data, msgspec.structs.replace(base, num_shards=1 << 17), "t")
