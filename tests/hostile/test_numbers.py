"""Every count, size and offset of the format at its boundaries, under right digests (F9)."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hostile.judge import bounded_memory, check_error, reads_of, refused

import shardload
from shardload.format import layout
from shardload.format.rows import PLACE, RAW, STORED, VALIDITY, count_column, start_column

BOUNDS32 = (0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 2, (1 << 32) - 1)
BOUNDS64 = (*BOUNDS32, 1 << 32, (1 << 32) + 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1)

FEW32 = (0, 1, (1 << 31) - 1, (1 << 31) + 1, (1 << 32) - 1)
FEW64 = (*FEW32, 1 << 32, (1 << 63) - 1, (1 << 63) + 1, (1 << 64) - 1)

HEADER_FIELDS = {"draft": 8, "required": 12, "generation": 20, "unit": 24, "part": 28, "checksum": 32, "zero": 36}
HEADER_FIELDS |= {"schema digest": 40, "rest": 72, "end": 4092}
DIRECTORY_COLUMNS = {"kind": 0, "field": 1, "offset": 2, "length": 3, "item": 4}
FOOTER_FIELDS = {"draft": (1, BOUNDS32), "sections": (2, BOUNDS32), "samples": (3, BOUNDS64), "bytes": (4, BOUNDS64)}
FOOTER_FIELDS |= {"flags": (6, BOUNDS32)}
ENTRY_COLUMNS = ["generation", "unit", "part", "num_samples", "num_bytes", "num_items"]
ROW_COLUMNS = [PLACE, STORED, RAW, "_start_tokens", "_count_tokens", "_start_spans", "_count_spans"]


@pytest.mark.parametrize("name", HEADER_FIELDS)
def test_header(forge, name):
    for value in BOUNDS32:
        forged = forge()
        at = HEADER_FIELDS[name]
        if forged.shards[0].header[at : at + 4] == value.to_bytes(4, "little"):
            continue
        forged.shards[0].header[at : at + 4] = value.to_bytes(4, "little")
        refused(forged.save())


def test_unknown_optional_flags_are_passed_over(forge, judge):
    forged = forge()
    forged.shards[0].header[16:20] = b"\xff" * 4
    path = forged.save()
    assert shardload.open(path)[0]["number"] == 0


@pytest.mark.parametrize("column", DIRECTORY_COLUMNS)
@pytest.mark.parametrize("section", range(12))
def test_directory(forge, section, column):
    slot = DIRECTORY_COLUMNS[column]
    forged = forge()
    for value in FEW64 if slot >= 2 else FEW32:
        before = []

        def edit(entries, value=value, before=before):
            before.append(entries[section][slot])
            entries[section][slot] = value

        forged.shards[0].edit_directory = edit
        forged.save()
        if before[0] != value:
            refused(forged.path)


@pytest.mark.parametrize("step", [-64, -1, 1, 64, 4096])
@pytest.mark.parametrize("section", range(12))
def test_sections_that_overlap_leave_a_hole_or_change_their_length(forge, judge, section, step):
    # Behind these lies padding: a little more or less leaves all other sections in their places.
    padded = section in (0, 11) and abs(step) < 4096
    for slot in (2,) if padded else (2, 3):
        forged = forge()

        def edit(entries, slot=slot):
            entries[section][slot] = max(0, entries[section][slot] + step)

        forged.shards[0].edit_directory = edit
        refused(forged.save())


@pytest.mark.parametrize("section, step", [(0, -64), (0, -1), (0, 1), (0, 64), (11, -1), (11, 1)])
def test_sections_that_end_in_their_padding(forge, judge, section, step):
    forged = forge()
    forged.shards[0].edit_directory = lambda entries: entries[section].__setitem__(3, entries[section][3] + step)
    judge(forged.save())


@pytest.mark.parametrize("section", range(12))
def test_a_real_hole_before_a_section(forge, section):
    forged = forge()
    forged.shards[0].sections[section].hole = 4096
    refused(forged.save())


@pytest.mark.parametrize(
    "edit",
    [
        lambda entries: entries.clear(),
        lambda entries: entries.reverse(),
        lambda entries: entries.append(entries[-1]),
        lambda entries: entries.insert(0, entries[0]),
        lambda entries: entries.pop(),
        lambda entries: entries.pop(0),
        lambda entries: entries.extend([entries[0]] * 100_000),
        lambda entries: entries.extend([entries[0]] * (4 * layout.MAX_FIELDS - len(entries))),
        lambda entries: entries.__setitem__(slice(0, 2), entries[1::-1]),
        lambda entries: [entry.__setitem__(2, 4096) for entry in entries],
        lambda entries: [entry.__setitem__(5, b"\xff" * 32) for entry in entries],
    ],
    ids=[
        "none",
        "reversed",
        "last twice",
        "first twice",
        "no last",
        "no first",
        "100,000",
        "4,096",
        "two",
        "place",
        "sum",
    ],
)
def test_directories_of_other_entries(forge, edit):
    forged = forge()
    forged.shards[0].edit_directory = edit
    refused(forged.save())


@pytest.mark.parametrize("name", FOOTER_FIELDS)
def test_footer(forge, name):
    slot, values = FOOTER_FIELDS[name]
    for value in values:
        forged = forge()

        def edit(footer, value=value, forged=forged):
            forged.same = footer[slot] == value
            footer[slot] = value

        forged.shards[0].edit_footer = edit
        forged.save()
        # Flag 1, the last part of its unit, is right in either state as far as one shard can tell.
        if not forged.same and (name, value) not in (("flags", 0), ("flags", 1)):
            refused(forged.path)


@pytest.mark.parametrize("slot, value", [(0, b"SHRDFOOX"), (5, bytes(32)), (7, b"\1" * 52), (8, b"SHRDTABL")])
def test_other_parts_of_the_footer(forge, slot, value):
    forged = forge()
    forged.shards[0].edit_footer = lambda footer: footer.__setitem__(slot, value)
    refused(forged.save())


@pytest.mark.parametrize("slot", range(5))
def test_table_header(forge, slot):
    for value in BOUNDS32 if slot in (1, 2) else BOUNDS64:
        forged = forge()

        def edit(header, value=value, forged=forged):
            if slot == 0:
                value = value.to_bytes(8, "little")
            forged.same, header[slot] = header[slot] == value, value

        forged.edit_table = edit
        forged.save()
        if not forged.same:
            refused(forged.path, "open")


@pytest.mark.parametrize("column", ENTRY_COLUMNS)
@pytest.mark.parametrize("shard", [0, -1])
def test_table_entries(forge, column, shard):
    for value in BOUNDS64 if column in ("num_bytes", "num_items") else BOUNDS32:
        forged = forge()

        def edit(entries, value=value, forged=forged):
            mine = entries[column][shard] if column != "num_items" else entries[column][shard][:1]
            forged.same = bool(np.all(mine == value))
            entries[column][shard] = value

        forged.edit_entries = edit
        forged.save()
        if not forged.same:
            refused(forged.path)


@pytest.mark.parametrize("value", [1 << 20, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("way", ["column wide", "column flag", "lengths text", "lengths tokens", "sizes", "batch"])
def test_no_memory_for_samples_that_no_shard_has(forge, judge, way, value):
    """The table says how many samples there are, and only the shards' own sizes can bear it out."""
    forged = forge()
    forged.edit_entries = lambda entries: entries["num_samples"].__setitem__(0, value)
    path = forged.save()
    with bounded_memory(), pytest.raises(shardload.FormatError) as caught:
        reads_of(shardload.open(path), [])[way]()
    check_error(caught.value, path)


@pytest.mark.parametrize("column", ROW_COLUMNS)
@pytest.mark.parametrize("local_id", [0, pytest.param(3, marks=pytest.mark.slow), -1])
def test_rows(forge, judge, column, local_id):
    values = FEW64 if column in (PLACE, "_start_tokens", "_start_spans") else FEW32
    for value in values:
        forged = forge()

        def edit(rows, value=value, forged=forged):
            forged.same = rows[column][local_id] == value
            rows[column][local_id] = value

        forged.shards[0].edit_rows = edit
        forged.save()
        if not forged.same:
            judge(forged.path)


@pytest.mark.parametrize("place", [0, 16, 4080, 1 << 20, 1 << 31, (1 << 47) + 4096, (1 << 48) - 16])
def test_places_outside_the_heap(forge, place):
    """Refused for what the row says, before a byte is read there."""
    forged = forge()
    forged.shards[0].edit_rows = lambda rows: rows[PLACE].__setitem__(3, place)
    with pytest.raises(shardload.FormatError, match=r"no record in the heap.*sample 3\b"):
        shardload.open(forged.save())[3]


@pytest.mark.parametrize("value", [1 << 15, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("local_id", [0, 3, -1])
def test_records_longer_than_the_heap(forge, judge, local_id, value):
    """Both lengths agree, so that only the heap's end tells."""
    forged = forge()

    def edit(rows):
        rows[STORED][local_id] = rows[RAW][local_id] = value

    forged.shards[0].edit_rows = edit
    path, sample_id = forged.save(), local_id % forged.shards[0].num_samples
    with bounded_memory(), pytest.raises(shardload.FormatError, match=rf"no record in the heap.*sample {sample_id}\b"):
        shardload.open(path)[sample_id]
    judge(path, by=f"item {sample_id}")


@pytest.mark.parametrize("bit", range(48, 64))
def test_flags_of_a_record(forge, judge, bit):
    forged = forge()
    forged.shards[0].edit_rows = lambda rows: rows[PLACE].__ixor__(np.uint64(1 << bit))
    verdict = judge(forged.save(), by="item")
    assert len(verdict.errors) > 8


@pytest.mark.parametrize("step", [-64, -16, -1, 1, 15, 16, 64])
def test_places_off_by_a_little(forge, judge, step):
    forged = forge()
    forged.shards[0].edit_rows = lambda rows: rows[PLACE].__setitem__(2, int(rows[PLACE][2]) + step)
    judge(forged.save(), by="item 2")


@pytest.mark.parametrize("edit", ["swapped", "falling", "all one place", "all the heap"])
def test_places_of_several_records(forge, judge, edit):
    def change(rows):
        place, stored = rows[PLACE].copy(), rows[STORED].copy()
        if edit == "swapped":
            rows[PLACE][2:4], rows[STORED][2:4], rows[RAW][2:4] = (
                place[3:1:-1],
                stored[3:1:-1],
                rows[RAW][3:1:-1].copy(),
            )
        elif edit == "falling":
            rows[PLACE] = place[::-1]
        elif edit == "all one place":
            rows[PLACE], rows[STORED], rows[RAW] = place[0], stored[0], rows[RAW][0]
        else:
            rows[STORED] = place[-1] + stored[-1] - place
            rows[RAW] = rows[STORED]

    forged = forge()
    forged.shards[0].edit_rows = change
    judge(forged.save(), by="batch")


@pytest.mark.parametrize("name", ["tokens", "spans"])
@pytest.mark.parametrize("edit", ["hole", "overlap", "falling", "sum wraps", "one item more"])
def test_spans_of_a_stream(forge, judge, name, edit):
    forged = forge()
    one = forged.shards[0].schema[name]

    def change(rows):
        start, count = rows[start_column(one)], rows[count_column(one)]
        if edit == "hole":
            start[4:], count[4:] = start[4:] + 1, np.maximum(count[4:], 1) - 1
        elif edit == "overlap":
            start[4] = 0
            count[4] = 3
        elif edit == "falling":
            start[:] = start[::-1].copy()
        elif edit == "sum wraps":
            start[2], count[2] = (1 << 64) - 1, 2
        else:
            count[-1] += 1

    forged.shards[0].edit_rows = change
    judge(forged.save(), by="" if edit == "hole" else "batch")


@pytest.mark.parametrize("value", [0x08, 0x80, 0xF8])
def test_validity_bits_of_no_field(forge, judge, value):
    forged = forge()
    assert len(forged.shards[0].schema.nullable_fields) == 3
    forged.shards[0].edit_rows = lambda rows: rows[VALIDITY].__ior__(np.uint8(value))
    judge(forged.save())


@pytest.mark.parametrize("name", ["score", "facts", "spans"])
def test_validity_turned_over(forge, judge, name):
    """What is there is said to be missing, and what is missing to be there."""
    forged = forge()
    bit = [one.name for one in forged.shards[0].schema.nullable_fields].index(name)
    forged.shards[0].edit_rows = lambda rows: rows[VALIDITY].__ixor__(np.uint8(1 << bit))
    judge(forged.save())


@pytest.mark.parametrize("value", [2, 255])
def test_bool_that_is_neither(forge, judge, value):
    forged = forge()
    forged.shards[0].edit_rows = lambda rows: rows["flag"].__setitem__(0, value)
    judge(forged.save())


@pytest.mark.parametrize("slot", range(7))
def test_lengths_in_a_record(forge, judge, slot):
    """The last record's own header, its checksum made right."""
    for value in FEW32:
        forged = forge()
        shard = forged.shards[0]
        heap, (start, _) = shard.section(layout.SECTION_HEAP).data, shard.record_at(-1)
        at = start + 4 + 4 * slot
        if heap[at : at + 4] != value.to_bytes(4, "little"):
            heap[at : at + 4] = value.to_bytes(4, "little")
            last = shard.num_samples - 1
            forged.save()
            judge(forged.path)
            with pytest.raises(shardload.FormatError, match=f"sample {last}"):
                shardload.open(forged.path)[last]


LISTS = {
    "no count": b"",
    "half a count": b"\1\0",
    "count without lengths": struct.pack("<I", 3),
    "count 2^31": struct.pack("<I", 1 << 31),
    "count 2^32-1": struct.pack("<I", (1 << 32) - 1),
    "length past the end": struct.pack("<2I", 1, 5) + b"abcd",
    "length 2^32-1": struct.pack("<2I", 1, (1 << 32) - 1) + b"abcd",
    "lengths that wrap to the end": struct.pack("<3I", 2, (1 << 32) - 1, 5) + b"abcd",
    "bytes behind": struct.pack("<2I", 1, 3) + b"abcd",
    "no list, bytes": struct.pack("<I", 0) + b"a",
    "no UTF-8": struct.pack("<2I", 1, 1) + b"\xff",
    "half a character each": struct.pack("<3I", 2, 1, 1) + "ä".encode(),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(forge, judge, name):
    forged = forge()
    shard, value = forged.shards[0], LISTS[name]
    # Lengths of name, text, data, facts, tags, blobs, packed; plain are data, facts and tags.
    body = struct.pack("<7I", 0, 0, 0, 1, len(value), 0, 0) + b"1" + value
    shard.set_last_record(body)
    last = shard.num_samples - 1
    path = forged.save()
    with pytest.raises(
        shardload.FormatError, match=rf"(?s)field 'tags'.*sample {last}\b|sample {last}\b.*field 'tags'"
    ):
        shardload.open(path)[last]
    judge(path, by=f"item {last}")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4095])
def test_ragged_values_that_are_no_whole_number_of_items(forge, judge, size):
    forged = forge()
    shard = forged.shards[0]
    shard.set_last_record(struct.pack("<7I", 0, 0, 0, 1, 4, 0, size) + b"1" + bytes(4) + bytes(size))
    judge(forged.save(), by=f"item {shard.num_samples - 1}")


KEY = np.dtype([("digest", "V16"), ("local_id", "<u4")])


@pytest.mark.parametrize(
    "edit",
    [
        *("unsorted", "twice", "id twice", "id past the end", "id 2^32-1", "swapped ids", "zeros"),
        *("one less", "one more", "none", "half an entry"),
    ],
)
def test_keys(forge, judge, edit):
    forged = forge()
    section = forged.shards[0].section(layout.SECTION_KEYS, "name")
    keys = np.frombuffer(bytes(section.data), dtype=KEY).copy()
    if edit == "unsorted":
        keys[:2] = keys[1::-1].copy()
    elif edit == "twice":
        keys["digest"][1] = keys["digest"][0]
    elif edit == "id twice":
        keys["local_id"][0] = keys["local_id"][1]
    elif edit == "swapped ids":
        keys["local_id"][:2] = keys["local_id"][1::-1].copy()
    elif edit.startswith("id"):
        keys["local_id"][0] = len(keys) if edit == "id past the end" else (1 << 32) - 1
    elif edit == "zeros":
        keys[:] = np.zeros((), dtype=KEY)
    data = keys.tobytes()
    sizes = {"one less": data[:-20], "one more": data + bytes(20), "none": b"", "half an entry": data[:-10]}
    section.data = bytearray(sizes.get(edit, data))
    verdict = judge(forged.save(), by="" if edit == "swapped ids" else "find")
    assert edit == "swapped ids" or len(verdict.errors) >= 2


@pytest.mark.parametrize("at", range(0, 64, 8))
@pytest.mark.parametrize("field", ["number", "text", "tokens", "score"])
def test_statistics(forge, judge, field, at):
    for value in FEW64:
        forged = forge()
        shard = forged.shards[0]
        place = 64 * shard.schema.number(field) + at
        data = shard.section(layout.SECTION_STATISTICS).data
        if data[place : place + 8] != value.to_bytes(8, "little"):
            data[place : place + 8] = value.to_bytes(8, "little")
            judge(forged.save(), ways=("statistics",))


@pytest.mark.parametrize(
    "field, at, value",
    [
        ("number", 0, (1 << 64) - 1),
        ("text", 0, 1 << 32),
        ("text", 16, (1 << 64) - 1),
        ("text", 24, 0),
        ("number", 48, 4),
        ("number", 48, (1 << 32) - 1),
        ("text", 48, 1),
        ("data", 48, 2),
        ("number", 52, 1),
        ("number", 56, 1 << 63),
    ],
)
def test_statistics_that_cannot_be(forge, judge, field, at, value):
    forged = forge()
    shard = forged.shards[0]
    place, size = 64 * shard.schema.number(field) + at, 4 if at == 48 else 8
    shard.section(layout.SECTION_STATISTICS).data[place : place + size] = value.to_bytes(size, "little")
    path = forged.save()
    with pytest.raises(shardload.FormatError, match=f"'{field}'"):
        shardload.open(path).statistics()
    judge(path, ways=("statistics",))


@pytest.mark.parametrize("size", [0, 1, 63, 65, 1 << 20])
@pytest.mark.parametrize("kind", [layout.SECTION_STATISTICS, layout.SECTION_DESCRIPTION, layout.SECTION_DICTIONARY])
def test_sections_of_other_lengths(forge, judge, kind, size):
    forged = forge()
    forged.shards[0].section(kind).data = bytearray(b"x" * size)
    judge(forged.save())


@pytest.mark.parametrize("kind", [layout.SECTION_DESCRIPTION, layout.SECTION_DICTIONARY])
def test_sections_over_their_limit(forge, judge, kind):
    forged = forge()
    forged.shards[0].section(kind).data = bytearray((1 << 20) + 1)
    refused(forged.save())


@pytest.mark.parametrize("kind", [2, 4, 5, 10])
@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_columns_of_other_lengths(forge, kind, change):
    forged = forge()
    shard = forged.shards[0]
    shard.repaired = False
    section = next(s for s in shard.sections if s.kind == kind)
    data = bytes(section.data)
    section.data = bytearray(data[:change] if change < 0 else data + bytes(change))
    refused(forged.save())
