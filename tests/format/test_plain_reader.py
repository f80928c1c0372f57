"""What the writer wrote, read by the page of the format alone."""

from __future__ import annotations

import ast
import json
import struct
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import plain_reader
import pytest
import strict_reader
import zstandard
from any_dataset import EVERY_TYPE, Samples, Types, assert_same, samples_of, schemas, value_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import EVERY_TYPES, expected_everything, write_everything

from shardload.format.manifest import decode_manifest
from shardload.format.table import decode_table
from shardload.writer import ShardWriter


def write(path: Path, schema: Types, samples: Samples, **options: Any) -> None:
    with ShardWriter(path, schema, **options) as writer:
        for sample in samples:
            writer.write(sample)


def check(path: Path, schema: Types, samples: Samples) -> None:
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


def test_everything(tmp_path: Path) -> None:
    check(write_everything(tmp_path / "set"), EVERY_TYPES, expected_everything())


def test_refuses_damage_below_the_file_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file digest left out, the other digests and sums find the damage alone: in whatever section, and between."""
    write_everything(tmp_path / "set")
    path = sorted((tmp_path / "set/shards").iterdir())[1]
    good = path.read_bytes()
    real = strict_reader.sha256
    digest = real(good)
    monkeypatch.setattr(strict_reader, "sha256", lambda data: digest if len(data) == len(good) else real(data))
    num_sections = int.from_bytes(good[-116:-112], "little")
    directory = len(good) - 128 - 64 * num_sections
    places = {0, 20, 39, 45, 100, 4095, len(good) - 1, len(good) - 64, directory, directory - 1}
    kinds = set()
    for at in range(directory, len(good) - 128, 64):
        kind, _, start, size = struct.unpack_from("<IIQQ", good, at)
        kinds.add(kind)
        places |= (
            {start - 1, start, start + size // 2, start + size - 1, start + size, at + 4, at + 40} if size else set()
        )
    assert kinds == {1, 2, 3, 4, 5, 6, 7, 8, 10, 11}
    for place in sorted(places):
        path.write_bytes(good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :])
        with pytest.raises((ValueError, KeyError, zstandard.ZstdError, struct.error)):
            strict_reader.read_dataset(tmp_path / "set")
    path.write_bytes(good)
    assert len(strict_reader.read_dataset(tmp_path / "set")) == len(expected_everything())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(["none", "zstd:1", "zstd:19"]), st.sampled_from([1, 20_000, 65_536, 1 << 20]))
def test_any_dataset(data_: st.DataObject, compression: str, shard_size: int) -> None:
    schema = data_.draw(schemas(compression != "none"))
    samples = data_.draw(samples_of(schema))
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
