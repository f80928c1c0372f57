"""CSV and TSV files as Python's own writer writes them."""

from __future__ import annotations

import csv
import gzip
import io
import re

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import PackError
from shardload.importers import Reject, delimited, lines, open_source
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")


def table(*rows, delimiter: str = ",", **options) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, **options).writerows(rows)
    return text.getvalue().encode()


def items_of(*paths, types=None, unit_size=None):
    plan = open_source([str(path) for path in paths]).plan(types, unit_size)
    return plan, [item for unit in plan.units for item in plan.reader.read(unit)]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(
    ['"', '""', "a,b\tc", "x\r\ny", "\n"]
)
PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(TEXT, TEXT), max_size=10),
    st.sampled_from([(".csv", ","), (".tsv", "\t"), (".TSV", "\t")]),
    st.sampled_from(sorted(PACKINGS)),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.booleans(),
)
def test_rows_come_back_as_they_were_written(tmp_path, rows, kind, packing: str, quoting, marked: bool) -> None:
    suffix, delimiter = kind
    path = tmp_path / f"a{suffix}{packing}"
    data = table(["one", "two"], *rows, delimiter=delimiter, quoting=quoting)
    path.write_bytes(PACKINGS[packing](b"\xef\xbb\xbf" * marked + data))
    plan, samples = items_of(path, types={"two": "str", "one": "str"})
    assert [(sample.values["one"], sample.values["two"]) for sample in samples] == rows
    number = 2
    for sample, row in zip(samples, rows, strict=True):
        assert str(sample.place) == f"{path} line {number}"
        number += 1 + sum(text.count("\n") for text in row)
    assert len(plan.units) == 1 and (packing or sum(sample.num_bytes for sample in samples) in (0, path.stat().st_size))


@pytest.mark.parametrize(
    ("texts", "type_text", "values"),
    [
        (["1", "-9223372036854775808"], "int64", [1, -(2**63)]),
        (["1", "", "3"], "int64?", [1, None, 3]),
        (["00501", "1"], "str", ["00501", "1"]),
        (["9223372036854775808"], "str", ["9223372036854775808"]),
        (["1", "2.5", "-1e3", ".5"], "float64", [1.0, 2.5, -1000.0, 0.5]),
        (["9007199254740993", "0.5"], "str", ["9007199254740993", "0.5"]),
        (["true", "False", ""], "bool?", [True, False, None]),
        (["inf", "-inf"], "float64", [float("inf"), float("-inf")]),
        (["a", ""], "str", ["a", ""]),
        (["", ""], "str", ["", ""]),
        (["1", "x"], "str", ["1", "x"]),
        (["1_000"], "str", ["1_000"]),
    ],
)
def test_inferred_type(tmp_path, texts, type_text: str, values) -> None:
    (tmp_path / "a.csv").write_bytes(table(["f", "g"], *([text, "x"] for text in texts)))
    plan, samples = items_of(tmp_path)
    assert plan.types == {"f": type_text, "g": "str"} and plan.reject is None
    assert [sample.values["f"] for sample in samples] == values
    assert "inferred from the first 1,000 rows; give others with --schema" in plan.hint


def test_types_given_are_enforced_and_choose(tmp_path) -> None:
    rows = [
        ["a", "b", "c", "d"],
        ["7", "1", "[1, 2]", '{"k": 1}'],
        ["x", "", "[]", ""],
        ["300", "yes", "[1", "{}"],
        ["+8", "0", "[3]", "2"],
    ]
    (tmp_path / "a.csv").write_bytes(table(*rows))
    types = {"d": "json?", "a": "uint8", "c": "int8[*]", "more": "str?"}
    _, items = items_of(tmp_path / "a.csv", types=types)
    assert items[0].values == {"d": {"k": 1}, "a": 7, "c": [1, 2]} and items[3].values["a"] == 8
    assert items[1].reason == "field 'a' is no integer: 'x'" and items[2].reason.startswith("field 'c' is broken JSON")
    _, items = items_of(tmp_path / "a.csv", types={"b": "bool"})
    assert [item.values["b"] for item in (items[0], items[3])] == [True, False]
    assert items[1].reason == "field 'b' is empty; if it may be, make its type bool?"
    assert items[2].reason == "field 'b' is neither true nor false: 'yes'"
    summary = pack(tmp_path / "a.csv", tmp_path / "out", schema=types, on_error="reject", workers=1)
    assert summary.num_samples == 2 and summary.num_rejects == 2
    for given_types, message in (
        ({"z": "int8"}, r"has no column 'z', but a, b, c, d; .*make its type int8\?"),
        ({"a": "jpeg"}, "its field 'a' is text and cannot be jpeg"),
        ({"z": "str?"}, "has none of the columns z"),
    ):
        with pytest.raises(PackError, match=message):
            items_of(tmp_path / "a.csv", types=given_types)


def test_rows_that_are_none_are_rejected_and_the_others_stay(tmp_path, monkeypatch) -> None:
    good = b"1,x\n"
    for bad, line, reason in (
        (b"1\n", 3, "has 1 values, but the header names 2 columns"),
        (b"1,2,3\n", 3, "has 3 values, but the header names 2 columns"),
        (b'1,"a"b\n', 3, "broken CSV: ',' expected after '\"'"),
        (b'1,"a\n\xffb\nc"\n', 3, "is not UTF-8: byte 0 of .* line 4 is 0xff"),
    ):
        path = tmp_path / "a.csv"
        path.write_bytes(b"n,t\n" + good + bad + b"\n" + good)
        plan, items = items_of(path)
        assert [type(item).__name__ for item in items] == ["Sample", "Reject", "Sample"], bad
        assert items[1].message == plan.reject.message and str(items[1].place) == f"{path} line {line}"
        assert re.search(re.escape(f"a.csv line {line}") + "(: | )" + reason, items[1].message), items[1].message
        with pytest.raises(PackError, match=f"line {line}"):
            pack(path, tmp_path / "out", workers=1)
    path.write_bytes(b'n,t\n1,"open\n' + good)
    [reject] = items_of(path, types={"n": "int8"})[1]
    assert isinstance(reject, Reject) and "broken CSV: unexpected end of data" in reject.message
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1000)
    path.write_bytes(b'n,t\n1,"open\n' + good * 500)
    with pytest.raises(PackError, match=r"a.csv line 2: its row does not end within 1000 B.*a quote may be missing"):
        items_of(path)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    path.write_bytes(b"n,t\n1," + b"x" * 200 + b"\n")
    with pytest.raises(PackError, match=r"a.csv line 2 is longer than"):
        items_of(path)


def test_headers_that_name_no_fields(tmp_path) -> None:
    for data, message in (
        (b"", "a.csv is empty: the first row must name the columns"),
        (b"\n\n", "a.csv is empty"),
        (b"a,b\n", "has no row below its header"),
        (b"a,a\n1,2\n", "line 1: the header names the column 'a' twice"),
        (b"a,\n1,2\n", "line 1: the header's column 2 cannot name a field"),
        (b"a;b\n1;2\n", r"line 1 names the single column 'a;b', which holds ';': .csv files are delimited by commas"),
        (b'"a\n', "a.csv line 1: broken CSV: unexpected end of data"),
    ):
        (tmp_path / "a.csv").write_bytes(data)
        with pytest.raises(PackError, match=message):
            items_of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "b.csv").write_bytes(b"b,a\n4,3\n")
    assert [sample.values for sample in items_of(tmp_path)[1]] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    (tmp_path / "b.csv").write_bytes(b"b,c\n4,3\n")
    with pytest.raises(PackError, match=r"b.csv has other columns than .*a.csv: only .*a.csv has 'a'"):
        items_of(tmp_path)
    assert [sample.values for sample in items_of(tmp_path, types={"b": "int8", "c": "int8?"})[1]] == [
        {"b": 2},
        {"b": 4, "c": 3},
    ]


def test_cut_streams_and_mixtures(tmp_path) -> None:
    whole = gzip.compress(table(["a", "b"], *([i, "x"] for i in range(100))))
    (tmp_path / "a.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(PackError, match=r"a.csv.gz is damaged or was cut short"):
        items_of(tmp_path / "a.csv.gz")
    # Beside other texts a CSV file is one of them.
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "texts" / "b.md").write_bytes(b"text")
    assert [sample.values["text"] for sample in items_of(tmp_path / "texts")[1]] == ["a,b\n1,2\n", "text"]
    limit = csv.field_size_limit()
    (tmp_path / "long.csv").write_bytes(table(["a", "b"], ["x" * 200_000, 1]))
    assert len(items_of(tmp_path / "long.csv")[1][0].values["a"]) == 200_000 and csv.field_size_limit() == limit


def test_a_pack_is_the_same_for_any_number_of_workers_and_after_an_interruption(tmp_path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(4):
        rows = [[i * 500 + j, f"text {j}\n" * 9, j / 4] for j in range(500)]
        (source / f"{i}.csv").write_bytes(table(["id", "text", "score"], *rows))
    options = {"unit_size": "8KiB", "shard_size": "16KiB"}
    one = pack(source, tmp_path / "one", workers=1, **options)
    assert pack(source, tmp_path / "two", workers=2, **options).fingerprint == one.fingerprint

    def stop(report) -> None:
        if report.done.num_samples:
            raise InterruptedError

    with pytest.raises((InterruptedError, PackError)):
        pack(source, tmp_path / "cut", workers=1, progress=stop, **options)
    assert pack(source, tmp_path / "cut", workers=1, resume=True, **options).fingerprint == one.fingerprint
    dataset = shardload.open(tmp_path / "two")
    assert [dataset[i]["id"] for i in range(2000)] == list(range(2000)) and dataset[3]["score"] == 0.75
