"""Keys: every sample is found by its own, and no two samples have the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import PackError
from shardload.writer import encode, keys

OTHERS: dict[str, list[Any]] = {
    "str": ["", "é", "-1", "1"],
    "bytes": [b"", b"\0", b"1"],
    "int64": [-(1 << 63), -1, 1 << 40],
    "uint8": [255, 254],
}


def key_of(kind: str, i: int) -> Any:
    return {"str": f"sample {i}", "bytes": b"sample %d" % i}.get(kind, i)


def write(path: Path, kind: str, values: list[Any], **options: Any) -> shardload.ShardDataset:
    if not options.get("append"):
        options |= {"key": "id"}
    with shardload.ShardWriter(path, {"data": "bytes?", "id": kind}, **options) as writer:
        for value in values:
            writer.write({"id": value})
    return shardload.open(path)


@pytest.mark.parametrize("kind", list(OTHERS))
@pytest.mark.parametrize("shard_size", ["16KiB", "1MiB"])
def test_every_sample_is_found(tmp_path: Path, kind: str, shard_size: str) -> None:
    values = [key_of(kind, i) for i in range(240 if kind == "uint8" else 700)]
    dataset = write(tmp_path / "d", kind, values, shard_size=shard_size)
    assert (len(dataset.table) > 1) == (shard_size == "16KiB")
    for i in (0, 1, 17, len(values) - 1):
        assert dataset.find(values[i]) == i
    ids = np.random.default_rng(0).permutation(len(values)).tolist()
    asked = [values[i] for i in ids] + OTHERS[kind] + [values[3], values[3]]
    found = dataset.find_many(asked)
    assert found.dtype == np.int64 and found.tolist() == [*ids, *[-1] * len(OTHERS[kind]), 3, 3]
    assert dataset.find_many([]).tolist() == []
    for other in OTHERS[kind]:
        with pytest.raises(KeyError):
            dataset.find(other)


def test_what_is_no_key(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", "int64", [1, 2])
    for wrong in ("1", 1.0, True, None, b"1"):
        with pytest.raises(TypeError, match="field 'id' is int64"):
            dataset.find(wrong)
    with shardload.ShardWriter(tmp_path / "e", {"id": "int64"}) as writer:
        writer.write({"id": 1})
    with pytest.raises(ValueError, match="without a key"):
        shardload.open(tmp_path / "e").find(1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=3), min_size=1, max_size=60))
def test_as_in_a_dict(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    known: dict[str, int] = {}
    path = tmp_path_factory.mktemp("keys") / "d"
    with shardload.ShardWriter(path, {"id": "str"}, key="id") as writer:
        for value in values:
            if value in known:
                with pytest.raises(PackError, match="its key"):
                    writer.write({"id": value})
            else:
                known[value] = writer.num_samples
                writer.write({"id": value})
    dataset = shardload.open(path)
    assert len(dataset) == len(known)
    assert dataset.find_many(list(known)).tolist() == list(known.values())


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_a_refused_key_leaves_the_writer_usable(tmp_path: Path, compression: str) -> None:
    """Before the dictionary is chosen, in the shard, and by the same sample twice."""
    with shardload.ShardWriter(tmp_path / "d", {"id": "str"}, key="id", compression=compression) as writer:
        writer.write({"id": "a"})
        for _ in range(2):
            with pytest.raises(PackError, match=r"sample 1: its key \(field 'id'\) is that of .*(sample 0|number 0)"):
                writer.write({"id": "a"})
        assert writer.num_samples == 1
        writer.write({"id": "b"})
    dataset = shardload.open(tmp_path / "d")
    assert [sample["id"] for sample in dataset] == ["a", "b"] and dataset.find("b") == 1


@pytest.mark.parametrize("range_keys", [1 << 22, 50, 1])
def test_no_key_stands_in_two_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_keys: int) -> None:
    monkeypatch.setattr(keys, "RANGE_KEYS", range_keys)
    values = list(range(300))
    with pytest.raises(PackError, match=r"sample \d+ of shards/0001-.* has the same key \(field 'id'\) as sample 7 of"):
        write(tmp_path / "d", "int64", [*values, 7], shard_size="12KiB")
    assert not (tmp_path / "d").exists()
    dataset = write(tmp_path / "d", "int64", values, shard_size="12KiB")
    assert len(dataset.table) > 2 and dataset.find_many(values).tolist() == values


@pytest.mark.parametrize("byte", [0, 0x7F, 0xFF])
@pytest.mark.parametrize("range_keys", [1 << 22, 1])
def test_nor_at_the_ends_of_a_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_keys: int, byte: int
) -> None:
    monkeypatch.setattr(keys, "RANGE_KEYS", range_keys)
    digest = bytes([byte]) + bytes([255 if byte else 0]) * 15
    monkeypatch.setattr(encode, "key_digest", lambda _: digest)
    write(tmp_path / "d", "str", ["a"])
    with pytest.raises(PackError, match="has the same key"):
        write(tmp_path / "d", "str", ["b"], append=True)


def test_nor_in_two_generations(tmp_path: Path) -> None:
    write(tmp_path / "d", "str", ["a", "b"])
    with pytest.raises(PackError, match=r"0002-.* has the same key .* as sample 1 of shards/0001-"):
        write(tmp_path / "d", "str", ["c", "b"], append=True)
    assert shardload.open(tmp_path / "d").manifest.version == 1
    assert len(list((tmp_path / "d/shards").iterdir())) == 1
    dataset = write(tmp_path / "d", "str", ["c", "d"], append=True)
    assert dataset.find_many(["d", "a", "c", "b", "e"]).tolist() == [3, 0, 2, 1, -1]
    assert shardload.open(tmp_path / "d", version=1).find_many(["c", "b"]).tolist() == [-1, 1]


def test_keys_that_cannot_be() -> None:
    for schema, key, message in (
        ({"id": "str"}, "di", "not a field"), ({"id": "str?"}, "id", "is no key"), ({"id": "float32"}, "id", "is no key"),
        ({"id": "uint16[*]"}, "id", "is no key"), ({"id": "json"}, "id", "is no key"),
    ):  # fmt: skip
        with pytest.raises(shardload.FormatError, match=message):
            shardload.ShardWriter("nowhere", schema, key=key)
    with pytest.raises(ValueError, match="cannot be given in an append"):
        shardload.ShardWriter("nowhere", {"id": "str"}, key="id", append=True)
