"""Shards of hostile or foreign writers: right checksums over wrong facts are errors with a place, and cost little."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from forge import Forge
from reader.hostile import HEAP_START, write_overlapping, write_raw, write_with_places

import shardload
from shardload.format import layout

SHARD = "shards/0001-000000-00000.shard"


def test_overlapping_records_are_refused_before_they_are_read(tmp_path):
    path = write_overlapping(tmp_path / "d", 400, 2 << 20)
    dataset = shardload.open(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(shardload.FormatError, match="starts before the end of the one before it") as caught:
        dataset.__getitems__(range(256))
    error = caught.value
    assert (error.dataset, error.shard, error.sample_id) == (str(path), SHARD, 1)
    assert (error.start, error.stop) == (HEAP_START + 64, HEAP_START + (2 << 20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    # One by one they are records with right sums; asked for twice, a sample does not overlap itself.
    assert len(dataset[7]["data"]) == (2 << 20) - 7 * 64 - 8
    assert len(dataset.__getitems__([7, 7])) == 2


@pytest.mark.parametrize("size", [100, 40_000])
@pytest.mark.parametrize("engine", ["map", "pread"])
def test_a_length_that_lies_under_the_right_checksum_is_refused_each_time(tmp_path, engine, size):
    """Also where what was checked is read from memory, by what its row says."""
    with shardload.ShardWriter(tmp_path / "d", {"data": "bytes"}) as writer:
        for _ in range(4):
            writer.write({"data": bytes(size)})
    forged = Forge(tmp_path / "d")
    start = forged.shards[0].record_at(2)[0]
    forged.shards[0].section(layout.SECTION_HEAP).data[start + 4 : start + 8] = (size - 1).to_bytes(4, "little")
    dataset = shardload.open(forged.save(), engine=engine, verify="once")
    if engine == "map":
        dataset._process_access().engine._mapped.residency[:] = 1
    for ids in ([2], [2], range(4), range(4)):
        with pytest.raises(shardload.FormatError, match="do not fit a record") as caught:
            dataset.__getitems__(ids)
        assert caught.value.sample_id == 2
    assert len(dataset.__getitems__([0, 1, 3])) == 3


def test_falling_places(tmp_path):
    path = write_with_places(tmp_path / "d", 100, lambda i, place: HEAP_START + (99 - i) * 16)
    dataset = shardload.open(path)
    for read in (lambda: dataset.lengths("a"), lambda: dataset.__getitems__([4, 3, 3])):
        with pytest.raises(shardload.FormatError, match="before the end") as caught:
            read()
        error = caught.value
        assert (error.dataset, error.shard) == (str(path), SHARD)
        assert error.start == HEAP_START + (99 - error.sample_id) * 16
        assert f"sample {error.sample_id}" in str(error)
    dataset.will_need(np.arange(100))


def test_a_place_outside_the_heap_names_its_own_sample(tmp_path):
    path = write_with_places(tmp_path / "d", 50, lambda i, place: 1 << 40 if i == 9 else place)
    dataset = shardload.open(path)
    for read in (lambda: dataset.lengths("a"), lambda: dataset.__getitems__(range(50))):
        with pytest.raises(shardload.FormatError, match="no record in the heap") as caught:
            read()
        error = caught.value
        assert (error.dataset, error.shard, error.sample_id, error.start) == (str(path), SHARD, 9, 1 << 40)
    dataset.will_need(np.arange(50))


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("str", b"\xff\xfe", "UTF-8"),
        ("str", b"\xed\xa0\x80", "UTF-8"),
        ("json", b"", "JSON"),
        ("json", b'{"a"', "JSON"),
        ("json", b'"\xff"', "JSON"),
        ("json", '"text"'.encode("utf-16"), "JSON"),
        ("json", b"[NaN]", "JSON"),
        ("json", b"1" * 5000, "JSON"),
        ("json", b"[" * 200_000, "nested too deeply"),
        ("json", b'{"a":' * 200_000, "nested too deeply"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_values_that_cannot_be_decoded_name_dataset_field_and_sample(tmp_path, monkeypatch, kind, data, told):
    good = b'"good"'
    path = write_raw(tmp_path / "d", monkeypatch, kind, [good, data, good])
    dataset = shardload.open(path)
    batch = dataset.__getitems__([2, 0, 1])
    for read in (lambda: dataset[1], lambda: batch[2], lambda: batch.values_of("value"), lambda: list(dataset)):
        with pytest.raises(shardload.FormatError, match=told) as caught:
            read()
        error = caught.value
        assert (error.dataset, error.sample_id) == (str(path), 1)
        assert str(path) in str(error) and "'value'" in str(error) and "sample 1" in str(error)
        assert len(str(error)) < 500
    # The others, and the other fields, stay readable.
    assert batch[1]["number"] == 0
    assert shardload.open(path, fields=["number"])[1] == {"number": 1}


def test_values_of_a_batch(mixed):
    batch = shardload.open(mixed).__getitems__([5, 4, 4])
    assert batch.values_of("text") == [sample["text"] for sample in batch]
    assert batch.values_of("facts") == [{"id": 5, "tags": ["a", "5"]}, None, None]
    with pytest.raises(ValueError, match="number"):
        batch.values_of("number")
