"""`write_batch` and the batches of a scan: to the same bytes as one sample after the other, and refused whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from any_dataset import ARRAYS, EVERY_TYPE, Samples, Types, samples_of, schemas, type_of, value_of
from faults import FailAt, NoDevice
from hypothesis import given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import PackError
from shardload.reader.verify import verify_dataset

WIDER = {"int8": "int32", "uint8": "int16", "float16": "float32", "int64": "uint64"}


@pytest.fixture(autouse=True)
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the device is no part of what is looked at here."""
    monkeypatch.setattr(os, "fsync", os.fstat)


def column_of(text: str, values: list[Any], rng: np.random.Generator) -> Any:
    """Values in one of the forms in which a batch may have them; where they are missing or differ in shape, as a list."""
    kind, _, shape = text.rstrip("?").partition("[")
    if kind not in ARRAYS or any(value is None for value in values) or rng.random() < 0.3:
        return tuple(values) if rng.random() < 0.5 else values
    if not shape and rng.random() < 0.3:
        return [np.asarray(value).item() for value in values]
    if len({np.shape(value) for value in values}) != 1:
        return [np.asarray(value) for value in values]
    if kind == "bfloat16":
        bits = (np.array(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.int16)
        return torch.tensor(bits).view(torch.bfloat16)
    array = np.array(values, dtype=kind)
    form = rng.integers(4)
    if form == 0 and kind[0] != "u":
        return torch.tensor(array)
    if form == 1:
        # Neither contiguous nor in the machine's order of bytes.
        return np.repeat(array.astype(array.dtype.newbyteorder(">")), 2, axis=0)[::2]
    return array if form == 2 else list(array)


def pack(target: Path, types: Types, samples: Samples, cuts: list[int], seed: int, **options: Any) -> str:
    """Writes the samples between two cuts as a batch, every third time one by one."""
    rng = np.random.default_rng(seed)
    with shardload.ShardWriter(target, types, **options) as writer:
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(samples)], strict=True), seed):
            some = samples[start:stop]
            if number % 3 == 2:
                for sample in some:
                    writer.write(sample)
                continue
            columns = {name: column_of(type_of(one), [s[name] for s in some], rng) for name, one in types.items()}
            left_out = [name for name, column in columns.items() if some and all(value is None for value in column)]
            for name in left_out[: len(columns) - 1]:
                del columns[name]
            writer.write_batch(columns)
            assert writer.num_samples == stop
    manifest = writer.close() or shardload.open(target)
    return str(manifest.fingerprint)


def compare(types: Types, samples: Samples, cuts: list[int], seed: int, **options: Any) -> None:
    with TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        with shardload.ShardWriter(one, types, **options) as writer:
            for sample in samples:
                writer.write(sample)
        # The fingerprint covers the table, and that the digest of every file.
        assert pack(many, types, samples, cuts, seed, **options) == shardload.open(one).fingerprint


@st.composite
def cases(draw: st.DrawFn) -> tuple[Types, Samples, list[int], int, dict[str, Any]]:
    types = draw(schemas(compressed=True))
    samples = draw(samples_of(types, max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(samples)), max_size=5)))
    options = {
        "compression": draw(st.sampled_from(["none", "zstd:1"])),
        "dictionary": "auto",
        "shard_size": draw(st.sampled_from([4096, 20_000, 40_000, 1 << 20])),
    }
    return types, samples, cuts, draw(st.integers(0, 1 << 30)), options


@settings(max_examples=40, deadline=None)
@given(cases())
def test_any_batches_of_any_schema(case: tuple[Types, Samples, list[int], int, dict[str, Any]]) -> None:
    types, samples, cuts, seed, options = case
    if options["compression"] == "none":
        types = {name: type_of(one) for name, one in types.items()}
    compare(types, samples, cuts, seed, **options)


@pytest.mark.parametrize("seed", range(4))
def test_every_kind_of_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types: Types = {f"field{n}": text + "?" * (seed % 2) for n, text in enumerate(EVERY_TYPE.values())}
    length = [None, 3][seed // 2]
    samples = [
        {n: None if seed % 2 and rng.random() < 0.3 else value_of(t, rng, length) for n, t in types.items()}
        for _ in range(40)
    ]
    compare(types, samples, [3, 4, 30], seed, compression="zstd:3", shard_size="256KiB")


@pytest.mark.parametrize("size", [40, 900, 1100, 70_000])
def test_records_of_any_size_are_cut_where_single_samples_are(size: int) -> None:
    rng = np.random.default_rng(size)
    samples = [{"data": rng.bytes(int(rng.integers(0, 2 * size))), "n": i} for i in range(300 if size < 5000 else 40)]
    for shard_size in (20 * size + 9000, 20 * size + 9001, 37 * size + 9000):
        compare({"data": "bytes", "n": "int32"}, samples, [1, 25], size, shard_size=shard_size)


@pytest.mark.parametrize("types", [{"a": "float32[256]"}, {"a": "float32[256]", "b": "int64?"}, {"a": "float32[256]?"}])
def test_batches_of_whole_chunks(types: Types, tmp_path: Path) -> None:
    """These are written as they were given where nothing comes before them; all the same with what single samples leave."""
    rows = np.random.default_rng(4).random((3300, 256), dtype=np.float32)
    rows[1105, 0], rows[1106, 1], rows[1200, 7] = -3.0, 4.0, np.nan
    samples = [{"a": row} | ({"b": 5} if "b" in types else {}) for row in rows]
    with shardload.ShardWriter(tmp_path / "one", types, shard_size="3MiB") as writer:
        for sample in samples:
            writer.write(sample)
    with shardload.ShardWriter(tmp_path / "many", types, shard_size="3MiB") as writer:
        for start, stop in ((0, 1100), (1100, 2200), (2200, 2203), (2203, 3300)):
            batch = rows[start:stop].copy()
            writer.write_batch({"a": batch} | ({"b": [5] * len(batch)} if "b" in types else {}))
            batch[:] = 0
    assert shardload.open(tmp_path / "many").fingerprint == shardload.open(tmp_path / "one").fingerprint
    assert not verify_dataset(tmp_path / "many")


@pytest.mark.parametrize("seed", range(3))
def test_a_shard_of_many_batches_and_single_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types: Types = {
        "wide": "float32[130]?",
        "stream": "int16[*]",
        "text": "str",
        "single": "float16",
        "row": "float32[2]",
    }
    samples = [{n: value_of(t.rstrip("?"), rng, i % 40) for n, t in types.items()} for i in range(2300)]
    # NaN with a payload, one of them signaling: how it is stored is the business of the row path.
    odd = np.array([0x7D01, 0xFE01], dtype=np.uint16).view(np.float16)
    for sample in samples[::7]:
        sample["wide"], sample["single"] = None, odd[len(sample["text"]) % 2]
    compare(types, samples, [10, 20, 1030, 1060, 2000, 2100], seed)
    if seed == 0:
        compare({"text": "str", "n": "int64"}, [{"text": s["text"], "n": 1} for s in samples], [900, 910], 0)


def test_samples_that_a_dictionary_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardload.writer.first.TRAINING_BYTES", 60_000)
    rng = np.random.default_rng(0)
    words = [f"word{i} " for i in range(200)]
    texts = ["".join(words[i] for i in rng.integers(0, 200, 80)) for _ in range(400)]
    samples = [{"text": text, "n": i} for i, text in enumerate(texts)]
    for dictionary in ("on", "auto"):
        options: dict[str, Any] = {
            "compression": "zstd:3",
            "dictionary": dictionary,
            "shard_size": "64KiB",
            "key": "text",
        }
        compare({"text": "str", "n": "int64"}, samples, [150, 151], 3, **options)


def test_batches_and_single_samples_in_turn_give_one_dataset(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "out", {"x": "int64", "y": "float32[200]?"}, shard_size="16KiB") as writer:
        writer.write_batch({"x": torch.arange(30), "y": np.ones((30, 200), np.float32)})
        writer.write({"x": 30})
        writer.write_batch({"x": range_of(31, 60)})
        writer.write_batch({"x": np.zeros(0, np.int64)})
    dataset = shardload.open(tmp_path / "out")
    assert dataset.column("x").tolist() == list(range(60)) and not verify_dataset(tmp_path / "out")
    assert dataset[29]["y"].tolist() == [1.0] * 200 and dataset[30]["y"] is None


def range_of(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


SCHEMA = {
    "x": "int16",
    "text": "str",
    "y": "float32[3]",
    "z": "uint8[*]",
    "ok": "bool",
    "picture": "png?",
    "half": "float16",
}
PNG = b"\x89PNG\r\n\x1a\n"


def right() -> dict[str, Any]:
    return {
        "x": np.arange(5),
        "text": list("abcde"),
        "y": np.ones((5, 3), np.float32),
        "z": [np.ones(i, np.uint8) for i in range(5)],
        "ok": np.array([True, False] * 2 + [True]),
        "picture": [PNG, None, PNG, PNG, PNG],
        "half": [0.5] * 5,
    }


WRONG: list[tuple[Any, str]] = [
    (
        {"x": np.array([1, 2, 3, 40_000, 5])},
        "sample 5: field 'x': expected int16, got int64|sample 5: field 'x'.*outside",
    ),
    ({"x": [1, 2, True, 4, 5]}, "sample 4: field 'x': expected int16, got bool True"),
    ({"x": np.zeros(5, np.float32)}, "sample 2: field 'x': expected int16"),
    ({"x": np.zeros((5, 1), np.int16)}, "sample 2: field 'x': expected int16, got array"),
    ({"x": [1, 2, 3, 4, None]}, "sample 6: field 'x': expected int16, got None"),
    ({"x": np.ma.masked_equal(np.arange(5, dtype=np.int16), 3)}, "sample 5: field 'x': expected int16, got None"),
    (
        {"y": np.ma.masked_equal(np.arange(15, dtype=np.float32).reshape(5, 3), 7)},
        r"field 'y': expected values that are there, got a masked array of float32 \[5, 3\]",
    ),
    (
        {"z": [np.zeros(2, np.uint8)] * 4 + [np.ma.masked_equal(np.arange(3, dtype=np.uint8), 1)]},
        "sample 6: field 'z': expected values that are there, got a masked array",
    ),
    ({"text": ["a", "b", "\ud800", "d", "e"]}, "sample 4: field 'text': .*UTF-8"),
    ({"text": ["a", "b", b"c", "d", "e"]}, "sample 4: field 'text': expected str, got bytes"),
    ({"y": np.zeros((5, 3))}, "sample 2: field 'y': expected float32"),
    ({"y": [np.zeros(3, np.float32)] * 4 + [np.zeros(2, np.float32)]}, "sample 6: field 'y': expected float32"),
    ({"z": [np.zeros(3, np.uint8)] * 3 + [np.zeros((2, 2), np.uint8)] * 2}, "sample 5: field 'z'"),
    ({"z": np.zeros((5, 2), np.int8)}, "sample 2: field 'z'"),
    ({"ok": np.zeros(5, np.uint8)}, "sample 2: field 'ok': expected bool"),
    (
        {"picture": [PNG, None, b"GIF", PNG, PNG]},
        "sample 4: field 'picture': expected png, got bytes that start with b'GIF'",
    ),
    ({"half": [1.0, 2.0, 65520.0, 1.0, 1.0]}, "sample 4: field 'half': expected float16, got float 65520.0, too large"),
    ({"half": np.zeros(5, np.float32)}, "sample 2: field 'half': expected float16, got a scalar of float32"),
    ({"picture": [PNG] * 4}, "field 'picture': expected 5 rows as of field 'x', got 4"),
    ({"text": "abcde"}, "field 'text': expected rows, an array or a list of them, got str"),
    ({"other": [1] * 5}, "field 'other' is not in the schema"),
]


def test_a_batch_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "out", SCHEMA) as writer:
        for i in range(2):
            writer.write({name: column[i] for name, column in right().items()} | {"x": 100 + i})
        for wrong, message in WRONG:
            with pytest.raises(PackError, match=message):
                writer.write_batch(right() | wrong)
        for nothing in ({}, None, [right()]):
            with pytest.raises(PackError, match="samples from 2 on: a batch is a mapping of field name to rows"):
                writer.write_batch(nothing)  # type: ignore[arg-type]
        with pytest.raises(PackError, match="sample 2: field 'text': expected str, got no such field"):
            writer.write_batch({name: column for name, column in right().items() if name != "text"})
        writer.write_batch(right())
    dataset = shardload.open(tmp_path / "out")
    assert dataset.column("x").tolist() == [100, 101, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["int32?", "float32?", "bool?", "int16[2]?", "float64[2,3]?"])
def test_columns_that_lack_values_are_written_as_they_were_read(tmp_path: Path, text: str) -> None:
    """A column has a mask where values are missing; what is under it is none."""
    kind, _, shape = text.rstrip("?").partition("[")
    ones = np.ones([int(n) for n in shape.rstrip("]").split(",")] if shape else [], dtype=kind)
    values = [None if i % 3 == 1 else (ones * (i % 2)).astype(kind) for i in range(7)]
    for name, missing in (("first", values), ("whole", [ones] * 7), ("none", [])):
        with shardload.ShardWriter(tmp_path / name, {"x": text}) as writer:
            for value in missing:
                writer.write({"x": value})
        column = shardload.open(tmp_path / name).column("x")
        with shardload.ShardWriter(tmp_path / f"{name} again", {"x": text}) as writer:
            writer.write_batch({"x": np.ma.asarray(column)})
        again = shardload.open(tmp_path / f"{name} again")
        assert again.fingerprint == shardload.open(tmp_path / name).fingerprint


@pytest.mark.parametrize(
    "value", [np.ma.masked, np.ma.masked_equal(np.arange(2, dtype=np.int16), 1)], ids=["one", "item"]
)
def test_masked_values_are_none_of_a_sample(tmp_path: Path, value: Any) -> None:
    with shardload.ShardWriter(tmp_path / "out", {"x": "int16" if value is np.ma.masked else "int16[2]"}) as writer:
        with pytest.raises(PackError, match="sample 0: field 'x': expected values that are there, got a masked array"):
            writer.write({"x": value})
        writer.write({"x": 1 if value is np.ma.masked else np.ma.asarray(np.ones(2, np.int16))})


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_key_that_is_not_new_is_refused_with_its_batch(tmp_path: Path, compression: str) -> None:
    def write(writer: shardload.ShardWriter, names: list[str]) -> None:
        writer.write_batch({"name": names, "n": list(range(len(names)))})

    options: dict[str, Any] = {"key": "name", "compression": compression}
    with shardload.ShardWriter(tmp_path / "out", {"name": "str", "n": "int64"}, **options) as writer:
        write(writer, ["a", "b"])
        with pytest.raises(PackError, match=r"sample 4: its key \(field 'name'\) is that of sample 2$"):
            write(writer, ["c", "d", "c"])
        with pytest.raises(
            PackError, match=r"sample 3: its key .* is that of (an earlier sample, number 1 of shards|sample 1)"
        ):
            write(writer, ["c", "b"])
        write(writer, ["c", "d"])
    dataset = shardload.open(tmp_path / "out")
    assert [dataset[i]["name"] for i in range(4)] == list("abcd") and dataset.find("d") == 3


def test_a_device_that_fails_in_a_batch_publishes_nothing(tmp_path: Path) -> None:
    samples = {"x": np.zeros((4000, 300), np.float32)}
    operations = FailAt(1, errno.ENOSPC, lasting=True, names=["write"], inner=NoDevice())
    writer = shardload.ShardWriter(tmp_path / "out", {"x": "float32[300]"}, operations=operations)
    with pytest.raises(PackError, match="No space left"):
        writer.write_batch(samples)
    with pytest.raises(PackError, match="out of use since a write failed"):
        writer.write_batch(samples)
    assert not (tmp_path / "out").exists()
