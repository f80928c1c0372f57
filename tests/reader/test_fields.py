"""Fields of every kind, written and read back: each way to read gives what was written."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import plain_reader
import pytest
import strict_reader
from any_dataset import Samples, Types, assert_same, samples_of, schemas, type_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import EVERY_SAMPLES, EVERY_TYPES, FIRST_SAMPLES, expected_everything, same, write_everything

import shardload
from shardload.format.schema import Field
from shardload.format.statistics import FieldStatistics
from shardload.reader import access
from shardload.reader.verify import verify_dataset

MODES = ["auto", "once", "always", "off"]


def check_samples(dataset: shardload.ShardDataset, want: Samples, ids: list[int]) -> None:
    batch = dataset.__getitems__(ids)
    assert len(batch) == len(ids)
    for i, sample in zip(ids, batch, strict=True):
        assert list(sample) == list(dataset.schema)
        for name in dataset.schema:
            assert_same(sample[name], want[i].get(name))


def stored_length(field: Field, value: Any) -> int:
    """The length of a value as `lengths` and the statistics have it."""
    if value is None or field.fixed:
        return 0
    if field.listed:
        return 4 + 4 * len(value) + sum(len(item.encode() if isinstance(item, str) else item) for item in value)
    return len(value) if field.ragged else len(value.encode() if isinstance(value, str) else value)


def check_statistics(field: Field, got: FieldStatistics, values: list[Any]) -> None:
    present = [value for value in values if value is not None]
    assert (got.num_missing, got.num_values) == (len(values) - len(present), len(present))
    if field.kind != "json":
        lengths = [stored_length(field, value) for value in present]
        found = (got.total_length, got.shortest, got.longest)
        assert found == (sum(lengths), min(lengths, default=0), max(lengths, default=0))
    if field.in_record:
        assert (got.smallest, got.largest, got.has_nan) == (None, None, False)
        return
    numbers = [number for value in present for number in np.asarray(value).reshape(-1).tolist()]
    sound = [number for number in numbers if number == number]
    assert got.has_nan == (len(sound) < len(numbers))
    assert (got.smallest, got.largest) == (min(sound, default=None), max(sound, default=None))


def check_columns(dataset: shardload.ShardDataset, want: Samples) -> None:
    statistics = dataset.statistics()
    assert list(statistics) == list(dataset.schema)
    for name, field in dataset.schema.items():
        values = [sample.get(name) for sample in want]
        check_statistics(field, statistics[name], values)
        if field.fixed:
            column = dataset.column(name)
            assert len(column) == len(want)
            for i, value in enumerate(values):
                if value is None:
                    assert np.ma.getmaskarray(column)[i].all()
                else:
                    assert_same(np.asarray(column[i]), np.asarray(value))
        elif not field.listed and field.kind != "json":
            assert dataset.lengths(name).tolist() == [stored_length(field, value) for value in values]
    stored, raw = dataset.record_sizes()
    assert len(stored) == len(raw) == len(want) and (stored <= raw).all() and (stored >= 1).all()


def write(path: Path, schema: Types | None, samples: Samples, **options: Any) -> None:
    with shardload.ShardWriter(path, schema, **options) as writer:
        for sample in samples:
            writer.write(sample)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(["none", "zstd:1"]), st.sampled_from([1, "64KiB", "1MiB"]), st.sampled_from(MODES))
def test_any_samples(data: st.DataObject, compression: str, shard_size: Any, verify: Any) -> None:
    schema = data.draw(schemas(compression != "none"))
    samples = data.draw(samples_of(schema))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "d")
        write(path, schema, samples, compression=compression, shard_size=shard_size)
        dataset = shardload.open(path, verify=verify)
        assert len(dataset) == len(samples)
        for i in range(len(samples)):
            check_samples(dataset, samples, [i])
        if samples:
            check_samples(dataset, samples, data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=12)))
        check_samples(dataset, samples, [])
        check_columns(dataset, samples)
        assert verify_dataset(path) == []


@st.composite
def generations(draw: st.DrawFn) -> list[tuple[Types, Samples]]:
    """The schema and the samples of some generations; each may add nullable fields, and leave out nullable ones."""
    known = draw(schemas(True, max_size=4))
    result = [(known, draw(samples_of(known, max_size=4)))]
    for _ in range(draw(st.integers(1, 3))):
        added = draw(schemas(True, nullable=True, min_size=0, max_size=3))
        known = known | {name: entry for name, entry in added.items() if name not in known}
        left_out = draw(st.sets(st.sampled_from(sorted(known))))
        given_ = {
            name: entry for name, entry in known.items() if name not in left_out or not type_of(entry).endswith("?")
        }
        result.append((given_, draw(samples_of(given_, max_size=4, min_size=1))))
        known = {name: known[name] for name in known if name in given_ or name in _so_far(result[:-1])}
    return result


def _so_far(written: list[tuple[Types, Samples]]) -> Types:
    schema: Types = {}
    for types, _ in written:
        schema |= {name: entry for name, entry in types.items() if name not in schema}
    return schema


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), generations(), st.sampled_from([1, "64KiB"]), st.sampled_from(MODES))
def test_any_appends(data: st.DataObject, written: list[tuple[Types, Samples]], shard_size: Any, verify: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, fingerprints = Path(directory, "d"), []
        for number, (types, samples) in enumerate(written):
            compression = data.draw(st.sampled_from(["zstd:1", "zstd:-3"]))
            write(path, types, samples, append=number > 0, compression=compression, shard_size=shard_size)
            fingerprints.append(shardload.open(path).fingerprint)
        assert len(set(fingerprints)) == len(written)
        for version in range(1, len(written) + 1):
            schema = _so_far(written[:version])
            want = [sample for _, samples in written[:version] for sample in samples]
            dataset = shardload.open(path, version=version, fingerprint=fingerprints[version - 1], verify=verify)
            assert list(dataset.schema) == list(schema) and len(dataset) == len(want)
            if want:
                check_samples(dataset, want, data.draw(st.lists(st.integers(0, len(want) - 1), max_size=12)))
            check_samples(dataset, want, list(range(len(want))))
            check_columns(dataset, want)
        for read in (plain_reader.read_dataset(path), strict_reader.read_dataset(path)):
            assert len(read) == len(want)
            for got, sample in zip(read, want, strict=True):
                assert list(got) == list(schema)
                for name in schema:
                    assert_same(got[name], sample.get(name))
        assert verify_dataset(path) == []


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("everything") / "dataset")


@pytest.mark.parametrize("verify", MODES)
def test_everything(everything: Path, verify: Any) -> None:
    dataset, want = shardload.open(everything, verify=verify), expected_everything()
    for i in range(EVERY_SAMPLES):
        assert same(dataset[i], want[i]), i
    ids = np.random.default_rng(5).integers(0, EVERY_SAMPLES, 200).tolist()
    for _ in range(2):
        for i, sample in zip(ids, dataset.__getitems__(ids), strict=True):
            assert same(sample, want[i]), i
    check_columns(dataset, want)


@pytest.mark.parametrize("name", list(EVERY_TYPES))
def test_each_field_alone(everything: Path, name: str) -> None:
    dataset = shardload.open(everything, fields=[name])
    want = [{name: sample[name]} for sample in expected_everything()]
    assert all(same(got, sample) for got, sample in zip(dataset, want, strict=True))


def test_rows_by_page(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the index does not fit its budget: sums, keys and rows are read a piece at a time and dropped."""
    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", 1)
    dataset, want = shardload.open(everything), expected_everything()
    for i in (*range(EVERY_SAMPLES), 3, 20, 4):
        assert same(dataset[i], want[i]), i
        assert dataset.find(f"sample-{i}") == i
    check_columns(dataset, want)
    dataset.will_need(np.arange(EVERY_SAMPLES))


def test_ragged_values_are_owned_and_writable(everything: Path) -> None:
    dataset = shardload.open(everything)
    for name, i in (("tokens", 9), ("frames", 9), ("mask", 9), ("embedding", 4)):
        batch = dataset.__getitems__([i, i])
        first = batch[0][name]
        assert first.size and first.flags.writeable
        before = batch[1][name].copy()
        first[...] = 1 - first if first.dtype != bool else ~first
        assert same(batch[1][name], before) and same(batch[0][name], before) and same(dataset[i][name], before)


def test_lengths_of_lists_and_fixed_fields_are_refused(everything: Path) -> None:
    dataset = shardload.open(everything)
    for name in ("blobs", "captions", "box", "label", "none"):
        with pytest.raises(ValueError, match=name):
            dataset.lengths(name)
    for name in ("tokens", "text", "mask", "none"):
        with pytest.raises(ValueError, match="not a fixed field"):
            dataset.column(name)


def test_one_huge_sample_has_a_shard_of_its_own(tmp_path: Path) -> None:
    schema = {"tokens": "uint16[*]", "frames": {"type": "float32[*,80]", "compression": "zstd"}, "names": "str[*]"}
    samples = [
        {
            "tokens": np.arange(n % 65_000, dtype=np.uint16),
            "frames": np.full((n // 100, 80), n, np.float32),
            "names": [str(n)] * (n // 10),
        }
        for n in (10, 60_000, 3, 4096, 0, 2048, 2047)
    ]
    write(tmp_path / "d", schema, samples, compression="zstd:1", shard_size="64KiB")
    dataset = shardload.open(tmp_path / "d")
    assert [entry.num_samples for entry in dataset.table][:2] == [1, 1]
    assert dataset.table[1].num_bytes > 1 << 16 and all(e.num_bytes <= 1 << 16 for e in dataset.table if e.part != 1)
    check_samples(dataset, samples, [6, 1, 1, 0, 2, 3, 4, 5])
    check_columns(dataset, samples)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float64"])
@pytest.mark.parametrize(
    "ends", [[0], [-1, 0], [1], [0, 4096, 1], [-4096, -4096], [1 - 4096] * 5, [4096, -4096, 4095, 2]]
)
def test_ends_of_samples_around_the_borders_of_blocks(tmp_path: Path, kind: str, ends: list[int]) -> None:
    """Samples of so many items more or less than a block has: each read alone, which reads and checks just its blocks."""
    size = np.dtype(kind).itemsize
    counts = [4096 // size + (end if end > -4096 else -4096 // size + 4096 + end) for end in ends]
    samples = [{"t": (np.arange(n) * 31 % 251 + k).astype(kind)} for k, n in enumerate(counts)]
    write(tmp_path / "d", {"t": f"{kind}[*]"}, samples)
    for i in range(len(counts)):
        check_samples(shardload.open(tmp_path / "d", verify="always"), samples, [i])
    check_samples(shardload.open(tmp_path / "d"), samples, list(range(len(counts)))[::-1] * 2)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_damage_where_all_blocks_are_whole(tmp_path: Path, num_blocks: int) -> None:
    write(tmp_path / "d", {"t": "uint8[*]"}, [{"t": np.ones(4096 * num_blocks, np.uint8)}])
    shard = next((tmp_path / "d/shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[4096 * num_blocks] ^= 1  # the first byte of the last block
    shard.write_bytes(data)
    with pytest.raises(shardload.ChecksumError) as caught:
        shardload.open(tmp_path / "d")[0]
    assert (caught.value.start, caught.value.stop) == (4096 * num_blocks, 4096 * num_blocks + 4096)


def test_a_stream_of_many_pieces_of_sums(tmp_path: Path) -> None:
    """Sums are read a thousand blocks at a time; a read may lie in two of these pieces."""
    length = 3 << 20
    values = np.random.default_rng(0).integers(0, 256, (3, length), dtype=np.uint8)
    samples = [{"x": row} for row in values] + [{"x": values[0, :5]}]
    write(tmp_path / "d", {"x": "uint8[*]"}, samples)
    for ids in ([1], [3], [0, 1, 2, 3]):
        check_samples(shardload.open(tmp_path / "d", verify="always"), samples, ids)
    shard = next((tmp_path / "d/shards").iterdir())
    with shard.open("r+b") as file:
        file.seek(4096 + (4 << 20) + 10)  # in the 1,025th block, of sample 1
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    dataset = shardload.open(tmp_path / "d", verify="always")
    check_samples(dataset, samples, [0, 2, 3])
    with pytest.raises(shardload.ChecksumError, match="field 'x'") as caught:
        dataset[1]
    start = 4096 + (4 << 20)
    assert (caught.value.sample_id, caught.value.start, caught.value.stop) == (1, start, start + 4096)


def test_damage_in_another_samples_block_does_not_hide_this_one(tmp_path: Path) -> None:
    samples = [{"t": np.full(3000, n, np.uint16)} for n in range(3)]
    write(tmp_path / "d", {"t": "uint16[*]"}, samples)
    shard = next((tmp_path / "d/shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[4096 + 17_999] ^= 4  # the last item, in the last block, which is shorter
    shard.write_bytes(data)
    for verify in ("once", "always"):
        dataset = shardload.open(tmp_path / "d", verify=verify)
        check_samples(dataset, samples, [0, 1])
        for _ in range(2):
            with pytest.raises(shardload.ChecksumError) as caught:
                dataset.__getitems__([0, 1, 2])
            assert (caught.value.start, caught.value.stop) == (4096 + 16_384, 4096 + 18_000)
    assert shardload.open(tmp_path / "d", verify="off")[2]["t"][-1] != 2


def test_samples_of_a_later_schema_need_no_memory_for_what_is_missing(everything: Path) -> None:
    batch = shardload.open(everything, fields=list(EVERY_TYPES)).__getitems__(range(FIRST_SAMPLES))
    assert all(sample[name] is None for sample in batch for name in ("score", "vector", "words", "tags", "note"))
    assert sys.getsizeof(batch) < 1000
