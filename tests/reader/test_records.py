"""Values that lie in one record with others, framed or not, read in one piece or in several, from several generations."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uncompiled import leave_out_compiled_part

import shardload
from shardload.codecs import zstd
from shardload.reader import records
from shardload.reader.strings import ByteStrings, Texts

NUM_SAMPLES, NUM_OLD = 240, 90
SCHEMA = {"image": "jpeg", "text": "str", "facts": "json", "tags": "str[*]", "data": "bytes?"}


def sample_of(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "image": b"\xff\xd8\xff" + rng.bytes(i % 70),
        # Each fifth is shorter than a frame of it; some are not ASCII.
        "text": "" if i % 5 == 0 else f"sample {i} " * (i % 60) + "é" * (i % 7 == 0),
        "facts": {"number": i},
        "tags": [str(i)] * (i % 4),
        "data": None if i % 3 == 0 else rng.bytes(i % 50) + bytes(i % 90),
        "more": None if i < NUM_OLD or i % 4 == 0 else f"more {i} " * 20,
    }


@pytest.fixture(scope="module", params=["none", "zstd:3"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, of which the first lacks a field. Read only."""
    path = tmp_path_factory.mktemp("records") / "d"
    with shardload.ShardWriter(path, SCHEMA, compression=request.param, shard_size="8KiB", dictionary="off") as writer:
        for i in range(NUM_OLD):
            writer.write({name: value for name, value in sample_of(i).items() if name != "more"})
    with shardload.ShardWriter(path, SCHEMA | {"more": "str?"}, append=True, shard_size="8KiB") as writer:
        for i in range(NUM_OLD, NUM_SAMPLES):
            writer.write(sample_of(i))
    return path


FIELDS = [None, ["text"], ["image"], ["data", "image"], ["more"], ["tags", "text"]]


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=60) | st.lists(st.integers(0, NUM_OLD - 1), max_size=60),
    fields=st.sampled_from(FIELDS),
    piece=st.sampled_from([1, 500, 3000, 1 << 24]),
    engine=st.sampled_from(["map", "pread"]),
    verify=st.sampled_from(["always", "once", "off"]),
    direct=st.sampled_from([0, 1 << 14]),
)
@example(ids=list(range(NUM_SAMPLES)), fields=None, piece=1 << 24, engine="map", verify="always", direct=1 << 14)
@example(ids=list(range(NUM_SAMPLES)), fields=None, piece=1 << 24, engine="map", verify="once", direct=1 << 14)
def test_values(
    mixed: Path, ids: list[int], fields: list[str] | None, piece: int, engine: Any, verify: Any, direct: int
) -> None:
    """Copied or read where they lie, and then checked there or checked before."""
    dataset = shardload.open(mixed, fields=fields, engine=engine, verify=verify)
    wanted = [{name: sample_of(i)[name] for name in dataset.schema if fields is None or name in fields} for i in ids]
    if ids:
        dataset.will_need(np.array(ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "PIECE_BYTES", piece)
        patch.setattr(records, "_DIRECT_BYTES", direct)
        patch.setattr(zstd, "_FRAMES_A_CALL", 7)
        batches = [dataset.__getitems__(ids) for _ in range(2)]
    for batch in batches:
        assert list(batch) == wanted
        assert list(pickle.loads(pickle.dumps(batch))) == wanted
        for name in wanted[0] if wanted else ():
            assert batch.values_of(name) == [sample[name] for sample in wanted]
            assert batch[:3] == wanted[:3]


def test_frames_of_a_generation_are_decompressed_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order samples of several are asked for."""
    values = [f"sample {i} " * 20 for i in range(120)]
    for first in range(0, 120, 40):
        with shardload.ShardWriter(tmp_path / "d", {"text": "str"}, compression="zstd:3", append=first > 0) as writer:
            for i in range(first, first + 40):
                writer.write({"text": values[i]})
    dataset, calls = shardload.open(tmp_path / "d", engine="map", verify="once"), []
    dataset.will_need(np.arange(120))
    real = zstd.ZstdCodec.decompress_many
    monkeypatch.setattr(zstd.ZstdCodec, "decompress_many", lambda *given: calls.append(len(given[2])) or real(*given))
    ids = np.random.default_rng(0).permutation(120)
    for num_calls in (3, 6):
        assert dataset.__getitems__(ids).values_of("text") == [values[i] for i in ids]
        assert calls == [40] * num_calls


LONE = {"text": "str", "data": "bytes"}


def lone_value(kind: str, i: int) -> Any:
    """Texts of which each third has more than ASCII, some at their end only; byte strings; each seventh is empty."""
    text = "" if i % 7 == 0 else f"sample {i} " * (i % 40 + 1) + "é€" * (i % 3 == 0)
    return text if kind == "text" else text.encode()[::-1]


def lone_bytes(kind: str, i: int) -> bytes:
    value = lone_value(kind, i)
    return value.encode() if kind == "text" else value


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of one such field by kind. Read only."""
    folder = tmp_path_factory.mktemp("lone")
    for kind, type_text in LONE.items():
        with shardload.ShardWriter(folder / kind, {kind: type_text}, compression="none") as writer:
            for i in range(100):
                writer.write({kind: lone_value(kind, i)})
    return {kind: folder / kind for kind in LONE}


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 99), min_size=1, max_size=60),
    before=st.lists(st.integers(0, 99), max_size=60),
    direct=st.sampled_from([0, 1 << 14]),
    piece=st.sampled_from([500, 1 << 24]),
)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", LONE)
def test_values_of_a_lone_field_are_checked_as_they_are_copied(
    lone: dict[str, Path], kind: str, compiled: bool, ids: list[int], before: list[int], direct: int, piece: int
) -> None:
    """All of them, some or none, if others were read before."""
    dataset, wanted = shardload.open(lone[kind], engine="map", verify="once"), [lone_value(kind, i) for i in ids]
    dataset.will_need(np.arange(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "PIECE_BYTES", piece)
        patch.setattr(records, "_DIRECT_BYTES", direct)
        if not compiled:
            leave_out_compiled_part(patch)
        if before:
            dataset.__getitems__(before)
        batch = dataset.__getitems__(ids)
        assert batch.values_of(kind) == wanted and [sample[kind] for sample in batch] == wanted
        assert dataset.lengths(kind, np.array(ids)).tolist() == [len(lone_bytes(kind, i)) for i in ids]
        assert not dataset._process_access()._records._checked.missing(np.array(ids + before)).any()


@pytest.mark.parametrize("kind", LONE)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_byte_that_changed_is_found_where_the_value_lies(
    lone: dict[str, Path], tmp_path: Path, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d"
    shutil.copytree(lone[kind], path)
    number = 57
    with open(path / shardload.open(path).table[0].name, "r+b") as file:
        value = lone_bytes(kind, number)
        start = file.read().index(value)
        file.seek(start + (0 if place == "first" else len(value) - 1))
        file.write(b"!")
    dataset, found = shardload.open(path, engine="map", verify="once"), []
    real = records.RecordReader._values_in_place
    monkeypatch.setattr(
        records.RecordReader, "_values_in_place", lambda *given: found.append(real(*given)) or found[-1]
    )
    dataset.will_need(np.arange(100))
    for _ in range(2):
        with pytest.raises(
            shardload.ChecksumError, match=rf"the record does not have its checksum \(sample {number}\)"
        ):
            dataset.__getitems__(list(range(100)))
    assert set(found) == ({None} if records.SUMS else set())
    others = [i for i in range(100) if i != number]
    assert dataset.__getitems__(others).values_of(kind) == [lone_value(kind, i) for i in others]
    assert dataset._process_access()._records._checked.missing(np.arange(100)).tolist() == [
        i == number for i in range(100)
    ]


def test_byte_strings() -> None:
    values = [b"", b"one", "zwei ü".encode(), b"three"]
    for strings in (
        ByteStrings.of(values),
        ByteStrings([b"onethree", "zwei ü".encode()], *np.array([[0, 0, 1, 0], [8, 0, 0, 3], [8, 3, 7, 8]])),
    ):
        assert len(strings) == 4 and list(strings) == strings.tolist() == values
        assert [strings[i] for i in range(-4, 4)] == values * 2
        assert strings[1:3].tolist() == values[1:3] and strings[np.array([3, 0, 3])].tolist() == [
            b"three",
            b"",
            b"three",
        ]
        assert strings.texts() == [value.decode() for value in values]
        assert values[1] in strings and b"four" not in strings
        with pytest.raises(IndexError):
            strings[4]
    with pytest.raises(UnicodeDecodeError):
        ByteStrings.of([b"good", b"\xff"]).texts()


def test_texts() -> None:
    """They are text when all are asked for as text or one by one, and bytes when all are asked for as such."""
    values = ["", "one", "zwei ü", "three"]
    stored = [value.encode() for value in values]
    texts = Texts.of(values, np.array([len(value) for value in stored]))
    both = ByteStrings.joined([texts, ByteStrings.of(stored)])
    assert list(texts) == texts.tolist() == stored and texts.texts() == values
    assert [texts[i] for i in range(4)] == values and texts.lengths().tolist() == [0, 3, 7, 5]
    for part, wanted in ((slice(1, 3), values[1:3]), (np.array([3, 0, 3]), ["three", "", "three"])):
        assert texts[part].texts() == texts[part][:].texts() == texts[part].copied().texts() == wanted
        assert texts[part].tolist() == [value.encode() for value in wanted]
    assert ByteStrings.joined([texts, texts[1:3]]).texts() == values + values[1:3]
    assert isinstance(ByteStrings.joined([texts, texts]), Texts)
    assert not isinstance(both, Texts) and both.tolist() == stored * 2 and both.texts() == values * 2
    assert isinstance(ByteStrings.of(stored).copied(as_text=True), Texts)
    assert not isinstance(ByteStrings.of([b"\xff"]).copied(as_text=True), Texts)
