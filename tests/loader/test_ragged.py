"""Ragged fields in batches: views into one buffer, padded or packed end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import EVERY_SAMPLES, EVERY_TYPES, expected_everything, write_everything
from torch.utils.data import DataLoader

import shardload
from shardload.loader import ShardLoader
from shardload.loader.collate import batch_bytes

SCHEMA: dict[str, Any] = {
    "tokens": "uint16[*]",
    "frames": "float32[*,3]?",
    "half": "bfloat16[*]",
    "mask": {"type": "bool[*]", "compression": "zstd"},
    "big": "uint64[*]",
    "wave": "int16[*]",
    "names": "str[*]",
}


def sample_of(i: int) -> dict[str, Any]:
    return {
        "tokens": (np.arange(i * 37 % 90) + 65_000 + i).astype(np.uint16),
        "frames": None if i % 3 == 0 else np.full((i % 7, 3), i, np.float32),
        "half": np.arange(i % 5, dtype=np.float32),
        "mask": np.arange(i % 6) % 2 == 0,
        "big": np.full(i % 4, i, np.uint64),
        "wave": np.full(i % 9, -i, np.int16),
        "names": [str(i)] * (i % 3),
    }


DTYPES = {
    "tokens": torch.int64, "frames": torch.float32, "half": torch.bfloat16, "mask": torch.bool, "big": torch.int64,
    "wave": torch.int16,
}  # fmt: skip


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 samples of ragged fields in several shards. Read only."""
    path = tmp_path_factory.mktemp("ragged") / "dataset"
    with shardload.ShardWriter(path, SCHEMA, compression="zstd:1", shard_size="48KiB") as writer:
        for i in range(60):
            writer.write(sample_of(i))
    return path


def make(path: Path, batch_size: int, **options: Any) -> ShardLoader:
    return ShardLoader(shardload.open(path), batch_size, **options)


def check(batch: dict[str, Any], ids: list[int]) -> None:
    for name, dtype in DTYPES.items():
        assert isinstance(batch[name], list) and len(batch[name]) == len(ids)
        for i, tensor in zip(ids, batch[name], strict=True):
            want = sample_of(i)[name]
            assert tensor.dtype == dtype
            if want is None:
                assert len(tensor) == 0 and tensor.shape[1:] == (3,)
            else:
                assert tensor.tolist() == want.tolist() and tuple(tensor.shape) == want.shape
    assert batch["names"] == [sample_of(i)["names"] for i in ids]
    assert batch["_valid_frames"].tolist() == [i % 3 != 0 for i in ids]
    assert "_valid_tokens" not in batch


def test_values_are_views_into_one_buffer(ragged: Path) -> None:
    ids = [5, 2, 59, 2, 30, 0]
    batch = shardload.collate(shardload.open(ragged).__getitems__(ids))
    check(batch, ids)
    for name in DTYPES:
        values = batch[name]
        assert len({value.untyped_storage().data_ptr() for value in values}) == 1
        packed, starts = shardload.packed(values)
        assert packed.data_ptr() == next(value for value in values if len(value)).data_ptr()
        assert packed.untyped_storage().data_ptr() == values[0].untyped_storage().data_ptr()
        assert starts.dtype == torch.int32 and starts.tolist() == [0, *np.cumsum([len(v) for v in values])]
        assert packed.shape == (sum(map(len, values)), *values[0].shape[1:])
        for value, start, stop in zip(values, starts, starts[1:], strict=False):
            assert torch.equal(packed[start:stop], value)


def test_packed_copies_what_does_not_lie_end_to_end(ragged: Path) -> None:
    values = shardload.collate(shardload.open(ragged).__getitems__([1, 2, 4, 5]))["tokens"]
    for others in (values[::-1], values[::2], [values[1], values[1]], [value.clone() for value in values]):
        packed, starts = shardload.packed(others)
        assert torch.equal(packed, torch.cat(others)) and starts[-1] == len(packed)
        assert packed.untyped_storage().data_ptr() != others[0].untyped_storage().data_ptr()
    strided = [torch.arange(10)[::2], torch.arange(3)]
    assert shardload.packed(strided)[0].tolist() == [0, 2, 4, 6, 8, 0, 1, 2]


def test_packed_and_padded_of_nothing(ragged: Path) -> None:
    batch = shardload.collate(shardload.open(ragged).__getitems__([0, 3]))
    packed, starts = shardload.packed(batch["frames"])
    assert packed.shape == (0, 3) and starts.tolist() == [0, 0, 0]
    padded, lengths = shardload.padded(batch["frames"])
    assert padded.shape == (2, 0, 3) and lengths.tolist() == [0, 0]


def test_padded(ragged: Path) -> None:
    ids = [5, 1, 0, 59, 8]
    batch = shardload.collate(shardload.open(ragged).__getitems__(ids))
    for name, fill in (("tokens", -1), ("frames", 0.5), ("wave", 7)):
        padded, lengths = shardload.padded(batch[name], fill)
        assert lengths.dtype == torch.int64 and lengths.tolist() == [len(value) for value in batch[name]]
        assert padded.dtype == DTYPES[name] and padded.shape[:2] == (5, int(lengths.max()))
        for value, row, length in zip(batch[name], padded, lengths.tolist(), strict=True):
            assert torch.equal(row[:length], value) and (row[length:] == fill).all()
        padded.zero_()
    check(batch, ids)


@pytest.mark.parametrize("prefetch_batches", [0, 3])
def test_loader(ragged: Path, prefetch_batches: int) -> None:
    with make(ragged, 7, shuffle=True, with_ids=True, tail="short", prefetch_batches=prefetch_batches) as loader:
        kept = [batch for _ in range(2) for batch in loader]
    assert len(kept) == 2 * 9
    # No buffer was used again while a batch, or a value of one, was kept.
    for batch in kept:
        check(batch, batch["_sample_id"].tolist())


def test_one_kept_value_keeps_its_buffer(ragged: Path) -> None:
    with make(ragged, 4, shuffle=True, with_ids=True, tail="short") as loader:
        kept = [
            (batch["_sample_id"].tolist()[-1], batch["tokens"][-1], batch["frames"][-1])
            for _ in range(3)
            for batch in loader
        ]
    for i, tokens, frames in kept:
        assert tokens.tolist() == sample_of(i)["tokens"].tolist()
        assert frames.tolist() == ([] if i % 3 == 0 else sample_of(i)["frames"].tolist())


def test_dtypes(ragged: Path) -> None:
    dtypes = {"tokens": torch.int32, "frames": torch.float16, "wave": torch.float32, "big": torch.uint64}
    with make(ragged, 60, shuffle=False, dtypes=dtypes) as loader:
        batch = next(iter(loader))
    for name, dtype in dtypes.items():
        assert all(value.dtype == dtype for value in batch[name])
        for i in (1, 5, 58):
            assert batch[name][i].tolist() == (sample_of(i)[name].tolist() if sample_of(i)[name] is not None else [])
    with pytest.raises(ValueError, match="'names' is not a field of numbers"):
        make(ragged, 60, shuffle=False, dtypes={"names": torch.int64})


def test_numbers_beyond_int64_are_refused_not_wrapped(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "d", {"n": "uint64[*]"}) as writer:
        writer.write({"n": np.array([1, (1 << 64) - 1], np.uint64)})
    with pytest.raises(ValueError, match="does not fit int64"):
        next(iter(make(tmp_path / "d", 1, shuffle=False)))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(ragged: Path, workers: int) -> None:
    loader = DataLoader(
        shardload.open(ragged),
        batch_size=9,
        shuffle=False,
        num_workers=workers,
        collate_fn=shardload.collate,
        timeout=workers * 30,
    )
    start = 0
    for batch in loader:
        ids = list(range(start, min(start + 9, 60)))
        check(batch, ids)
        start += 9
        assert torch.equal(shardload.packed(batch["tokens"])[0], torch.cat(batch["tokens"]))
    assert start >= 60


def test_one_of_everything(tmp_path: Path) -> None:
    path, want = write_everything(tmp_path / "d"), expected_everything()
    with make(path, 5, shuffle=True, with_ids=True, tail="short") as loader:
        batches = list(loader)
    assert sorted(i for batch in batches for i in batch["_sample_id"].tolist()) == list(range(EVERY_SAMPLES))
    for batch in batches:
        for name, kind in EVERY_TYPES.items():
            valid = [want[i][name] is not None for i in batch["_sample_id"].tolist()]
            assert ("_valid_" + name in batch) == kind.endswith("?")
            if kind.endswith("?"):
                assert batch["_valid_" + name].tolist() == valid
            for i, value, there in zip(batch["_sample_id"].tolist(), batch[name], valid, strict=True):
                expected = want[i][name]
                if not isinstance(value, torch.Tensor):
                    assert value == expected
                elif there:
                    np.testing.assert_array_equal(value.to(torch.float64).numpy(), np.asarray(expected, np.float64))
                else:
                    assert not value.any()


def test_the_bytes_of_a_batch_are_counted_whatever_it_holds() -> None:
    numbers = torch.zeros(3, 5, dtype=torch.int16)
    cases: list[tuple[Any, int]] = [
        ([], 0),
        (["ab", "", "cde"], 5),
        ([b"ab", None, b"c"], 3),
        (["a", b"bc", 7, None], 3),
        ([numbers, numbers[0]], 40),
        ([numbers, None, np.zeros(2), "ab"], 48),
        ({"a": numbers, "b": ["x"] * 9, "c": [["y"], [b"zz", numbers]], "d": ({"e": "four"},)}, 30 + 9 + 33 + 4),
        (3, 0),
    ]
    for batch, num_bytes in cases:
        assert batch_bytes(batch) == num_bytes
        assert batch_bytes(tuple(batch) if isinstance(batch, list) else batch) == num_bytes


@pytest.mark.parametrize("compression", ["none", "zstd:3"])
@pytest.mark.parametrize("how", [{}, {"with_ids": True}, {"batch_transform": dict}, {"transform": dict}])
def test_the_bytes_of_texts_that_came_are_told(tmp_path: Path, how: dict[str, Any], compression: str) -> None:
    """As they are stored where that is known, else as the objects tell."""
    with shardload.ShardWriter(tmp_path / "d", {"text": "str", "number": "int64"}, compression=compression) as writer:
        for number in range(9):
            writer.write({"text": "aü" * number, "number": number})
    with ShardLoader(shardload.open(tmp_path / "d"), 4, shuffle=True, drop_last=False, **how) as loader:
        num_characters = sum(len(text) for batch in loader for text in batch["text"])
        num_bytes = loader.stats().num_bytes
    assert num_characters == 2 * 36
    known = not {"batch_transform", "transform"} & how.keys()
    assert num_bytes == (3 * 36 if known else num_characters) + 9 * 8 + (9 * 24 if "with_ids" in how else 0)
