"""Parquet and Arrow files as pyarrow itself writes them."""

from __future__ import annotations

import datetime
import decimal
import math
import pickle
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import PackError
from shardload.importers import Reject, arrow_ipc, open_source, parquet
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")
pq = pytest.importorskip("pyarrow.parquet", reason="this pyarrow has no Parquet")

JPEG, PNG = b"\xff\xd8\xff\xe0 jpeg", b"\x89PNG\r\n\x1a\n png"
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, table, chunk: int = 1 << 20, **options) -> str:
    """Writes a table by the suffix of the path; `.ipc` is a stream."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=chunk, **options)
    else:
        new = pa.ipc.new_stream if path.suffix == ".ipc" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema, **options) as writer:
            writer.write_table(table, max_chunksize=chunk)
    return str(path)


def read(*paths, types=None, unit_size=None, include=()):
    plan = open_source([str(path) for path in paths], include).plan(types, unit_size)
    reader = pickle.loads(pickle.dumps(plan.reader))
    return plan, [item for unit in plan.units for item in reader.read(unit)]


def plain(value):
    """Returns a value in Python's own types; NaN as text, which equals itself."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


INT16 = st.integers(-(2**15), 2**15 - 1)
COLUMNS = {
    "int16": (pa.int16(), INT16),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float32": (pa.float32(), st.floats(width=32)),
    "float16": (pa.float16(), st.floats(width=16).map(np.float16)),
    "bool": (pa.bool_(), st.booleans()),
    "str": (pa.large_string(), st.text(max_size=5)),
    "bytes": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "int16[2,3]": (pa.list_(pa.list_(pa.int16(), 3), 2), st.lists(st.lists(INT16, min_size=3, max_size=3), min_size=2, max_size=2)),
    "int16[*]": (pa.list_(pa.int16()), st.lists(INT16, max_size=4)),
    "bool[*,2]": (pa.large_list(pa.list_(pa.bool_(), 2)), st.lists(st.lists(st.booleans(), min_size=2, max_size=2), max_size=3)),
    "str[*]": (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    "bytes[*]": (pa.list_(pa.large_binary()), st.lists(st.binary(max_size=3), max_size=3)),
    "json": (pa.list_(pa.struct([("a", pa.int16())])), st.lists(st.fixed_dictionaries({"a": INT16}), max_size=2)),
}  # fmt: skip
WRITTEN = st.sampled_from(
    [
        (".parquet", {}),
        (".parquet", {"compression": "zstd", "use_dictionary": False}),
        (".arrow", {}),
        (".ipc", {}),
        (".feather", {"options": pa.ipc.IpcWriteOptions(compression="lz4")}),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data(), WRITTEN, st.integers(1, 9), st.integers(300, 5000), st.integers(1, 20))
def test_each_row_is_a_sample_of_one_unit(
    tmp_path, monkeypatch, data, written, chunk: int, unit_size: int, num_rows: int
) -> None:
    suffix, options = written
    monkeypatch.setattr(arrow_ipc, "_SLICE_ROWS", 2)
    kinds = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=4, max_size=7, unique=True))
    columns, schema = {}, []
    for name in kinds:
        kind, values = COLUMNS[name]
        nulls = data.draw(st.booleans())
        column = st.lists(st.none() | values if nulls else values, min_size=num_rows, max_size=num_rows)
        columns[name] = data.draw(column)
        schema.append(pa.field(name, kind, nullable=nulls or data.draw(st.booleans())))
    table = pa.table(columns, pa.schema(schema))
    path = write(tmp_path / f"a{suffix}", table, chunk, **options)
    plan, samples = read(path, unit_size=unit_size)
    for name, text in plan.types.items():
        has_nulls = None in columns[name]
        sure = suffix != ".parquet" or ("[*" not in name and name != "json")
        assert text.rstrip("?") == name and text.endswith("?") >= has_nulls, text
        assert not sure or text.endswith("?") == has_nulls, text
    for number, sample in enumerate(samples):
        assert sample.place == f"{path} row {number}"
        for name in kinds:
            assert plain(sample.values[name]) == plain(columns[name][number])
    assert len(samples) == num_rows


def test_units_cut_a_file_between_row_groups_and_batches(tmp_path) -> None:
    table = pa.table({"a": pa.array(range(1000)), "t": [f"{i:x}" * 40 for i in range(1000)]})
    for suffix in (".parquet", ".arrow", ".ipc"):
        path = write(tmp_path / f"a{suffix}", table, 10)
        plan = open_source([path]).plan(None, 2000)
        counts = [sum(1 for _ in plan.reader.read(unit)) for unit in plan.units]
        assert sum(counts) == 1000 and max(counts) <= 100, counts


def test_dictionaries_that_are_replaced_and_grow_reach_every_unit(tmp_path) -> None:
    words = [[f"{i}-{j}" for j in range(3)] for i in range(20)]
    schema = pa.schema([("w", pa.dictionary(pa.int8(), pa.string()))])
    batches = [pa.record_batch([pa.array(one).dictionary_encode()], schema) for one in words]
    grown = [
        pa.record_batch([pa.DictionaryArray.from_arrays([i], pa.array([str(j) for j in range(i + 1)]))], ["w"])
        for i in range(20)
    ]
    for name, rows, expected, options in (
        ("replaced", batches, [word for one in words for word in one], {}),
        ("grown", grown, [str(i) for i in range(20)], {"options": pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)}),
    ):
        path = tmp_path / f"{name}.ipc"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows[0].schema, **options) as writer:
            for batch in rows:
                writer.write_batch(batch)
        plan, samples = read(path, unit_size=300)
        assert [sample.values["w"] for sample in samples] == expected and len(plan.units) > 10


def test_columns_without_a_type_of_their_own(tmp_path) -> None:
    when = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    table = pa.table(
        {
            "date": [datetime.date(2020, 1, 2)],
            "local": pa.array([when], pa.timestamp("us")),
            "zone": pa.array([when], pa.timestamp("ns", "America/New_York")),
            "time": pa.array([datetime.time(3, 4, 5)], pa.time32("ms")),
            "price": [decimal.Decimal("1.50")],
            "words": pa.array(["x"]).dictionary_encode(),
            "map": pa.array([[("k", [1, None])]], pa.map_(pa.string(), pa.list_(pa.int8()))),
            "inner": pa.array([{"d": datetime.date(2020, 1, 2), "p": decimal.Decimal("2.0")}]),
            "none": pa.nulls(1),
            "lists": [[[1], [2, 3]]],
            "__index_level_0__": [7],
        }
    )
    for suffix in (".parquet", ".arrow"):
        plan, [sample] = read(write(tmp_path / f"a{suffix}", table))
        assert sample.values == {
            "date": "2020-01-02",
            "local": "2020-01-02 03:04:05.000006",
            "zone": "2020-01-02 03:04:05.000006000Z",
            "time": "03:04:05.000",
            "price": "1.50",
            "words": "x",
            "map": {"k": [1, None]},
            "inner": {"d": "2020-01-02", "p": "2.0"},
            "none": None,
            "lists": [[1], [2, 3]],
        }
        assert {name for name, text in plan.types.items() if text == "json"} == {"map", "inner", "lists"}
        assert plan.types["none"] == "json?"
    _, [sample] = read(tmp_path / "a.arrow", types={"date": "int32", "local": "int64"})
    assert sample.values == {"date": 18263, "local": 1577934245000006}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1], pa.duration("s")), r"holds duration\[s\], for which there is no type: leave it out"),
        (pa.array([[(1, 2)]], pa.map_(pa.int8(), pa.int8())), "has a map whose keys are int8, not text"),
        (pa.array([{"x": b"1"}]), "holds binary, for which there is no type"),
        (pa.array([[1]], pa.list_(pa.timestamp("ns"))), r"timestamp\[ns\] within lists or structs, which JSON cannot"),
    ],
)  # fmt: skip
def test_columns_that_are_refused(tmp_path, column, message: str) -> None:
    path = write(tmp_path / "x.arrow", pa.table({"a": column, "b": [1]}))
    with pytest.raises(PackError, match=f"{path}: its column 'a' .*{message}"):
        read(path)
    assert read(path, types={"b": "int8"})[1][0].values == {"b": 1}


@pytest.mark.parametrize(
    ("starts", "type_text"),
    [([JPEG, JPEG], "jpeg"), ([PNG], "png"), ([b"fLaC"], "audio"), ([JPEG, PNG], "bytes"), ([None, JPEG], "jpeg?"), ([], "bytes?")],
)  # fmt: skip
def test_files_of_hugging_face_are_told_by_how_they_start(tmp_path, starts, type_text: str) -> None:
    rows = [one and {"bytes": one, "path": None} for one in starts] or [None]
    for suffix in (".parquet", ".ipc"):
        plan, samples = read(write(tmp_path / f"a{suffix}", pa.table({"image": pa.array(rows, MEDIA)}), 1))
        assert plan.types == {"image": type_text}
        assert [sample.values["image"] for sample in samples] == (starts or [None])


def test_types_given_choose_and_convert(tmp_path) -> None:
    table = pa.table(
        {"ids": pa.array([[1, 2], [3, 70000], [4]], pa.list_(pa.int64())), "x": [0.1, 0.2, 0.3], "y": [1, 2, 3]}
    )
    path = write(tmp_path / "a.parquet", table)
    plan, samples = read(path, types={"y": "int8", "ids": "uint16[*]", "more": "str?"})
    assert list(plan.types) == ["y", "ids", "more"] and set(samples[0].values) == {"y", "ids"}
    assert samples[2].values["ids"].dtype == np.uint16
    summary = pack(path, tmp_path / "out", schema={"ids": "uint16[*]", "x": "float32"}, on_error="reject", workers=1)
    assert summary.num_samples == 2 and summary.num_rejects == 1
    assert "row 1" in (tmp_path / "out" / "rejects.jsonl").read_text()
    dataset = shardload.open(tmp_path / "out")
    assert dataset[1]["ids"].tolist() == [4] and dataset[1]["x"] == np.float32(0.3)
    with pytest.raises(PackError, match=r"row 1.*uint16.*the whole|row 1.*uint16"):
        pack(path, tmp_path / "other", schema={"ids": "uint16[*]"}, workers=1)
    for types, message in (
        ({"z": "int8"}, r"a.parquet has no column 'z', but ids, x, y; .*make its type int8\?"),
        ({"x": "int64[*]"}, r"its column 'x' is double and cannot be int64\[\*\]"),
        ({"y": "jpeg"}, "its column 'y' is int64 and cannot be jpeg"),
        ({"ids": "str"}, r"its column 'ids' is list<.*> and cannot be str"),
    ):
        with pytest.raises(PackError, match=message):
            read(path, types=types)


def test_rows_that_are_no_samples(tmp_path) -> None:
    bad_text = pa.Array.from_buffers(
        pa.string(), 2, [*pa.array(["ab", "cd"]).buffers()[:2], pa.py_buffer(b"ab\xff\xfe")]
    )
    table = pa.table(
        {
            "t": bad_text,
            "l": pa.array([[1, None], [2, 3]], pa.list_(pa.int8())),
            "i": pa.array([{"bytes": JPEG, "path": "x"}, {"bytes": None, "path": "gone.jpg"}], MEDIA),
        }
    )
    path = write(tmp_path / "a.parquet", table)
    for name, row, reason in (
        ("t", 1, "is not UTF-8: byte 0 is 0xff"),
        ("l", 0, "has a null within, .*type json"),
        ("i", 1, "names the file 'gone.jpg' but holds no bytes"),
    ):
        _, items = read(path, types={name: {"t": "str", "l": "int8[*]?", "i": "jpeg"}[name]})
        [reject] = [item for item in items if isinstance(item, Reject)]
        assert reject.place == f"{path} row {row}" and len(items) == 2
        with pytest.raises(PackError, match=f"row {row}: field '{name}' {reason}"):
            raise PackError(reject.message)
    assert [one.values["l"] for one in read(path, types={"l": "json"})[1]] == [[1, None], [2, 3]]


def test_files_of_another_schema_are_named(tmp_path) -> None:
    write(tmp_path / "a.parquet", pa.table({"x": [1], "y": ["a"]}))
    write(tmp_path / "b.parquet", pa.table({"x": [1.5], "y": ["b"]}))
    with pytest.raises(
        PackError, match=r"b.parquet is of another schema than .*a.parquet: column 'x': .* float64, .* int64"
    ):
        read(tmp_path)
    _, samples = read(tmp_path, types={"x": "float64", "y": "str"})
    assert [sample.values["x"] for sample in samples] == [1, 1.5]
    write(tmp_path / "b.parquet", pa.table({"x": [2]}))
    with pytest.raises(PackError, match="column 'y': the former does not have it"):
        read(tmp_path)
    assert [sample.values for sample in read(tmp_path, types={"x": "int8", "y": "str?"})[1]] == [
        {"x": 1, "y": "a"},
        {"x": 2},
    ]
    # A null in the second file only, and text of another width, are no difference.
    write(
        tmp_path / "b.parquet", pa.table({"x": pa.array([None], pa.int64()), "y": pa.array(["b"], pa.large_string())})
    )
    assert read(tmp_path)[0].types == {"x": "int64?", "y": "str"}
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(PackError, match="holds 2 Parquet files and 1 others"):
        read(tmp_path)
    assert len(read(tmp_path, include=["*.parquet"])[1]) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ipc"])
def test_every_cut_and_many_flips_are_errors_or_harmless(tmp_path, suffix: str) -> None:
    table = pa.table({"a": [1, 2, 3], "s": ["x", "yy", None], "l": [[1], [], [2, 3]]})
    whole = (tmp_path / "whole").with_suffix(suffix)
    write(whole, table, 2)
    data = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(PackError, match=f"{path} .*(damaged|cut short|is empty)"):
            read(path)
    path.write_bytes(data[:-1])
    with pytest.raises(PackError, match="cut short"):
        read(path)
    for at in range(0, len(data), 11):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            _, items = read(path)
        except PackError as error:
            assert str(path) in str(error), error
        else:
            assert len(items) <= 3


def test_what_is_none_is_told(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": [1], "_b": [2]}))
    with pytest.raises(PackError, match=r"a.parquet: field .*_b.*leave it out, with --schema"):
        read(path)
    with pytest.raises(PackError, match="holds no row"):
        read(write(tmp_path / "e.arrow", pa.table({"a": pa.array([], pa.int8())})))
    (tmp_path / "v1.feather").write_bytes(b"FEA1" + bytes(40))
    with pytest.raises(PackError, match="Feather file of version 1"):
        read(tmp_path / "v1.feather")
    plan = open_source([path]).plan({"a": "int8"}, None)
    write(tmp_path / "a.parquet", pa.table({"a": [1, 2]}))
    with pytest.raises(PackError, match=r"a.parquet changed while it was being packed"):
        list(plan.reader.read(plan.units[0]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PackError, match=r"pip install 'shardload\[parquet\]'"):
        read(path)


def test_a_pack_is_the_same_for_any_number_of_workers_and_after_an_interruption(tmp_path) -> None:
    rows = range(3000)
    table = pa.table(
        {"id": pa.array(rows, pa.int32()), "text": [f"text {i}" * 9 for i in rows], "t": [[i] * (i % 5) for i in rows]}
    )
    source = tmp_path / "in"
    source.mkdir()
    for i in range(3):
        write(source / f"{i}.parquet", table.slice(i * 1000, 1000), 100)
    options = {"unit_size": "8KiB", "shard_size": "16KiB"}
    one = pack(source, tmp_path / "one", workers=1, **options)
    two = pack(source, tmp_path / "two", workers=2, **options)
    assert one.fingerprint == two.fingerprint and one.num_units > 3

    class Stop(Exception):
        pass

    def stop(report):
        if report.done.num_samples > 0:
            raise Stop

    with pytest.raises((Stop, PackError)):
        pack(source, tmp_path / "cut", workers=1, progress=stop, **options)
    assert pack(source, tmp_path / "cut", workers=1, resume=True, **options).fingerprint == one.fingerprint
    dataset = shardload.open(tmp_path / "two")
    assert [dataset[i]["id"] for i in range(3000)] == list(rows) and dataset[4]["t"].tolist() == [4] * 4


def test_text_becomes_tokens(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": ["ab", "c"], "n": [1, 2]}))
    pack(path, tmp_path / "out", tokenizer="bytes", workers=1)
    assert shardload.open(tmp_path / "out")[0]["tokens"].tolist() == [97, 98]


def test_only_a_little_of_a_large_row_group_is_in_memory(tmp_path) -> None:
    table = pa.table({"x": [bytes([i % 256]) * 100_000 for i in range(300)]})
    path = write(tmp_path / "a.parquet", table, compression="none", use_dictionary=False, write_batch_size=10)
    del table
    plan = open_source([path]).plan(None, None)
    before = pa.total_allocated_bytes()
    most = 0
    for _ in plan.reader.read(plan.units[0]):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 16 << 20


LONG = "x" * (1 << 18)
REPEATING = {
    "text": lambda: pa.array([None] + [LONG] * 200),
    "texts": lambda: pa.array([[]] + [[LONG, "a"]] * 200),
    "in a struct": lambda: pa.array([{"t": LONG, "n": 1}] * 200),
    "numbers": lambda: pa.ListArray.from_arrays(np.arange(201) << 15, np.zeros(200 << 15, np.int64)),
    "fixed bytes": lambda: pa.array([bytes(1 << 18)] * 200, pa.binary(1 << 18)),
    "deltas": lambda: pa.array([LONG] * 200),
}


@pytest.mark.parametrize("kind", REPEATING)
def test_a_value_that_repeats_is_not_in_memory_for_all_of_its_rows(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(parquet, "_REPEATED_BYTES", 4 << 20)
    column = REPEATING[kind]()
    table = pa.table({"x": column, "y.z": [1] * len(column)})
    deltas = {"column_encoding": {"x": "DELTA_BYTE_ARRAY"}, "use_dictionary": False} if kind == "deltas" else {}
    path = tmp_path / "a.parquet"
    write(path, table, compression="zstd", **deltas)
    num_rows = len(column)
    del column, table
    assert path.stat().st_size < 1 << 18
    plan = open_source([str(path)]).plan(None, None)
    before = pa.total_allocated_bytes()
    taken = [pa.total_allocated_bytes() - before for _ in plan.reader.read(plan.units[0])]
    assert len(taken) == num_rows and max(taken) < 24 << 20
