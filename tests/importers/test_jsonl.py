from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.errors import PackError
from shardload.importers import Reject, Sample, lines, open_source
from shardload.importers.jsonl import INFERRED_LINES


def jsonl(*samples: object) -> bytes:
    return b"".join(json.dumps(sample).encode() + b"\n" for sample in samples)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


LINES = st.lists(st.sampled_from([b'{"a": 1}', b'{"a": 22, "b": "\xc3\xa9"}', b'{"a":3}\r', b"", b"  "]), max_size=25)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 80))
def test_a_line_belongs_to_the_unit_in_which_it_starts(tmp_path: Path, rows, ends: bool, unit_size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(rows) + (b"\n" if ends else b""))
    expected = [(json.loads(row), number) for number, row in enumerate(rows, 1) if row.strip()]
    plan = open_source([str(path)]).plan({"a": "int64"}, unit_size)
    read = []
    for unit in plan.units:
        for sample in plan.reader.read(unit):
            name, number = str(sample.place).split(" line ")
            assert name == str(path)
            read.append((sample.values, int(number)))
    assert read == expected


def test_units_cut_within_long_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    samples = [{"text": "x" * size} for size in (0, 1000, 3, 2_000_000, 5, 0)]
    path.write_bytes(jsonl(*samples))
    plan = open_source([str(path)]).plan(None, 400)
    assert len(plan.units) > 4000
    assert [s.values for unit in plan.units for s in plan.reader.read(unit)] == samples


@pytest.mark.parametrize(
    ("values", "type_text"),
    [
        ([True, False], "bool"),
        ([1, -(2**63), 2**63 - 1], "int64"),
        ([1.5, 2.0], "float64"),
        ([1, 2.5], "float64"),
        ([2**53 + 1, 2.5], "json"),
        ([2**63], "json"),
        (["a", ""], "str"),
        ([{"a": 1}], "json"),
        ([[1, 2]], "json"),
        ([1, "a"], "json"),
        ([True, 1], "json"),
        ([None, 1], "int64?"),
        ([1.0, None, 2], "float64?"),
        ([None, None], "json?"),
        (["a", None, {}], "json?"),
    ],
)
def test_inferred_type(tree, read_all, values: list[object], type_text: str) -> None:
    plan, units = read_all(tree({"a.jsonl": jsonl(*({"f": value} for value in values))}))
    assert plan.types == {"f": type_text}
    assert [sample["f"] for sample in units[0]] == values


def test_fields_in_order_of_appearance_and_absent_ones_nullable(tree, read_all) -> None:
    plan, _ = read_all(tree({"a.jsonl": jsonl({"z": 1, "a": "x"}, {"z": 2, "m": [1]})}))
    assert list(plan.types.items()) == [("z", "int64"), ("a", "str?"), ("m", "json?")]


def test_types_come_from_the_first_thousand_lines(tree, read_all) -> None:
    rows = [{"a": 1}] * INFERRED_LINES + [{"a": "late"}]
    plan, _ = read_all(tree({"a.jsonl": jsonl(*rows)}))
    assert (
        plan.types == {"a": "int64"} and "inferred from the first 1,000 lines; give others with --schema" in plan.hint
    )
    plan, _ = read_all(tree({"a.jsonl": jsonl(*rows[1:])}))
    assert plan.types == {"a": "json"}


def test_given_types_are_the_whole_schema(tree, read_all) -> None:
    plan, _ = read_all(tree({"a.jsonl": jsonl({"a": 1})}), types={"a": "float32", "b": "str?"})
    assert plan.types == {"a": "float32", "b": "str?"} and plan.hint == ""


def test_plain_gz_and_zst_files_of_a_folder_in_order(tree, read_all) -> None:
    frames = zstd(jsonl({"a": 3})) + zstd(b"") + zstd(jsonl({"a": 4}) + b'{"a"') + zstd(b": 5}\n")
    members = gzip.compress(jsonl({"a": 1})) + gzip.compress(jsonl({"a": 2}))
    files = {"1.jsonl.gz": members, "2.NDJSON.zst": frames, "3/x.ndjson": jsonl({"a": 6}), "4.jsonl": b""}
    plan, units = read_all(tree(files))
    assert [sample["a"] for unit in units for sample in unit] == [1, 2, 3, 4, 5, 6]
    assert len(units) == 1
    plan, units = read_all(tree(files), unit_size=1)
    assert [sample["a"] for unit in units for sample in unit] == [1, 2, 3, 4, 5, 6]
    assert sum(unit.num_bytes for unit in plan.units) == sum(map(len, files.values()))


def test_several_files_in_the_order_given(tree, read_all) -> None:
    root = tree({"b.jsonl": jsonl({"a": 1}), "a.jsonl": jsonl({"a": 2})})
    _, units = read_all(f"{root}/b.jsonl", f"{root}/a.jsonl")
    assert [sample["a"] for sample in units[0]] == [1, 2]
    with pytest.raises(PackError, match="the same file is given twice"):
        open_source([f"{root}/b.jsonl", f"{root}/../source/b.jsonl"])


def test_relative_files_are_found_from_another_directory(tree, monkeypatch) -> None:
    root = tree({"a.jsonl": jsonl({"a": 1})})
    monkeypatch.chdir(root)
    plan = open_source(["a.jsonl"]).plan(None, None)
    monkeypatch.chdir("/")
    [sample] = plan.reader.read(plan.units[0])
    assert sample.values == {"a": 1} and str(sample.place) == "a.jsonl line 1"


def test_byte_order_mark_blank_lines_and_a_last_line_without_end(tree, read_all) -> None:
    data = b'\xef\xbb\xbf\r\n{"a": 1}\r\n\n \t\n{"a": 2}'
    _, units = read_all(tree({"a.jsonl": data, "b.jsonl": b'\xef\xbb\xbf{"a": 3}'}))
    assert units == [[{"a": 1}, {"a": 2}, {"a": 3}]]


GOOD = b'{"a": 1}\n'
BAD_LINES = [
    (b'{"a": 1', "broken JSON: Expecting ',' delimiter at column"),
    (b'{"a": 1} {"a": 2}', "broken JSON: Extra data at column 10"),
    (b'{"a": \xff}', "is not UTF-8: byte 6 of the line is 0xff"),
    (b'{"a": 1, "a": 1}', "field 'a' stands in an object twice"),
    (b'{"b": {"c": 1, "d": 2, "c": 3}}', "field 'c' stands in an object twice"),
    (b'{"a": NaN}', "NaN is not JSON"),
    (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
    (b'{"a": 1e999}', "field 'a': the number is too large for float64"),
    (b"[1, 2]", "expected an object, got an array"),
    (b'"a"', "expected an object, got a string"),
    (b"null", "expected an object, got null"),
    (b"7", "expected an object, got a number"),
    (b"true", "expected an object, got a boolean"),
    (b'{"a": ' + b"[" * 200_000, "broken JSON: maximum recursion depth exceeded"),
    (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON: Exceeds the limit"),
    (b"{'a': 1}", "broken JSON: Expecting property name"),
    (b'\xef\xbb\xbf{"a": 1}', "broken JSON: Expecting value at column 1"),
    (b'{"_a": 1}', "field name '_a' is reserved"),
    (b'{"": 1}', "'' is no field name"),
    (b'{"\\ud800": 1}', "is not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message[:30] for _, message in BAD_LINES])
def test_bad_line_is_named_with_its_file_and_number(tree, read_all, line: bytes, message: str) -> None:
    root = tree({"a.jsonl": GOOD, "b.jsonl": GOOD * 3 + b"\n" + line + b"\n" + GOOD})
    with pytest.raises(PackError) as caught:
        read_all(root)
    assert str(caught.value).startswith(f"{root}/b.jsonl line 5") and message in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_line_number_in_a_late_unit(tree, samples, suffix: str) -> None:
    data = GOOD * 5000 + b"\n" * 7 + b"{\n" + GOOD * 10
    data = {"gz": gzip.compress(data), "zst": zstd(data)}.get(suffix[6:], data)
    plan = open_source([tree({f"a.{suffix}": data})]).plan({"a": "int64"}, 1000)
    with pytest.raises(PackError, match=r"line 5008: broken JSON"):
        for unit in reversed(plan.units):
            list(samples(plan.reader, unit))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_every_truncation_of_a_compressed_file_is_an_error(tree, read_all, suffix: str) -> None:
    data = jsonl(*({"a": number} for number in range(200)))
    whole = gzip.compress(data) if suffix == "gz" else zstd(data)
    for size in range(len(whole)):
        root = tree({f"a.jsonl.{suffix}": whole[:size]})
        with pytest.raises(PackError) as caught:
            read_all(root, types={"a": "int64"})
        assert str(caught.value).startswith(f"{root}/a.jsonl.{suffix} is damaged or was cut short: ")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_what_is_not_compressed_at_all(tree, read_all, suffix: str) -> None:
    root = tree({f"a.jsonl.{suffix}": GOOD})
    with pytest.raises(PackError, match=rf"a\.jsonl\.{suffix} is damaged or was cut short"):
        read_all(root)


def test_a_line_over_the_limit_is_an_error_not_a_full_memory(tree, samples, monkeypatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    long = jsonl({"a": "x" * 2000})
    for name, data in (("a.jsonl", GOOD + long), ("a.jsonl.zst", zstd(GOOD + long))):
        plan = open_source([tree({name: data}) + f"/{name}"]).plan({"a": "json"}, 400)
        with pytest.raises(PackError, match=re.escape(f"{name} line 2 is longer than 1000 B, the limit for a line")):
            for unit in plan.units:
                list(samples(plan.reader, unit))


def test_a_bomb_is_read_in_pieces(tree, samples, monkeypatch) -> None:
    # 256 MiB of zeros in about 8 KiB: what is made ready at once stays below what one feeding can hold.
    data = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    plan = open_source([tree({"a.jsonl.zst": data})]).plan({"a": "json"}, None)
    with pytest.raises(PackError, match=r"longer than 1\.0 MiB"):
        list(samples(plan.reader, plan.units[0]))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("unit_size", [100, 1200, None])
def test_what_is_no_sample_is_named_and_the_rest_is_read(tree, monkeypatch, suffix: str, unit_size: int | None) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    bad = [line + b"\n" for line, _ in BAD_LINES[:13]] + [
        b"\xff\n",
        b"x" * 1000 + b"\n",
        b"x" * 500_000 + b"\n",
        b"[" * 1001,
    ]
    data = b"".join(GOOD + line for line in bad)
    data = {"gz": gzip.compress(data), "zst": zstd(data)}.get(suffix[6:], data)
    root = tree({f"a.{suffix}": data})
    plan = open_source([root]).plan({"a": "int64"}, unit_size)
    items = [item for unit in plan.units for item in plan.reader.read(unit)]
    rejects = [item for item in items if isinstance(item, Reject)]
    assert [str(item.place) for item in items] == [f"{root}/a.{suffix} line {n}" for n in range(1, 2 * len(bad) + 1)]
    assert [str(reject.place) for reject in rejects] == [str(item.place) for item in items[1::2]]
    assert [item.values for item in items if isinstance(item, Sample)] == [{"a": 1}] * len(bad)
    assert [message in reject.reason for reject, (_, message) in zip(rejects, BAD_LINES[:13])] == [True] * 13
    assert [reject.reason for reject in rejects[-3:]] == ["is longer than 1000 B, the limit for a line"] * 3
    if unit_size is None and suffix == "jsonl":
        # The rest of a line over the limit counts with the line after it.
        assert sum(item.num_bytes for item in items) == len(data)


def test_types_are_inferred_from_the_lines_that_are_samples(tree) -> None:
    bad = b"{\n" + b'{"_a": 1}\n' + b'{"a": "\xff"}\n'
    plan = open_source([tree({"a.jsonl": bad + GOOD + bad})]).plan(None, None)
    assert plan.types == {"a": "int64"}
    assert plan.reject is not None and "line 1: broken JSON" in plan.reject.message
    with pytest.raises(PackError, match=r"a\.jsonl line 1: broken JSON"):
        open_source([tree({"a.jsonl": bad})]).plan(None, None)


def test_a_file_that_is_none_is_never_passed_over(tree) -> None:
    root = tree({"a.jsonl": GOOD})
    os.mkfifo(f"{root}/b.jsonl")
    with pytest.raises(PackError, match=r"b\.jsonl is a FIFO; only regular files can be packed"):
        open_source([root]).plan(None, None)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_file_that_changes_while_it_is_read(tree, suffix: str) -> None:
    data = GOOD * 100_000
    root = tree({f"a.{suffix}": data if suffix == "jsonl" else gzip.compress(data)})
    plan = open_source([root]).plan(None, None)
    samples = plan.reader.read(plan.units[0])
    next(samples)
    os.utime(f"{root}/a.{suffix}", ns=(1, 1))
    with pytest.raises(PackError, match=rf"a\.{suffix} changed while it was being packed"):
        list(samples)
    with pytest.raises(PackError, match="changed while it was being packed"):
        next(plan.reader.read(plan.units[0]))


def test_read_error_in_the_middle(tree) -> None:
    root = tree({})
    os.symlink("/proc/self/mem", f"{root}/a.jsonl")
    plan = open_source([root]).plan({"a": "int64"}, None)
    assert plan.units[0].num_bytes == 0
    assert list(plan.reader.read(plan.units[0])) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": b""}, "source is empty: no sample to pack"),
        ({"a.jsonl": b"\n \n"}, "source holds blank lines only: no sample to pack"),
        ({"a.jsonl": b"{}\n"}, "a schema has 1 to 1024 fields, not 0"),
        ({"a.jsonl": jsonl({f"f{n}": 1 for n in range(1025)})}, "a schema has 1 to 1024 fields, not 1025"),
        ({"a.jsonl": GOOD, "README.md": b""}, "holds 1 JSON Lines files and 1 others (such as README.md)"),
    ],
)
def test_nothing_that_can_be_packed(tree, read_all, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(PackError, match=re.escape(message)):
        read_all(tree(files))


def test_a_file_of_another_kind_is_no_source(tree) -> None:
    root = tree({"a.rst": b"1"})
    with pytest.raises(PackError, match=re.escape(f"{root}/a.rst is not a source: give a folder, or JSON Lines files")):
        open_source([f"{root}/a.rst"])


def test_include_is_for_folders(tree) -> None:
    root = tree({"a.jsonl": GOOD})
    with pytest.raises(ValueError, match="include and exclude patterns select files of a folder"):
        open_source([f"{root}/a.jsonl"], ["*.jsonl"])
