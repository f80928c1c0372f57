"""Items of stream fields: over shards, blocks and generations, checked and unchecked, by both engines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shardload
from shardload.format import layout
from shardload.reader import streams

NUM_SAMPLES, NUM_OLD = 200, 80


def sample_of(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    size = 30_000 if i % 60 == 11 else int(rng.integers(0, 900)) * (i % 5 > 0)
    more = np.full((i % 40, 3), i, np.float32)
    return {
        "tokens": (np.arange(size) + 7 * i).astype(np.uint16),
        "more": None if i < NUM_OLD or i % 4 == 0 else more,
    }


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, the first without a field. Read only."""
    path = tmp_path_factory.mktemp("streams") / "d"
    with shardload.ShardWriter(path, {"tokens": "uint16[*]"}, shard_size="24KiB") as writer:
        for i in range(NUM_OLD):
            writer.write({"tokens": sample_of(i)["tokens"]})
    schema = {"tokens": "uint16[*]", "more": "float32[*,3]?"}
    with shardload.ShardWriter(path, schema, shard_size="24KiB", append=True) as writer:
        for i in range(NUM_OLD, NUM_SAMPLES):
            writer.write(sample_of(i))
    return path


def check(dataset: shardload.ShardDataset, batches: list[list[int]]) -> None:
    arrays = [np.array(ids, np.int64) for ids in batches]
    for ids, batch in zip(batches, dataset.read_batches(arrays, [{}] * len(arrays), dataset.field_list), strict=True):
        for i, sample in zip(ids, batch, strict=True):
            for name, value in sample.items():
                want = sample_of(i)[name]
                assert (value is None) == (want is None)
                if want is not None:
                    assert value.dtype == want.dtype and value.shape == want.shape and (value == want).all()
                    assert value.flags.writeable


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=30), min_size=1, max_size=4),
    fields=st.sampled_from([None, ["tokens"], ["more"]]),
    engine=st.sampled_from(["map", "pread"]),
    verify=st.sampled_from(["always", "once", "off"]),
    piece=st.sampled_from([1, 20_000, 1 << 24]),
    group=st.sampled_from([1, 3, 1024]),
)
@example([list(range(NUM_SAMPLES))] * 2, None, "map", "always", 1 << 24, 1024)
@example([list(range(NUM_SAMPLES))[::-1]], None, "pread", "always", 1 << 24, 5)
def test_items(
    content: Path, batches: list[list[int]], fields: list[str] | None, engine: Any, verify: Any, piece: int, group: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", piece)
        patch.setattr(streams, "_GROUP_BLOCKS", group)
        dataset = shardload.open(content, fields=fields, engine=engine, verify=verify)
        for _ in range(2):
            check(dataset, batches)


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("block", ["first", "second", "last"])
def test_a_damaged_block_is_named_with_the_first_sample_that_has_part_of_it(
    content: Path, tmp_path: Path, block: str, engine: Any
) -> None:
    path = tmp_path / "d"
    shutil.copytree(content, path)
    shard_id = 3
    shard = shardload.open(content)._process_access().shard(shard_id)
    section = shard.head.section(layout.SECTION_STREAM, 0)
    number = {"first": 0, "second": 1, "last": (section.num_bytes - 1) // layout.BLOCK_BYTES}[block]
    low = section.start + number * layout.BLOCK_BYTES
    high = min(low + layout.BLOCK_BYTES, section.start + section.num_bytes)
    with open(path / shard.entry.name, "r+b") as file:
        file.seek(high - 1)
        byte = file.read(1)[0]
        file.seek(high - 1)
        file.write(bytes([byte ^ 4]))
    dataset = shardload.open(path, fields=["tokens"], engine=engine, verify="once")
    first, stop = (int(n) for n in dataset.table.first_sample_ids[shard_id : shard_id + 2])
    ends = np.cumsum([2 * len(sample_of(i)["tokens"]) for i in range(first, stop)])
    starts = np.concatenate([[0], ends[:-1]])
    hit = [
        first + i
        for i in range(stop - first)
        if starts[i] < high - section.start and ends[i] > low - section.start and starts[i] < ends[i]
    ]
    message = f"{shard.entry.name} is damaged at bytes {low} to {high}: the items of field 'tokens' do not have their"
    for _ in range(2):
        for i in range(first, stop):
            if i not in hit:
                check(dataset, [[i]])
                continue
            with pytest.raises(shardload.errors.ChecksumError, match=rf"{message} checksum \(sample {i}\)") as caught:
                dataset[i]
            assert (caught.value.start, caught.value.stop, caught.value.sample_id) == (low, high, i)
    with pytest.raises(shardload.errors.ChecksumError, match=rf"{message} checksum \(sample {hit[0]}\)"):
        dataset.__getitems__([*range(NUM_SAMPLES)][::-1])


def test_blocks_are_checked_once_where_that_is_asked_for(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    rows_match = streams.rows_match
    monkeypatch.setattr(streams, "rows_match", lambda data, sums: checked.append(len(data)) or rows_match(data, sums))
    ids = [list(range(NUM_SAMPLES))]
    for verify, times in (("off", [0, 0]), ("once", [1, 0]), ("always", [1, 1])):
        dataset = shardload.open(content, fields=["tokens"], verify=verify)  # type: ignore[arg-type]
        for expected in times:
            checked.clear()
            check(dataset, ids)
            num_blocks = sum(
                -(-access.head.section(layout.SECTION_STREAM, 0).num_bytes // layout.BLOCK_BYTES)
                for access in map(dataset._process_access().shard, range(len(dataset.table)))
            )
            assert sum(checked) == expected * num_blocks
