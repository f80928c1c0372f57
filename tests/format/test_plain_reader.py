"""What the writer wrote, read by the page of the format alone."""

from __future__ import annotations

import ast
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import plain_reader
import pytest
import strict_reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.format.manifest import decode_manifest
from shardload.format.table import decode_table
from shardload.writer import ShardWriter

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
ARRAYS = ["bool", *INTEGERS, *FLOATS, "bfloat16"]
MEDIA = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "audio": b"", "video": b""}

EVERY_TYPE = (
    {kind: kind for kind in ARRAYS}
    | {f"{kind} row": f"{kind}[2,3]" for kind in ARRAYS}
    | {f"{kind} wide": f"{kind}[513]" for kind in ARRAYS}
    | {kind: kind for kind in ("bytes", "str", "json", *MEDIA)}
)


def value_of(type_text: str, rng: np.random.Generator) -> Any:
    kind, _, shape_text = type_text.rstrip("?").partition("[")
    shape = tuple(map(int, shape_text.rstrip("]").split(","))) if shape_text else ()
    if kind == "bytes" or kind in MEDIA:
        return MEDIA.get(kind, b"") + rng.bytes(int(rng.integers(0, 40)))
    if kind == "str":
        return "aé中\U0001f600\n\0"[: rng.integers(0, 7)] * 9
    if kind == "json":
        return {"b": [int(rng.integers(9)), None, True, 1.5], "a": "\u2028é\x01"}
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool) if shape else bool(rng.integers(0, 2))
    if kind == "bfloat16":
        values = (rng.integers(0, 1 << 16, shape).astype(np.uint32) << 16).astype(np.uint32).view(np.float32)
        values = np.where(np.isnan(values), np.float32("nan"), values).astype(np.float32)
        return values if shape else float(values)
    values = np.frombuffer(rng.bytes(int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize), kind).reshape(shape)
    if kind in FLOATS:
        # The payload of a scalar NaN is not promised.
        values = np.where(np.isnan(values), np.dtype(kind).type("nan"), values)
    return values if shape else values[()]


def assert_same(got: Any, want: Any) -> None:
    if want is None or isinstance(want, bytes | str | dict | list):
        assert got == want and type(got) is type(want)
        return
    want = np.asarray(want)
    assert np.asarray(got).shape == want.shape
    np.testing.assert_array_equal(got, want)


def write(path: Path, schema: dict[str, str], samples: list[dict[str, Any]], **options: Any) -> None:
    with ShardWriter(path, schema, **options) as writer:
        for sample in samples:
            writer.write(sample)


def check(path: Path, schema: dict[str, str], samples: list[dict[str, Any]]) -> None:
    """Reads with the reader that checks everything and with the one that checks nothing."""
    for reader in (strict_reader, plain_reader):
        read = reader.read_dataset(path)
        assert len(read) == len(samples)
        for got, want in zip(read, samples, strict=True):
            assert list(got) == list(schema)
            for name in schema:
                assert_same(got[name], want.get(name))


@pytest.mark.parametrize("reader", [plain_reader, strict_reader])
def test_imports_nothing_of_shardload(reader: ModuleType) -> None:
    tree = ast.parse(Path(reader.__file__ or "").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any("shardload" in name for name in imported)


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("compression", ["none", "zstd:3", "zstd:-5"])
def test_every_type(tmp_path: Path, compression: str, nullable: bool) -> None:
    schema = {name: kind + "?" * nullable for name, kind in EVERY_TYPE.items()}
    rng = np.random.default_rng(1)
    samples = []
    for number in range(5):
        sample = {name: value_of(kind, rng) for name, kind in schema.items()}
        if nullable:  # as None, and by not being there
            for place, name in enumerate(schema):
                if (place + number) % 3 == 0:
                    sample[name] = None
                elif (place + number) % 7 == 0:
                    del sample[name]
        samples.append(sample)
    write(tmp_path / "set", schema, samples, compression=compression)
    check(tmp_path / "set", schema, samples)


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_several_shards(tmp_path: Path, compression: str) -> None:
    schema = {"text": "str", "wide": "float32[200]", "label": "int64", "image": "jpeg?"}
    samples = [
        {
            "text": "word " * (number * 37 % 400),
            "wide": np.arange(200, dtype="f4") + number,
            "label": number,
            "image": b"\xff\xd8\xff" + bytes(number) if number % 3 else None,
        }
        for number in range(120)
    ]
    samples[50]["text"] = np.random.default_rng(0).bytes(60_000).hex()  # larger than a shard, also under zstd
    write(tmp_path / "set", schema, samples, compression=compression, shard_size=32_768)
    check(tmp_path / "set", schema, samples)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "set/shards").iterdir())
    assert len(sizes) > 5 and sizes[-1] > 60_000 and sizes[-2] <= 32_768


def test_records_around_the_large_alignment(tmp_path: Path) -> None:
    samples = [{"data": bytes(length)} for length in (*range(40), *range(1000, 1040), 0, 1016, 1015)]
    write(tmp_path / "set", {"data": "bytes"}, samples)
    check(tmp_path / "set", {"data": "bytes"}, samples)


@pytest.mark.parametrize("types", [{"a": "int64"}, {"a": "bytes"}, {"a": "uint8[4096]"}, EVERY_TYPE])
def test_empty_dataset(tmp_path: Path, types: dict[str, str]) -> None:
    write(tmp_path / "set", types, [])
    assert strict_reader.read_dataset(tmp_path / "set") == []
    assert not list((tmp_path / "set/shards").iterdir())


def test_many_wide_fields(tmp_path: Path) -> None:
    schema = {f"f{number}": "uint8[513]" for number in range(400)}
    samples = [{name: np.full(513, number, "u1") for name in schema} for number in range(8)]
    # Just below the size of the eight, of which nearly half is padding (4,104 bytes a section) and directory: a wrong
    # bound on those would put all into one shard.
    write(tmp_path / "one", schema, samples)
    size = next((tmp_path / "one/shards").iterdir()).stat().st_size
    write(tmp_path / "two", schema, samples, shard_size=size - 1)
    assert all(path.stat().st_size < size for path in (tmp_path / "two/shards").iterdir())
    check(tmp_path / "two", schema, samples)


def test_crash_before_the_copy(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a": "int8"}, [{"a": 1}])
    (tmp_path / "set/manifest.json").unlink()
    assert strict_reader.read_dataset(tmp_path / "set") == [{"a": 1}]


def test_refuses_every_flipped_byte(tmp_path: Path) -> None:
    """Under the file digest, every byte of a dataset is checked."""
    samples = [{"t": "x" * 40, "w": np.ones(512, "u1"), "n": None} for _ in range(3)]
    write(tmp_path / "set", {"t": "str", "w": "uint8[512]", "n": "int8?"}, samples, compression="zstd:3")
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file() and path.parent.name != "manifests"]
    assert len(files) == 3
    for path in files:
        good = path.read_bytes()
        for place in range(0, len(good), 1 if len(good) < 2000 else 509):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
            with pytest.raises((ValueError, KeyError, AttributeError, TypeError, OSError)):
                strict_reader.read_dataset(tmp_path / "set")
        path.write_bytes(good)
    strict_reader.read_dataset(tmp_path / "set")


def test_refuses_damage_below_the_file_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file digest left out, page digests and the sums of records and wide values find the damage alone."""
    schema = {"t": "str", "w": "uint8[512]", "n": "int8?"}
    write(tmp_path / "set", schema, [{"t": "abc" * n, "w": np.ones(512, "u1"), "n": n} for n in range(3)])
    path = next((tmp_path / "set/shards").iterdir())
    good = path.read_bytes()
    real = strict_reader.sha256
    digest = real(good)
    monkeypatch.setattr(strict_reader, "sha256", lambda data: digest if len(data) == len(good) else real(data))
    for place in (0, 20, 39, 45, 100, 4096, 4100, 4104, 4110, 4120, 8192, 9000, 12_288, 12_300, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :])
        with pytest.raises(ValueError, match="not as the format page says"):
            strict_reader.read_dataset(tmp_path / "set")
    path.write_bytes(good)
    assert len(strict_reader.read_dataset(tmp_path / "set")) == 3


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda s: f"[{','.join(map(str, s))}]")
TYPES = st.builds(
    "".join,
    st.tuples(
        st.one_of(
            st.sampled_from([*ARRAYS, "bytes", "str", "json", *MEDIA]),
            st.builds("".join, st.tuples(st.sampled_from(ARRAYS), SHAPES)),
            st.sampled_from([f"{kind}[{length}]" for kind in ARRAYS for length in (63, 64, 257, 512)]),
        ),
        st.sampled_from(["", "?"]),
    ),
)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9).filter(
    lambda name: not name.startswith("_") and name == name.strip(" ")
)
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=9,
).filter(lambda value: value is not None)


def values(type_text: str) -> st.SearchStrategy[Any]:
    kind = type_text.rstrip("?")
    strategy: st.SearchStrategy[Any]
    if kind == "json":
        strategy = JSON
    elif kind == "str":
        strategy = st.text(max_size=60)
    elif kind == "bytes" or kind in MEDIA:
        strategy = st.binary(max_size=1500).map(lambda data: MEDIA.get(kind, b"") + data)
    else:
        strategy = st.integers(0, 1 << 30).map(lambda seed: value_of(kind, np.random.default_rng(seed)))
    return st.one_of(st.none(), strategy) if type_text.endswith("?") else strategy


@st.composite
def datasets(draw: st.DrawFn) -> tuple[dict[str, str], list[dict[str, Any]]]:
    schema = draw(st.dictionaries(NAMES, TYPES, min_size=1, max_size=9))
    sample = st.fixed_dictionaries({name: values(kind) for name, kind in schema.items()})
    return schema, draw(st.lists(sample, max_size=7))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(datasets(), st.sampled_from(["none", "zstd:1", "zstd:19"]), st.sampled_from([1, 9000, 20_000, 1 << 20]))
def test_any_dataset(dataset: Any, compression: str, shard_size: int) -> None:
    schema, samples = dataset
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "set")
        write(path, schema, samples, compression=compression, shard_size=shard_size)
        check(path, schema, samples)
        # What the package itself makes of manifest and table.
        data = (path / "manifest.json").read_bytes()
        manifest = decode_manifest(data, "manifest.json")
        table = decode_table((path / "tables" / manifest.table).read_bytes(), manifest, "table")
        assert int(table.first_sample_ids[-1]) == len(samples)
        assert json.loads(data)["manifest"]["num_shards"] == len(table)
