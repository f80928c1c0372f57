"""Windows over the stream of a field: what a reference in plain numpy has, from the blocks that they lie in and no others."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reader.test_hostile_streams import write

import shardload
from shardload.format import layout
from shardload.format.rows import row_layout
from shardload.reader import access as access_module
from shardload.reader import streams
from shardload.reader import windows as windows_module
from shardload.reader.row_pages import RowPages

SCHEMA = {"tokens": "uint16[*]", "small": "uint8[*]?", "frames": "float32[*,3]?", "number": "int64"}
LATER = {"late": "int32[*]?", "half": "bfloat16[*,2]?", "flags": "bool[*]?", "long": "uint64[*]?"}
NUM_SAMPLES, NUM_OLD = 170, 90


def sample_of(i: int) -> dict[str, Any]:
    """Many are empty or missing, whole shards of them too; one is larger than a shard."""
    rng = np.random.default_rng(i)
    size = 0 if 15 <= i < 65 else 9_000 if i == 71 else int(rng.integers(0, 400)) * (i % 4 > 0)
    sample = {"tokens": rng.integers(0, 1 << 16, size).astype(np.uint16), "number": i}
    sample["small"] = None if i % 3 == 0 or i < 9 else np.arange(i % 40, dtype=np.uint8)
    sample["frames"] = None if i % 5 == 1 else rng.normal(size=(i % 9, 3)).astype(np.float32)
    if i >= NUM_OLD:
        sample["late"] = None if i % 4 == 0 else np.arange(-i, i % 7, dtype=np.int32)
        sample["half"] = np.arange(2 * (i % 5), dtype=np.float32).reshape(-1, 2)
        sample["flags"] = None if i % 2 else np.arange(i % 11) % 3 == 0
        sample["long"] = np.arange(i % 6, dtype=np.uint64)
    return sample


@dataclass
class Content:
    """A packed dataset, and its streams made in memory."""

    path: Path
    items: dict[str, np.ndarray]
    """All items of each field, end to end."""
    owners: dict[str, np.ndarray]
    """The sample of each."""


def concatenated(name: str) -> tuple[np.ndarray, np.ndarray]:
    values = [sample_of(i).get(name) for i in range(NUM_SAMPLES)]
    some = [value for value in values if value is not None]
    lengths = [0 if value is None else len(value) for value in values]
    return np.concatenate(some), np.repeat(np.arange(NUM_SAMPLES), lengths)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Four generations, the second without tokens, the last of more fields. Read only."""
    path = tmp_path_factory.mktemp("windows") / "d"
    for first, stop, schema in (
        (0, 15, SCHEMA),
        (15, 65, SCHEMA),
        (65, NUM_OLD, SCHEMA),
        (NUM_OLD, NUM_SAMPLES, SCHEMA | LATER),
    ):
        size = "20KiB" if schema is SCHEMA else "36KiB"
        with shardload.ShardWriter(path, schema, shard_size=size, append=first > 0) as writer:
            for i in range(first, stop):
                writer.write(sample_of(i))
    made = {name: concatenated(name) for name in (*SCHEMA, *LATER) if name != "number"}
    table = shardload.open(path).table
    counts = table.entries["num_items"][:, 0]
    assert len(table) > 12 and 0 in counts and np.median(table.entries["num_samples"]) >= 5
    return Content(
        path, {name: items for name, (items, _) in made.items()}, {name: own for name, (_, own) in made.items()}
    )


def expected(content: Content, name: str, start: int, length: int, shift: int) -> dict[str, np.ndarray]:
    """The reference: one window, by slices of everything."""
    owners = content.owners[name][start : start + length]
    edges = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), length]
    return {
        "input_ids": content.items[name][start : start + length],
        "labels": content.items[name][start + shift : start + shift + length],
        "doc_id": owners,
        "position_ids": np.arange(length) - np.repeat(edges[:-1], np.diff(edges)),
        "cu_seqlens": np.array(edges),
    }


def check(content: Content, windows: shardload.TokenWindows, batches: list[np.ndarray]) -> None:
    read = windows.read_batches(batches, [{}] * len(batches), windows.field_list)
    phases = np.concatenate(batches) // len(windows)
    starts = np.concatenate(batches) % len(windows) * windows.stride + phases
    assert windows.starts(np.concatenate(batches)).tolist() == starts.tolist()
    found = [sample for batch in read for sample in batch]
    for sample, start in zip(found, starts.tolist(), strict=True):
        want = expected(content, windows.field.name, start, windows.length, windows.shift)
        assert set(sample) == {"input_ids", "labels", *windows.documents}
        for key, value in sample.items():
            np.testing.assert_array_equal(value, want[key])
            assert value.flags.writeable


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_windows_are_those_of_numpy(content: Content, data: st.DataObject) -> None:
    """The field, length, stride, shift, documents, phase, batches, engine, checks and the way rows are held are any."""
    name = data.draw(st.sampled_from(["tokens", "tokens", "tokens", *content.items]))
    num_items = len(content.items[name])
    shift = data.draw(st.sampled_from([0, 1, 1, 2, 50]))
    length = data.draw(st.one_of(st.integers(1, 40), st.integers(1, min(6000, max(1, num_items - shift)))))
    stride = data.draw(st.sampled_from([None, 1, max(1, length // 2), length + 3, 1500]))
    documents = data.draw(st.sets(st.sampled_from(["doc_id", "position_ids", "cu_seqlens"])))
    phase = data.draw(st.sampled_from(["fixed", "epoch"]))
    options = data.draw(
        st.fixed_dictionaries({"engine": ENGINES, "verify": st.sampled_from(["always", "once", "off"])})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_module, "INDEX_BUDGET_BYTES", data.draw(st.sampled_from([0, 1 << 20])))
        patch.setattr(windows_module, "_CHUNK_BYTES", data.draw(st.sampled_from([1, 5000, 1 << 20])))
        patch.setattr(streams, "PIECE_BYTES", data.draw(st.sampled_from([1, 20_000, 1 << 24])))
        windows = shardload.TokenWindows(
            shardload.open(content.path, **options), name, length, stride, shift, documents=documents, phase=phase
        )
        if num_items < length + shift:
            assert len(windows) == 0
            return
        ids = st.lists(st.integers(0, windows.num_ids - 1), max_size=9).map(lambda ids: np.array(ids, dtype=np.int64))
        check(content, windows, data.draw(st.lists(ids, min_size=1, max_size=3)))


SOME_IDS = st.one_of(
    st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=12),
    st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=12).map(sorted),
    st.builds(range, st.integers(0, 80), st.integers(80, NUM_SAMPLES), st.integers(1, 3)),
    st.permutations(range(NUM_SAMPLES)),
)


def of_view(content: Content, name: str, ids: Any) -> Content:
    """What a view has, as if it were all."""
    pieces = [content.items[name][content.owners[name] == i] for i in ids]
    owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    empty = content.items[name][:0]
    return Content(content.path, {name: np.concatenate([empty, *pieces])}, {name: owners})


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_windows_of_a_view_are_those_of_its_samples_end_to_end(content: Content, data: st.DataObject) -> None:
    """In any order, also where samples come twice."""
    name = data.draw(st.sampled_from(["tokens", "tokens", *content.items]))
    ids = data.draw(SOME_IDS)
    mine = of_view(content, name, ids)
    length, shift = data.draw(st.integers(1, 300)), data.draw(st.sampled_from([0, 1, 3]))
    stride, phase = data.draw(st.sampled_from([None, 7])), data.draw(st.sampled_from(["fixed", "epoch"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_module, "INDEX_BUDGET_BYTES", data.draw(st.sampled_from([0, 1 << 20])))
        patch.setattr(windows_module, "_CHUNK_BYTES", data.draw(st.sampled_from([1, 1 << 20])))
        options = data.draw(
            st.fixed_dictionaries({"engine": ENGINES, "verify": st.sampled_from(["always", "once", "off"])})
        )
        dataset = shardload.open(content.path, **options)
        view = dataset.select(ids) if ids != range(NUM_SAMPLES) else dataset.select([*ids])
        windows = shardload.TokenWindows(view, name, length, stride, shift, documents=True, phase=phase)
        assert windows.num_items == len(mine.items[name])
        if windows.num_items < length + shift:
            assert len(windows) == 0
            return
        some = st.lists(st.integers(0, windows.num_ids - 1), max_size=9).map(lambda ids: np.array(ids, dtype=np.int64))
        windows.will_need(np.arange(len(windows))[:5])
        check(mine, pickle.loads(pickle.dumps(windows)), data.draw(st.lists(some, min_size=1, max_size=3)))
        check(mine, windows.bare(), [np.arange(min(4, len(windows)))])


def test_views_of_documents_share_no_item(content: Content) -> None:
    """What a split is for: with views of windows a document would be on both sides."""
    dataset = shardload.open(content.path)
    sides = [shardload.TokenWindows(view, "tokens", 40, documents=["doc_id"]) for view in dataset.split(0.3, seed=1)]
    owners = [
        set(view.view.selection[np.unique(view.read_batch(np.arange(len(view))).columns["doc_id"].values)].tolist())
        for view in sides
    ]
    assert not owners[0] & owners[1] and min(map(len, owners)) > 20
    assert len({one.fingerprint for one in sides} | {shardload.TokenWindows(dataset, "tokens", 40).fingerprint}) == 3
    # All of a dataset is no view of it, and none of it has no windows.
    whole = shardload.TokenWindows(dataset[:], "tokens", 40)
    assert whole.fingerprint == shardload.TokenWindows(dataset, "tokens", 40).fingerprint
    none = shardload.TokenWindows(dataset[:0], "tokens", 40)
    assert len(none) == none.num_items == 0 and none.fingerprint != whole.fingerprint
    with pytest.raises(IndexError, match="has 0 items in all"):
        none[0]


def test_neighbours_in_a_document_of_a_view_are_read_one_by_one(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "_CHUNK_BYTES", 1)
    windows = shardload.TokenWindows(
        shardload.open(content.path).select([71, 3]), "tokens", 100, shift=0, documents=True
    )
    check(of_view(content, "tokens", [71, 3]), windows, [np.arange(20)])


def test_damage_in_a_view_names_window_and_sample(content: Content, tmp_path: Path) -> None:
    place, first, _ = flip(content, tmp_path / "d", 1)
    sample = int(content.owners["tokens"][first])
    windows = shardload.TokenWindows(
        shardload.open(tmp_path / "d", verify="once").select([3, sample]), "tokens", 9_000, 1
    )
    message = rf"{place}: the items of field 'tokens' in window 7 do not have their checksum \(sample {sample}\)"
    with pytest.raises(shardload.ChecksumError, match=message):
        windows[7]


ENGINES = st.sampled_from(["map", "pread"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tokens", "int64"),
        ("small", "int64"),
        ("late", "int64"),
        ("long", "uint64"),
        ("frames", "float32"),
        ("flags", "bool"),
    ],
)
def test_integers_come_as_int64_and_others_as_stored(content: Content, name: str, dtype: str) -> None:
    windows = shardload.TokenWindows(shardload.open(content.path), name, 5)
    sample = windows[len(windows) - 1]
    assert sample["input_ids"].dtype == sample["labels"].dtype == dtype
    batch = next(iter(shardload.ShardLoader(windows, 4, shuffle=False, num_replicas=1, rank=0)))
    want = torch.int64 if name == "long" else getattr(torch, dtype)
    assert batch["input_ids"].dtype == want and batch["labels"].shape == (4, 5, *windows.field.shape)
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    # In-place changes of labels, such as of those to be ignored, leave the input as it is.
    before = batch["input_ids"].clone()
    batch["labels"].zero_()
    assert torch.equal(batch["input_ids"], before)


@pytest.mark.parametrize("name", ["tokens", "small", "late", "long", "frames"])
def test_items_come_as_stored_to_who_asks_for_them_so(content: Content, name: str) -> None:
    """As for a device that widens them: alone, of a view, or of several that are joined."""
    windows = shardload.TokenWindows(shardload.open(content.path), name, 5, 3)
    wide = windows.stored_kinds.keys()
    assert (windows.stored_kinds == dict.fromkeys(["input_ids", "labels"], windows.field.kind)) == (
        name in "tokens small late"
    )
    ids = np.arange(len(windows))[::-1]
    for source, own in (
        (windows, ids),
        (windows.select(ids), ids[::-1]),
        (shardload.concat([windows.select([]), windows, windows.select([1])]), ids),
    ):
        assert source.stored_kinds == windows.stored_kinds
        fields = [replace(f, kind=source.stored_kinds.get(f.name, f.kind)) for f in windows.field_list]
        lent = np.empty((len(own), *fields[1].shape), fields[1].dtype)
        (read,) = source.read_batches([own], [{"labels": lent}], fields)
        assert read.columns["labels"].values is lent and read.columns["labels"].field.kind == windows.field.kind
        want = windows.read_batch(ids).columns
        for key in ("input_ids", "labels"):
            assert read.columns[key].values.dtype == windows.field.dtype
            np.testing.assert_array_equal(read.columns[key].values, want[key].values)
    other = shardload.TokenWindows(shardload.open(content.path), "small", 5)
    joined = shardload.concat([windows, other]) if wide else None
    assert joined is None or joined.stored_kinds == (windows.stored_kinds if name == "small" else {})


def test_indices(content: Content) -> None:
    dataset = shardload.open(content.path)
    fixed = shardload.TokenWindows(dataset, "tokens", 64)
    moved = shardload.TokenWindows(dataset, "tokens", 64, phase="epoch")
    for windows in (fixed, moved):
        np.testing.assert_array_equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
        with pytest.raises(IndexError, match=f"-{len(windows) + 1} is out of range: there are {len(windows)}"):
            windows[-len(windows) - 1]
        with pytest.raises(IndexError, match="out of range"):
            windows[windows.num_ids]
        assert sum(1 for _ in windows) == len(windows)
    # Ids from `len` on are those of other epochs.
    np.testing.assert_array_equal(moved[len(moved) * 5 + 2]["input_ids"], content.items["tokens"][64 * 2 + 5 :][:64])
    view = fixed.select([7, 3])
    np.testing.assert_array_equal(view[1]["input_ids"], fixed[3]["input_ids"])


def test_fingerprints_tell_windows_apart(content: Content) -> None:
    dataset = shardload.open(content.path)
    ways: list[dict[str, Any]] = [
        {"field": "tokens", "length": 64}, {"field": "small", "length": 64}, {"field": "tokens", "length": 65, "stride": 64},
        {"field": "tokens", "length": 64, "stride": 63}, {"field": "tokens", "length": 64, "shift": 0},
        {"field": "tokens", "length": 64, "phase": "epoch"},
    ]  # fmt: skip
    found = {shardload.TokenWindows(dataset, **way).fingerprint for way in ways}
    found.add(shardload.TokenWindows(shardload.open(content.path, version=1), "tokens", 64).fingerprint)
    assert len(found) == len(ways) + 1
    # What is given beside the items is no matter of a state, and a version of shardload must not lose the states of another.
    same = shardload.TokenWindows(dataset, "tokens", 64, stride=64, documents=True)
    assert same.fingerprint == shardload.TokenWindows(dataset, **ways[0]).fingerprint
    facts = f'{{"dataset":"{dataset.fingerprint}","field":"tokens","length":64,"phase":"fixed","shift":1,'
    text = f'{facts}"source":"token windows","stride":64,"version":1}}'
    assert same.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_a_pickle_is_a_description(content: Content) -> None:
    windows = shardload.TokenWindows(shardload.open(content.path), "tokens", 64, documents=True, phase="epoch")
    check(content, windows, [np.arange(30)])
    data = pickle.dumps(windows)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert not any(isinstance(value, np.ndarray) for value in vars(copy).values())
    check(content, copy, [np.arange(30) + len(windows)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "number"}, r"int64 is no ragged array of numbers: field 'number'.*: tokens \(uint16\[\*\]\), small"),
        ({"field": "words"}, r"there is no field 'words'; windows are cut from fields such as uint16\[\*\]: tokens"),
        ({"length": 0}, "length must be an integer from 1, not 0"),
        ({"stride": 0}, "stride must be an integer from 1, not 0"),
        ({"shift": -1}, "shift must be an integer from 0, not -1"),
        ({"phase": "batch"}, "phase must be 'fixed' or 'epoch', not 'batch'"),
        ({"documents": ["docs"]}, "documents must be True or names of doc_id, position_ids, cu_seqlens"),
        ({"documents": "doc_id"}, "documents must be True or names of"),
    ],
)
def test_wrong_arguments(content: Content, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shardload.TokenWindows(shardload.open(content.path), **{"field": "tokens", "length": 64} | options)


def fixed_windows(content: Content) -> shardload.TokenWindows:
    return shardload.TokenWindows(shardload.open(content.path), "tokens", 64)


def test_what_windows_are_not_cut_from(content: Content, tmp_path: Path) -> None:
    dataset = shardload.open(content.path)
    joined = shardload.concat([dataset, dataset])
    for other, kind in (
        (joined, "Concat"),
        (joined[3:9], "view of a Concat"),
        (fixed_windows(content), "TokenWindows"),
    ):
        with pytest.raises(TypeError, match=f"not of a {kind}: make windows of each, and join them"):
            shardload.TokenWindows(other, "tokens", 64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has a transform, which is for its samples"):
        shardload.TokenWindows(shardload.open(content.path, transform=dict), "tokens", 64)
    schema = {"tokens": {"type": "uint16[*]", "compression": "zstd"}}
    with shardload.ShardWriter(tmp_path / "d", schema, compression="zstd:3") as writer:
        writer.write({"tokens": np.arange(9, dtype=np.uint16)})
    with pytest.raises(
        ValueError, match=r'compressed with each sample.*write it with {"type": "uint16\[\*\]", "compression"'
    ):
        shardload.TokenWindows(shardload.open(tmp_path / "d"), "tokens", 4)


@pytest.mark.parametrize("num_samples", [0, 3])
def test_fewer_items_than_a_window_has(tmp_path: Path, num_samples: int) -> None:
    with shardload.ShardWriter(tmp_path / "d", {"tokens": "uint16[*]"}) as writer:
        for _ in range(num_samples):
            writer.write({"tokens": np.arange(3, dtype=np.uint16)})
    windows = shardload.TokenWindows(shardload.open(tmp_path / "d"), "tokens", 9, phase="epoch")
    message = rf"field 'tokens' has {3 * num_samples} items in all, and a window takes 10 \(length 9, shift 1\)"
    assert len(windows) == windows.num_ids == 0 and list(windows) == []
    with pytest.raises(IndexError, match=message):
        windows[0]
    for shuffle in (True, False):
        with pytest.raises(ValueError, match=message):
            shardload.ShardLoader(windows, 2, shuffle=shuffle)
    if num_samples:
        assert len(shardload.TokenWindows(shardload.open(tmp_path / "d"), "tokens", 8, phase="epoch")) == 1


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("verify", ["always", "once", "off"])
def test_a_window_costs_its_blocks_however_long_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any, verify: Any
) -> None:
    tokens = np.arange(1 << 19, dtype=np.uint32).astype(np.uint16)
    with shardload.ShardWriter(tmp_path / "d", {"tokens": "uint16[*]"}) as writer:
        writer.write({"tokens": tokens})
    dataset = shardload.open(tmp_path / "d", engine=engine, verify=verify)
    windows = shardload.TokenWindows(dataset, "tokens", 2048, documents=True)
    reader = dataset._process_access().engine
    read, real = [], reader.read
    monkeypatch.setattr(
        reader, "read", lambda ranges, targets: (read.append(int(ranges.lengths.sum())), real(ranges, targets))
    )
    for window in (0, 100, len(windows) - 1):
        read.clear()
        np.testing.assert_array_equal(windows[window]["labels"], tokens[window * 2048 + 1 :][:2048])
        # Window and label are 4,098 bytes in two blocks, with a checksum of 4 bytes each; those of stores come with the heads.
        checked = 2 * (layout.BLOCK_BYTES + (0 if dataset.engine_name == "ranges" else 4))
        # Blocks that stay in memory once they were checked are copied no further than a later window needs.
        expected = {"off": 4098, "always": checked, "once": checked + 4098 * (dataset.engine_name == "map")}
        assert sum(read) == expected[verify]
        if verify == "once":
            read.clear()
            assert len(windows[window]["labels"]) == 2048 and sum(read) == 4098


@pytest.mark.parametrize("verify", ["always", "once", "off"])
@pytest.mark.parametrize("engine", ["map", "pread"])
def test_damage_that_comes_later_is_found_by_who_always_looks(
    content: Content, tmp_path: Path, engine: Any, verify: Any
) -> None:
    shutil.copytree(content.path, tmp_path / "d")
    windows = shardload.TokenWindows(shardload.open(tmp_path / "d", engine=engine, verify=verify), "tokens", 300)
    for _ in range(2):
        check(content, windows, [np.arange(len(windows))])
    place, first, _ = flip(content, tmp_path / "d", 1)
    if verify != "always":
        windows[first // 300]
        return
    with pytest.raises(shardload.ChecksumError, match=place):
        windows[first // 300]


def flip(content: Content, path: Path, block: int) -> tuple[str, int, int]:
    """Flips a bit of a copy of the dataset, made if need be; returns shard and block as in messages, and the block's first item."""
    shutil.copytree(content.path, path, dirs_exist_ok=True)
    dataset = shardload.open(path)
    counts = dataset.table.entries["num_items"][:, 0]
    # The largest has one sample, the next one several in one block.
    shard_id = int(np.argsort(counts)[-1 if block else -2])
    shard = dataset._process_access().shard(shard_id)
    section = shard.head.section(layout.SECTION_STREAM, 0)
    low = section.start + block * layout.BLOCK_BYTES
    with open(path / shard.entry.name, "r+b") as file:
        file.seek(low + 100)
        byte = file.read(1)[0]
        file.seek(low + 100)
        file.write(bytes([byte ^ 16]))
    high = min(low + layout.BLOCK_BYTES, section.stop)
    first = int(counts[:shard_id].sum()) + block * layout.BLOCK_BYTES // 2
    return f"{shard.entry.name} is damaged at bytes {low} to {high}", first, first + (high - low) // 2


@pytest.mark.parametrize(("engine", "block"), [("map", 0), ("map", 1), ("pread", 0)])
def test_a_damaged_block_is_named_with_window_and_sample(
    content: Content, tmp_path: Path, engine: Any, block: int
) -> None:
    place, first, stop = flip(content, tmp_path / "d", block)
    dataset = shardload.open(tmp_path / "d", engine=engine, verify="once")
    windows = shardload.TokenWindows(dataset, "tokens", 300, documents=["doc_id"])
    owners = content.owners["tokens"]
    assert block or len(set(owners[first:stop].tolist())) > 3
    for _ in range(2):
        for window in range(len(windows)):
            start = window * 300
            if start + 301 <= first or start >= stop:
                np.testing.assert_array_equal(
                    windows[window]["input_ids"], content.items["tokens"][start : start + 300]
                )
                continue
            message = (
                f"{place}: the items of field 'tokens' in window {window} do not have their checksum "
                rf"\(sample {owners[max(start, first)]}\)"
            )
            with pytest.raises(shardload.ChecksumError, match=message) as caught:
                windows[window]
            assert caught.value.sample_id == owners[max(start, first)] and caught.value.dataset == str(tmp_path / "d")
    with pytest.raises(shardload.ChecksumError, match=f"in window {max(0, -(-(first - 300) // 300))} do not"):
        windows.__getitems__(list(range(len(windows)))[::-1])
    # Piece by piece it is the window that the piece is for.
    last = min((stop - 1) // 300, len(windows) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", 1)
        message = rf"in window {last} do not have their checksum \(sample {owners[max(last * 300, first)]}\)"
        with pytest.raises(shardload.ChecksumError, match=message):
            windows.__getitems__(list(range(len(windows)))[::-1])
    # Where nothing is compared, nothing is found.
    shardload.TokenWindows(shardload.open(tmp_path / "d", verify="off"), "tokens", 300)[first // 300]


def test_what_was_right_is_looked_at_once(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = shardload.TokenWindows(shardload.open(content.path, engine="map", verify="once"), "tokens", 700, 350)
    engine, read = windows.dataset._process_access().engine, []
    real = engine.read
    monkeypatch.setattr(engine, "read", lambda ranges, targets: (read.append(ranges), real(ranges, targets)))
    for order in (np.arange(len(windows)), np.random.default_rng(0).permutation(len(windows))):
        read.clear()
        check(content, windows, [order[:9], order[9:]])
        blocks = sum(int((ranges.lengths == 4).sum()) for ranges in read)
        assert blocks == (0 if order[0] else len({b for r in read for b in block_numbers(windows, r)}))


def block_numbers(windows: shardload.TokenWindows, ranges: Any) -> set[tuple[int, int]]:
    """Returns the blocks that ranges of a stream lie in, as (shard, number)."""
    starts = windows.dataset._process_access()._facts.streams(0).starts
    found = set()
    for shard_id, start, length in zip(
        ranges.shard_ids.tolist(), ranges.starts.tolist(), ranges.lengths.tolist(), strict=True
    ):
        low = start - int(starts[shard_id])
        if length > 4:
            found |= {(shard_id, b) for b in range(low // layout.BLOCK_BYTES, -(-(low + length) // layout.BLOCK_BYTES))}
    return found


@pytest.mark.parametrize(
    "span_of",
    [
        lambda span: (0, 100),
        lambda span: (span[0] - (span[0] > 0), span[1]),
        lambda span: (span[0], 99),
        lambda span: (1900 - span[0], 100),
        lambda span: ((1 << 64) - 50 if span[0] == 500 else span[0], 100),
        lambda span: (span[0], (1 << 32) - 1 if span[0] == 500 else 100),
    ],
    ids=["same", "by one", "too few", "falling", "wrapping", "4 GiB"],
)
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_rows_that_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span_of: Any, budget: int
) -> None:
    """Right digests over rows that no writer of ours makes."""
    dataset = write(tmp_path / "d", monkeypatch, span_of)
    monkeypatch.setattr(access_module, "INDEX_BUDGET_BYTES", budget)
    plain = shardload.TokenWindows(dataset, "t", 64)
    # Items alone need no rows, but for those of views.
    assert [plain[window]["input_ids"][0] for window in range(len(plain))] == [at // 100 for at in range(0, 1936, 64)]
    view = shardload.TokenWindows(dataset.select(np.arange(19)), "t", 64)
    some = np.arange(min(29, len(view)))
    if span_of((500, 100)) == (500, 99):
        # A gap that no sample has: without it the items are what the rows say.
        values = view.read_batch(some).columns["input_ids"].values
        assert values.reshape(-1)[::99].tolist() == list(range(19))
    else:
        with pytest.raises(shardload.FormatError, match=r"00000.shard is damaged: .*, which cannot be \(sample \d+\)"):
            view.read_batch(some)
    windows = shardload.TokenWindows(dataset, "t", 64, documents=True)
    with pytest.raises(
        shardload.FormatError, match=r"00000.shard is damaged: the items of field 't' do not follow each other"
    ):
        windows.read_batch(np.arange(len(windows)))


def test_a_table_that_promises_too_much_is_refused(content: Content) -> None:
    dataset = shardload.open(content.path)
    entries = dataset.table.entries.copy()
    entries["num_items"][2, 0] = 1 << 63
    object.__setattr__(dataset.table, "entries", entries)
    with pytest.raises(
        shardload.FormatError,
        match=r"the shard table gives .*0002-000000-00000.shard more items of 'tokens' than it has",
    ):
        len(shardload.TokenWindows(dataset, "tokens", 64))


def test_hints_are_given_once_where_the_dataset_stays_in_memory(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shardload.open(content.path, engine="pread")
    windows = shardload.TokenWindows(dataset, "tokens", 100, 50)
    access = dataset._process_access()
    hinted: list[int] = []
    monkeypatch.setattr(access.engine, "will_need", lambda ranges: hinted.append(int(ranges.lengths.sum())))
    ids = np.arange(len(windows))
    for _ in range(2):
        windows.will_need(ids[:20])
        windows.read_batch(ids)
    once = sum(hinted)
    assert hinted[0] == 20 * 101 * 2 and len(hinted) == 2
    access._fits = False
    windows.will_need(ids)
    assert once < hinted[-1] == len(ids) * 101 * 2
    windows.will_need(ids, [windows.schema["labels"]])
    count = len(hinted)
    shardload.TokenWindows(dataset, "tokens", 100, documents=True).will_need(ids, [])
    windows.will_need_rows(ids)
    assert len(hinted) == count


def test_rows_by_page_look_at_few_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3, 1, 30_000).astype(int)
    with shardload.ShardWriter(tmp_path / "d", {"t": "uint8[*]"}) as writer:
        for i, length in enumerate(lengths.tolist()):
            writer.write({"t": np.full(length, i % 256, np.uint8)})
    monkeypatch.setattr(access_module, "INDEX_BUDGET_BYTES", 0)
    windows = shardload.TokenWindows(shardload.open(tmp_path / "d"), "t", 64, documents=["doc_id"])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    dataset = windows.dataset
    taken: list[int] = []
    take = RowPages.take
    monkeypatch.setattr(
        RowPages, "take", lambda self, numbers, *rest: (taken.extend(numbers.tolist()), take(self, numbers, *rest))[1]
    )
    pages = []
    for window in rng.integers(0, len(windows), 40).tolist():
        taken.clear()
        np.testing.assert_array_equal(windows[window]["doc_id"], owners[window * 64 :][:64])
        assert taken
        pages.append(len(set(taken)))
    assert row_layout(dataset.schema).num_pages(30_000) > 20 and np.mean(pages) < 4


def test_document_fields_named_by_an_iterator(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"t": "uint16[*]"}) as writer:
        writer.write({"t": np.arange(9, dtype=np.uint16)})
    windows = shardload.TokenWindows(shardload.open(tmp_path / "d"), "t", 4, documents=iter(["cu_seqlens", "doc_id"]))
    assert windows.documents == ("doc_id", "cu_seqlens") and {"doc_id", "cu_seqlens"} <= windows[0].keys()
