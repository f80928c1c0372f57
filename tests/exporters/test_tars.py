"""Exported tars: what webdataset reads in them, their keys, names and sizes."""

from __future__ import annotations

import gc
import tarfile
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import same

import shardload
from shardload.errors import ExportError
from shardload.exporters.members import extensions
from shardload.format.schema import parse_schema

UNPACK = webdataset.handle_extension("mp", msgspec.msgpack.decode)


def read(*paths: Path) -> list[dict]:
    """What webdataset itself reads and decodes."""
    with warnings.catch_warnings():
        # It leaves its files for the garbage collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        dataset = webdataset.WebDataset(list(map(str, paths)), shardshuffle=False, empty_check=False)
        samples = list(dataset.decode(UNPACK))
        gc.collect()
    for sample in samples:
        del sample["__url__"]
        sample.pop("__local_path__", None)
    return samples


def write(path: Path, schema, samples) -> Path:
    with shardload.ShardWriter(path, schema) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def test_webdataset_reads_the_values(everything, tmp_path):
    summary = shardload.export(everything, tmp_path / "tars", to="webdataset", shard_size=20_000)
    paths = sorted((tmp_path / "tars").iterdir())
    assert len(paths) == summary.num_files > 2
    assert sum(path.stat().st_size for path in paths) == summary.num_bytes
    got = read(*paths)
    assert [sample.pop("__key__") for sample in got] == [f"{i:09d}" for i in range(len(everything))]
    assert list(summary.stored) == list(everything.schema)
    for theirs, ours in zip(got, everything, strict=True):
        there = {summary.stored[name]: value for name, value in ours.items() if value is not None}
        assert theirs.keys() == there.keys()
        for extension, value in there.items():
            one = theirs[extension]
            # A scalar comes as an array without dimensions.
            one = one.item() if isinstance(one, np.ndarray) and not one.shape else one
            assert same(one, value), extension


def test_bytes_are_equal_and_of_no_time(everything, tmp_path):
    for name in ("a.tar", "b.tar"):
        shardload.export(everything, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o644)}


def test_fields_keep_extensions_and_others_get_one_that_is_decoded(tmp_path):
    types = {
        "jpg": "jpeg",
        "seg.png": "png",
        "cls": "int32",
        "txt": "str",
        "Label": "int8",
        "label": "uint8",
        "caption": "str?",
    }
    types |= {
        "pth": "bytes",
        "data": "bytes",
        "key": "bytes",
        "a/b c": "float32",
        "x" * 128: "bool",
        "_"[:0] + "é": "json",
    }
    kept = ["jpg", "seg.png", "cls", "txt"]
    made = ["label.cls", "label.field5.cls", "caption.txt", "pth.bin", "data", "key.bin", "a_b_c.npy", "npy", "é.json"]
    assert extensions(parse_schema(types).fields, "") == kept + made
    # A name that is an extension stays, whatever comes before it.
    assert extensions(parse_schema({"a": "int8", "a.cls": "int8"}).fields, "") == ["a.field0.cls", "a.cls"]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("aA.b_/ İK\u0345", min_size=1, max_size=4).map(str.strip), st.sampled_from(["str", "bytes", "int8"])
    )
)
def test_extensions_differ_and_stay_as_they_are(types):
    types = {name: kind for name, kind in types.items() if name and not name.startswith("_")}
    if types:
        found = extensions(parse_schema(types).fields, "")
        assert len(set(found)) == len(types)
        # What the importer takes a member's name for.
        assert all(
            webdataset.tariterators.base_plus_ext(f"0.{one}") == ("0", one) == ("0", one.lower()) for one in found
        )
        assert list(parse_schema(dict.fromkeys(found, "bytes"))) == found


def test_tars_are_of_the_size_unless_a_sample_is_larger(tmp_path):
    sizes = [100, 3000, 100, 90_000, 10, 2000] * 3
    out = write(tmp_path / "d", {"bin": "bytes"}, [{"bin": bytes(size)} for size in sizes])
    shardload.export(out, tmp_path / "tars", to="webdataset", shard_size="30kB")
    paths = sorted((tmp_path / "tars").iterdir())
    assert [len(sample["bin"]) for path in paths for sample in read(path)] == sizes
    assert [len(read(path)) == 1 for path in paths] == [path.stat().st_size > 30_720 for path in paths]
    assert len(paths) == 7


def test_keys_come_from_the_field_and_start_another_tar_where_they_recur(tmp_path):
    keys = ["a", "b/1", "a", "c"]
    out = write(tmp_path / "d", {"key": "str", "cls": "int64"}, [{"key": key, "cls": i} for i, key in enumerate(keys)])
    summary = shardload.export(out, tmp_path / "tars", to="webdataset")
    assert (summary.key, summary.stored) == ("key", {"cls": "cls"})
    got = [
        [(sample["__key__"], sample["cls"]) for sample in read(path)] for path in sorted((tmp_path / "tars").iterdir())
    ]
    assert got == [[("a", 0), ("b/1", 1)], [("a", 2), ("c", 3)]]
    shardload.pack(tmp_path / "tars", tmp_path / "again", workers=1)
    assert list(shardload.open(tmp_path / "again")) == list(shardload.open(out))
    with pytest.raises(
        ExportError, match="sample 2 has the key 'a', which an earlier one of the same tar has: export into a folder"
    ):
        shardload.export(out, tmp_path / "one.tar")
    shardload.export(out, tmp_path / "one.tar", key="")
    assert [(one["__key__"], one["key.txt"]) for one in read(tmp_path / "one.tar")] == [
        (f"{i:09d}", key) for i, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "it is empty"),
        ("a.b", "a key ends at its first dot"),
        ("../a", "it is empty, or has an empty, hidden"),
        ("/a", "empty, hidden"),
        ("a\nb", "unprintable"),
        ("__a__/b", "passes over"),
        ("x" * 1025, "over 1024 bytes"),
    ],
)
def test_what_is_no_key_is_named(tmp_path, key, reason):
    out = write(
        tmp_path / "d", {"key": "str", "name": "str"}, [{"key": "good", "name": "x"}, {"key": key, "name": key}]
    )
    for options in ({}, {"key": "name"}):
        with pytest.raises(ExportError, match=rf"sample 1 has the (key|name) .*{reason}.*key=''"):
            shardload.export(out, tmp_path / "out.tar", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_samples_without_any_value_are_there(tmp_path):
    out = write(tmp_path / "d", {"text": "str?", "null": "bytes?"}, [{}, {"text": "a"}, {"null": b""}, {}])
    shardload.export(out, tmp_path / "out.tar")
    assert [len(sample) for sample in read(tmp_path / "out.tar")] == [2, 2, 2, 2]
    shardload.pack(tmp_path / "out.tar", tmp_path / "again")
    assert list(shardload.open(tmp_path / "again")) == list(shardload.open(out))


def test_fields_may_be_chosen_from_an_export_and_appended(numbers, tmp_path):
    shardload.export(numbers, tmp_path / "tars", to="webdataset", shard_size=20_000)
    shardload.pack(tmp_path / "tars", tmp_path / "some", schema={"number": "int32"}, workers=1)
    assert [sample["number"] for sample in shardload.open(tmp_path / "some")] == list(range(100))
    shardload.pack(tmp_path / "tars", numbers, append=True, workers=1)
    assert [sample["number"] for sample in shardload.open(numbers)] == [*range(100), *range(100)]


def test_a_broken_note_is_named_and_another_one_is_passed_over(numbers, tmp_path):
    shardload.export(numbers, tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data.replace(b'"int64"', b'"int46"', 1))
    with pytest.raises(shardload.PackError, match=r"b\.tar: field 'number': unknown type 'int46'"):
        shardload.pack(tmp_path / "b.tar", tmp_path / "no")
    (tmp_path / "c.tar").write_bytes(data.replace(b'"name":"text"', b'"name":"test"', 1))
    shardload.pack([tmp_path / "a.tar", tmp_path / "c.tar"], tmp_path / "both", workers=1)
    assert list(shardload.open(tmp_path / "both").schema) == ["key", "number.cls", "text"]


def test_exported_tars_may_be_indexed_where_they_are(everything, tmp_path):
    shardload.export(everything, tmp_path / "tars", to="webdataset", shard_size=20_000)
    summary = shardload.index(tmp_path / "tars", workers=1)
    indexed = shardload.open(tmp_path / "tars")
    assert summary.types == {field.name: field.type for field in everything.field_list}
    assert dict(indexed.metadata).items() > dict(everything.metadata).items()
    assert all(same(one, other) for one, other in zip(indexed, everything, strict=True))
    # What is said of the tars is not said of what is exported from them.
    shardload.export(indexed, tmp_path / "again.tar")
    shardload.export(everything, tmp_path / "first.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "first.tar").read_bytes()
    # Values as they are in the tars are there only.
    shards = b"".join(path.read_bytes() for path in (tmp_path / "tars/shards").rglob("*") if path.is_file())
    assert everything[3]["image"] not in shards
    assert everything[1]["text"].encode() not in shards
