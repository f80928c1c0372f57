"""Generations: what an append keeps, adds and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strict_reader
from samples import (
    EVERY_SAMPLES,
    EVERY_SCHEMA,
    FIRST_SAMPLES,
    LATER_SCHEMA,
    expected_everything,
    same,
    write_everything,
)

import shardload
from shardload.errors import FormatError, PackError, StateMismatchError
from shardload.format import layout
from shardload.format.manifest import decode_description, decode_manifest


def write(path: Path, types: Any, samples: list[dict[str, Any]], **options: Any) -> shardload.ShardDataset:
    with shardload.ShardWriter(path, types, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return shardload.open(path)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_what_is_there_stays(tmp_path: Path) -> None:
    first = write(tmp_path / "d", {"a": "int8"}, [{"a": 1}, {"a": 2}])
    before = files(tmp_path / "d")
    second = write(tmp_path / "d", None, [{"a": 3}], append=True)
    after = files(tmp_path / "d")
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert after["manifest.json"] == after["manifests/2"] and before["manifest.json"] == after["manifests/1"]
    assert set(after) - set(before) == {
        "manifests/2",
        "shards/0002-000000-00000.shard",
        f"tables/{second.manifest.table}",
    }
    assert [sample["a"] for sample in second] == [1, 2, 3]
    old = shardload.open(tmp_path / "d", version=1, fingerprint=first.fingerprint)
    assert [sample["a"] for sample in old] == [1, 2] and len(old) == 2
    with pytest.raises(StateMismatchError):
        shardload.open(tmp_path / "d", fingerprint=first.fingerprint)
    # A dataset that was opened before goes on with the version it opened.
    assert [sample["a"] for sample in first] == [1, 2]


def test_later_fields_are_missing_in_earlier_samples(tmp_path: Path) -> None:
    dataset = shardload.open(write_everything(tmp_path / "d"))
    want = expected_everything()
    # Batches that cross generations, in any order and with repeats.
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(0, EVERY_SAMPLES, 40).tolist()
        assert all(same(got, want[i]) for i, got in zip(ids, dataset.__getitems__(ids), strict=True))
    boundary = dataset.__getitems__([FIRST_SAMPLES, FIRST_SAMPLES - 1])
    assert same(boundary[0], want[FIRST_SAMPLES]) and same(boundary[1], want[FIRST_SAMPLES - 1])
    facts = dataset.statistics()
    for name in LATER_SCHEMA:
        missing = sum(sample[name] is None for sample in want)
        assert facts[name].num_missing == missing and facts[name].num_values == EVERY_SAMPLES - missing
    score, vector = dataset.column("score"), dataset.column("vector")
    assert score.mask[:FIRST_SAMPLES].all() and vector.mask[:FIRST_SAMPLES].all()
    assert (vector.mask.any(axis=1) == [sample["vector"] is None for sample in want]).all()
    assert not np.asarray(vector.data)[:FIRST_SAMPLES].any()
    assert dataset.lengths("words").tolist() == [len(s["words"]) if s["words"] is not None else 0 for s in want]
    assert dataset.lengths("note").tolist() == [len(s["note"] or "") for s in want]
    assert (dataset.record_sizes()[0] > 0).all()
    assert dataset.metadata == {"classes": ["a", "b"], "more": 1}
    old = shardload.open(tmp_path / "d", version=1)
    assert list(old.schema) == list(EVERY_SCHEMA) and old.metadata == {"classes": ["a", "b"]}
    assert all(same(old[i], {name: want[i][name] for name in EVERY_SCHEMA}) for i in range(FIRST_SAMPLES))
    with pytest.raises(ValueError, match="score"):
        shardload.open(tmp_path / "d", version=1, fields=["score"])


def test_each_shard_describes_the_dataset_as_it_was_to_be(tmp_path: Path) -> None:
    dataset = shardload.open(write_everything(tmp_path / "d"))
    versions = [decode_manifest((tmp_path / f"d/manifests/{n}").read_bytes(), "m") for n in (1, 2)]
    for number, entry in enumerate(dataset.table):
        shard = dataset._process_access().shard(number)
        described = decode_description(shard.sections.read(layout.SECTION_DESCRIPTION), "s")
        manifest = versions[entry.generation - 1]
        assert (described.schema, described.key, described.metadata) == (manifest.schema, "id", manifest.metadata)
        assert described.version == manifest.version == entry.generation
        assert described.generations[:-1] == manifest.generations[:-1] and described.generations[-1].num_samples == 0
        parts = [e.part for e in dataset.table if e.generation == entry.generation]
        assert shard.head.last == (entry.part == max(parts))


@pytest.mark.parametrize(
    ("metadata", "told"),
    [({"classes": ["b", "a"]}, "'classes'"), ({"n": 2}, "'n'"), ({"classes": "a"}, "mean something else")],
)
def test_metadata_that_contradicts(tmp_path: Path, metadata: Any, told: str) -> None:
    write(tmp_path / "d", {"a": "int8"}, [{"a": 1}], metadata={"classes": ["a", "b"], "n": 1})
    before = files(tmp_path / "d")
    with pytest.raises(PackError, match=told):
        write(tmp_path / "d", None, [{"a": 3}], append=True, metadata=metadata)
    assert files(tmp_path / "d") == before
    dataset = write(tmp_path / "d", None, [{"a": 3}], append=True, metadata={"n": 1, "new": "x"})
    assert dataset.metadata == {"classes": ["a", "b"], "n": 1, "new": "x"}


def test_metadata_that_differs_in_its_type(tmp_path: Path) -> None:
    write(tmp_path / "d", {"a": "int8"}, [{"a": 1}], metadata={"n": 1})
    with pytest.raises(PackError, match="'n'"):
        write(tmp_path / "d", None, [{"a": 3}], append=True, metadata={"n": True})


def test_an_append_of_nothing_or_to_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "d", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(PackError, match="no dataset to append to"):
            write(path, {"a": "int8"}, [{"a": 1}], append=True)
    assert not (tmp_path / "d/shards").exists() and not (tmp_path / "empty/shards").exists()
    write(tmp_path / "d", {"a": "int8"}, [{"a": 1}])
    before = files(tmp_path / "d")
    with pytest.raises(PackError, match="no sample to append"):
        write(tmp_path / "d", None, [], append=True)
    assert files(tmp_path / "d") == before
    assert [sample["a"] for sample in write(tmp_path / "d", None, [{"a": 2}], append=True)] == [1, 2]


def test_an_append_to_a_dataset_without_samples(tmp_path: Path) -> None:
    assert len(write(tmp_path / "d", {"a": "int8"}, [])) == 0
    dataset = write(tmp_path / "d", {"a": "int8", "b": "uint16[*]?"}, [{"a": 1, "b": [1, 2]}], append=True)
    assert len(dataset) == 1 and dataset[0]["b"].tolist() == [1, 2]
    assert len(shardload.open(tmp_path / "d", version=1)) == 0
    assert len(strict_reader.read_dataset(tmp_path / "d")) == 1


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"a": "int16", "b": "str?"}, "has it as int8, not int16"),
        ({"b": "str?"}, "the samples to append lack it"),
        ({"a": "int8", "c": "str"}, "must be nullable: str[?]"),
        ({"a": "int8", "c": {"type": "str?", "compression": "zstd"}}, "give it a level"),
    ],
)
def test_schemas_that_do_not_follow(tmp_path: Path, types: Any, message: str) -> None:
    write(tmp_path / "d", {"a": "int8", "b": "str?"}, [{"a": 1}])
    before = files(tmp_path / "d")
    with pytest.raises(FormatError, match=message):
        write(tmp_path / "d", types, [{"a": 1}], append=True)
    assert files(tmp_path / "d") == before and not (tmp_path / "d/.work").exists()


def test_fields_keep_their_codec_and_place(tmp_path: Path) -> None:
    """Of a dataset packed with zstd an uncompressed append stores its compressible fields as they are, and back."""
    types = {
        "text": "str",
        "plain": {"type": "str", "compression": "none"},
        "ids": {"type": "int32[*]", "compression": "zstd"},
    }

    def sample(i: int) -> dict[str, Any]:
        return {"text": f"text {i} " * 20, "plain": "p" * i, "ids": np.full(50, i, np.int32)}

    write(tmp_path / "d", types, [sample(0)], compression="zstd:3")
    other = {"ids": "int32[*]", "plain": "str", "text": "str"}
    write(tmp_path / "d", other, [sample(1)], append=True, compression="none")
    write(tmp_path / "d", None, [sample(2)], append=True, compression="zstd:19")
    dataset = shardload.open(tmp_path / "d")
    assert [(f.name, f.codec) for f in dataset.schema.fields] == [("text", "zstd"), ("plain", "none"), ("ids", "zstd")]
    assert [generation.codec for generation in dataset.manifest.generations] == ["zstd:3", "none", "zstd:19"]
    assert all(same(dataset[i], sample(i)) for i in range(3))
    assert all(same({n: np.array(v) if n == "ids" else v for n, v in got.items()}, sample(i))
               for i, got in enumerate(strict_reader.read_dataset(tmp_path / "d")))  # fmt: skip


def test_a_replaced_dataset_starts_anew(tmp_path: Path) -> None:
    write(tmp_path / "d", {"a": "int8"}, [{"a": 1}])
    write(tmp_path / "d", None, [{"a": 2}], append=True)
    dataset = write(tmp_path / "d", {"b": "str"}, [{"b": "new"}], replace=True)
    assert [sample["b"] for sample in dataset] == ["new"]
    assert [generation.generation for generation in dataset.manifest.generations] == [3]
    assert [sample["a"] for sample in shardload.open(tmp_path / "d", version=2)] == [1, 2]
    dataset = write(tmp_path / "d", None, [{"b": "more"}], append=True)
    assert [generation.generation for generation in dataset.manifest.generations] == [3, 4]
    assert len(strict_reader.read_dataset(tmp_path / "d")) == 2


def test_more_than_eight_nullable_fields_over_generations(tmp_path: Path) -> None:
    """The validity grows by a byte; bits of the first generation stay where they were."""
    first = {str(n): "int8?" for n in range(7)}
    later = first | {str(n): "int8?" for n in range(7, 20)}
    write(tmp_path / "d", first, [{"0": 1, "6": 6}, {}])
    dataset = write(tmp_path / "d", later, [{str(n): n for n in range(20)}, {"8": 8}], append=True)
    found = [{name: value for name, value in sample.items() if value is not None} for sample in dataset]
    assert found == [{"0": 1, "6": 6}, {}, {str(n): n for n in range(20)}, {"8": 8}]


def test_an_append_is_compressed_as_the_dataset_is(tmp_path: Path) -> None:
    for mode in ({"compression": "zstd:5"}, {"append": True}, {"append": True, "compression": "none"}):
        schema = None if "append" in mode else {"a": "str"}
        with shardload.ShardWriter(tmp_path / "d", schema, **mode) as writer:  # type: ignore[arg-type]
            writer.write({"a": "hello " * 100})
    dataset = shardload.open(tmp_path / "d")
    assert [generation.codec for generation in dataset.manifest.generations] == ["zstd:5", "zstd:5", "none"]
    assert dataset.record_sizes()[0].tolist()[:2] == [dataset.record_sizes()[0][0]] * 2
    assert (
        dataset.record_sizes()[0][2] == dataset.record_sizes()[1][2]
        and [s["a"] for s in dataset] == ["hello " * 100] * 3
    )
