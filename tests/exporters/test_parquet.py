"""Exported Parquet files: what pyarrow reads in them, and their row groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
from any_dataset import assert_same
from faults import NoDevice

import shardload

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'shardload[parquet]'")


def test_pyarrow_reads_the_values(everything, tmp_path):
    summary = shardload.export(everything, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == list(everything.schema) == list(summary.stored)
    assert [field.nullable for field in table.schema] == [field.nullable for field in everything.field_list]
    for theirs, ours in zip(table.to_pylist(), everything, strict=True):
        for name, value in ours.items():
            one = theirs[name]
            if one is not None and everything.schema[name].kind == "json":
                one = json.loads(one)
            if isinstance(value, np.ndarray):
                # Of no item nobody can tell the shape.
                one = np.array(one, dtype=value.dtype).reshape(value.shape)
            assert_same(one, value)


def test_row_groups_and_files_are_bounded(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [10, 70_000, 10, 10, 300_000, 5] * 20
    with shardload.ShardWriter(tmp_path / "d", {"data": "bytes", "n": "int64"}) as writer:
        for n, length in enumerate(lengths):
            writer.write({"data": rng.bytes(length), "n": n})
    shardload.export(tmp_path / "d", tmp_path / "out", to="parquet", shard_size=1_000_000)
    files = [pq.ParquetFile(path) for path in sorted((tmp_path / "out").iterdir())]
    groups = [file.metadata.row_group(i) for file in files for i in range(file.metadata.num_row_groups)]
    assert all(group.total_byte_size < 1_100_000 or group.num_rows == 1 for group in groups)
    assert all(group.column(0).compression == "ZSTD" for group in groups)
    assert len(files) == 5
    assert all(path.stat().st_size < 2_200_000 for path in (tmp_path / "out").iterdir())
    assert np.concatenate([file.read(["n"])["n"].to_numpy() for file in files]).tolist() == list(range(len(lengths)))


def test_fields_and_samples_may_be_chosen(numbers, tmp_path):
    view = shardload.open(numbers)[10:20]
    shardload.export(view, tmp_path / "out.parquet", fields=["number"], operations=NoDevice())
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == {"number": list(range(10, 20))}
    shardload.pack(tmp_path / "out.parquet", numbers.parent / "n", schema={"number": "int16"}, workers=1)
    assert shardload.open(numbers.parent / "n").column("number").tolist() == list(range(10, 20))


def test_broken_json_and_notes_are_named(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"facts": "json"}) as writer:
        writer.write({"facts": {"a": 1}})
    shardload.export(tmp_path / "d", tmp_path / "good.parquet")
    table = pq.read_table(tmp_path / "good.parquet")
    pq.write_table(table.set_column(0, table.schema.field(0), [["{broken"]]), tmp_path / "text.parquet")
    with pytest.raises(shardload.PackError, match=r"text\.parquet row 0: field 'facts' is broken JSON"):
        shardload.pack(tmp_path / "text.parquet", tmp_path / "no")
    broken = {key: value.replace(b'"json"', b'"jsan"') for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(broken), tmp_path / "note.parquet")
    with pytest.raises(shardload.PackError, match=r"note\.parquet: field 'facts': unknown type 'jsan'"):
        shardload.pack(tmp_path / "note.parquet", tmp_path / "no")
    # Without the note it is text.
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "plain.parquet")
    shardload.pack(tmp_path / "plain.parquet", tmp_path / "plain")
    assert shardload.open(tmp_path / "plain")[0] == {"facts": '{"a":1}'}


def test_datasets_of_hugging_face_read_the_values(numbers, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    hugging_face = pytest.importorskip(
        "datasets", reason="datasets is not installed: pip install 'shardload[datasets]'"
    )
    shardload.export(numbers, tmp_path / "out", to="parquet")
    shardload.export(numbers, tmp_path / "tars", to="webdataset")
    ours = list(shardload.open(numbers))
    rows = hugging_face.load_dataset(
        "parquet", data_files=str(tmp_path / "out/*.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert list(rows) == ours
    rows = hugging_face.load_dataset(
        "webdataset", data_files=str(tmp_path / "tars/*.tar"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [{"number": one["number.cls"], "text": one["text"]} for one in rows] == ours
