"""Megatron pairs, written here by numpy from the layout that is public."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.errors import PackError
from shardload.importers import Reject, megatron, megatron_index, named_by_index, open_source
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_pair(prefix: Path, documents: Sequence[Sequence[np.ndarray]], dtype: str) -> None:
    """Writes documents, each of which is a row of sequences."""
    sequences = [np.asarray(sequence, dtype) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    places = np.zeros(len(sequences), dtype=np.int64)
    if len(sequences):
        places[1:] = np.cumsum(lengths[:-1].astype(np.int64) * np.dtype(dtype).itemsize)
    bounds = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    with open(f"{prefix}.bin", "wb") as file:
        for sequence in sequences:
            file.write(sequence.tobytes(order="C"))
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00")
        file.write(np.uint64(1).tobytes())
        file.write(np.uint8(CODES[dtype]).tobytes())
        file.write(np.uint64(len(lengths)).tobytes())
        file.write(np.uint64(len(bounds)).tobytes())
        file.write(lengths.tobytes() + places.tobytes() + bounds.tobytes())


def numbered(lengths: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
    """Returns documents of sequences of these lengths, whose tokens count up over all."""
    total = iter(range(10**9))
    return [[np.array([next(total) % 120 for _ in range(length)]) for length in document] for document in lengths]


def read_all(*paths: str, types=None, unit_size=None, token_field="", include=()):
    plan = open_source(named_by_index(paths), include, (), None, token_field).plan(types, unit_size)
    reader = pickle.loads(pickle.dumps(plan.reader))
    return plan, [list(reader.read(unit)) for unit in plan.units]


DOCUMENTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(DOCUMENTS, st.sampled_from(sorted(CODES)), st.integers(1, 60), st.sampled_from([1, 2, 1 << 12]))
def test_each_document_is_a_sample_of_one_unit(
    tmp_path, monkeypatch, lengths, dtype: str, unit_size: int, at_once: int
) -> None:
    documents = numbered(lengths)
    write_pair(tmp_path / "a", documents, dtype)
    monkeypatch.setattr(megatron, "_READ_DOCUMENTS", at_once)
    monkeypatch.setattr(megatron_index, "_CHECKED_ENTRIES", at_once)
    plan, units = read_all(f"{tmp_path}/a.idx", unit_size=unit_size)
    assert plan.types == {"tokens": f"{dtype}[*]"}
    assert len(plan.units) >= os.path.getsize(tmp_path / "a.bin") // unit_size
    samples = [sample for unit in units for sample in unit]
    for number, (sample, document) in enumerate(zip(samples, documents, strict=True)):
        expected = np.concatenate([np.empty(0, dtype), *document]).astype(dtype)
        assert sample.values["tokens"].dtype == np.dtype(dtype)
        assert sample.values["tokens"].tolist() == expected.tolist()
        assert sample.place == f"{tmp_path}/a.bin document {number}" and sample.num_bytes == expected.nbytes


def test_a_pair_has_many_names(tmp_path: Path, monkeypatch) -> None:
    for name in ("a_text_document", "b.x"):
        write_pair(tmp_path / name, numbered([[3], [0], [2, 1]]), "uint16")
    monkeypatch.chdir(tmp_path)
    for names in (["a_text_document"], ["a_text_document.bin"], ["a_text_document.idx", "a_text_document.bin"]):
        assert named_by_index(names) == ["a_text_document.idx"]
        assert [len(unit) for unit in read_all(*names)[1]] == [3]
    assert named_by_index(["b.x", "a_text_document"]) == ["b.x.idx", "a_text_document.idx"]
    with pytest.raises(PackError, match="the same file is given twice"):
        read_all("b.x", "b.x")
    plan, units = read_all(str(tmp_path))
    assert len(units[0]) == 6 and plan.note == "uint16 of 2 Megatron pairs"
    Path("README").touch()
    Path("c.bin").touch()
    message = (
        "holds 2 Megatron pairs and 2 others (such as README): choose with include patterns, such as --include '*.idx'"
    )
    with pytest.raises(PackError, match=re.escape(message)):
        read_all(str(tmp_path))
    assert len(read_all(str(tmp_path), include=["[ab]*"])[1][0]) == 6
    with pytest.raises(
        PackError,
        match=r"a_text_document\.idx is a Megatron index, but a_text_document\.bin is not there or was not selected",
    ):
        read_all(str(tmp_path), include=["*.idx"])
    os.unlink("b.x.bin")
    with pytest.raises(PackError, match=r"b\.x\.bin does not exist"):
        read_all("b.x.idx")


def test_other_files_of_these_suffixes_are_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"anything")
    (tmp_path / "a.idx").write_bytes(b"TNTIDX\x00\x00")
    assert open_source([str(tmp_path)]).plan(None, None).types == {"data": "bytes", "path": "str"}
    assert named_by_index([f"{tmp_path}/a.bin", f"{tmp_path}/nothing"]) == [f"{tmp_path}/a.bin", f"{tmp_path}/nothing"]


def test_types_given(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", [[[1, 65_535]], [[65_536]], [[-1]]], "int32")
    write_pair(tmp_path / "b", [[[5]]], "uint16")
    _, units = read_all(f"{tmp_path}/a", types={"ids": "uint16[*]", "note": "str?"}, token_field="ids")
    good, *bad = units[0]
    assert good.values["ids"].dtype == np.uint16 and good.values["ids"].tolist() == [1, 65_535]
    assert [item.message for item in bad] == [
        f"{tmp_path}/a.bin document 1 holds the token 65536, which the field's uint16 cannot",
        f"{tmp_path}/a.bin document 2 holds the token -1, which the field's uint16 cannot",
    ]
    with pytest.raises(
        PackError, match=r"a\.idx holds int32 and .*b\.idx uint16: give a type for both, such as --schema"
    ):
        read_all(str(tmp_path))
    _, units = read_all(str(tmp_path), types={"tokens": "int64[*]"})
    assert [sample.values["tokens"].tolist() for sample in units[0]] == [[1, 65_535], [65_536], [-1], [5]]
    for types, message in (
        ({"ids": "int32[*]"}, "the schema names ids, but no field 'tokens' for the tokens"),
        (
            {"tokens": "int32[*]", "path": "str"},
            "it gives tokens only, so that field 'path' must be str? or be left out",
        ),
        ({"tokens": "int32"}, "field 'tokens' takes tokens and cannot be int32, but int32[*]"),
        ({"tokens": "float32[*]"}, "field 'tokens' takes tokens and cannot be float32[*], but int32[*]"),
    ):
        with pytest.raises(PackError, match=re.escape(message)):
            read_all(f"{tmp_path}/a", types=types)


def patched(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


# Header of 34 bytes, then 3 lengths (i32), 3 places (i64) and 3 bounds (i64).
DAMAGES = {
    "magic": ("idx", lambda p: patched(p, 0, b"TNTIDX\x00\x00\x01"), "is not a source"),
    "header": ("idx", lambda p: p.write_bytes(p.read_bytes()[:20]), "a.idx is no sound Megatron index: it has 20 bytes"),
    "version": ("idx", lambda p: patched(p, 9, b"\x02"), "a.idx is a Megatron index of version 2; version 1 is read"),
    "float": ("idx", lambda p: patched(p, 17, b"\x07"), "a.idx has the dtype code 7, which is none of tokens; those are 1 (uint8)"),
    "negative": ("idx", lambda p: patched(p, 17, b"\xff"), "a.idx has the dtype code 255, which is none of tokens"),
    "count": ("idx", lambda p: patched(p, 18, b"\xff" * 8), "a.idx was cut short: 18446744073709551615 sequences"),
    "cut": ("idx", lambda p: p.write_bytes(p.read_bytes()[:-1]), "a.idx was cut short: 3 sequences and 3 bounds of documents take"),
    "long": ("idx", lambda p: p.write_bytes(p.read_bytes() + b"\x00"), "a.idx is too long: 3 sequences"),
    "modes": ("idx", lambda p: p.write_bytes(p.read_bytes() + bytes(3)), "a.idx holds modes of sequences, as those of multimodal"),
    "length": ("idx", lambda p: patched(p, 38, b"\xff" * 4), "sequence 1 has the length -1"),
    "shift": ("idx", lambda p: patched(p, 38, b"\x03"), "sequence 2 starts at byte 16, but the one before it ends at byte 20"),
    "place": ("idx", lambda p: patched(p, 46, b"\x04"), "sequence 0 starts at byte 4, but the one before it ends at byte 0"),
    "first": ("idx", lambda p: patched(p, 70, b"\x01"), "the first document starts with sequence 1"),
    "back": ("idx", lambda p: patched(p, 78, b"\x04"), "document 1 ends before it starts"),
    "last": ("idx", lambda p: patched(p, 86, b"\x02"), "its documents end at sequence 2 of 3"),
    "short": ("bin", lambda p: p.write_bytes(p.read_bytes()[:-4]), "accounts for 20 bytes, but {}/a.bin has 16: one of them"),
    "more": ("bin", lambda p: p.write_bytes(bytes(24)), "accounts for 20 bytes, but {}/a.bin has 24: one of them was cut"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_pairs_that_are_not_sound_are_named(tmp_path: Path, name: str) -> None:
    suffix, damage, message = DAMAGES[name]
    write_pair(tmp_path / "a", [[[1, 2], [3, 4]], [[5]]], "int32")
    assert os.path.getsize(tmp_path / "a.idx") == 34 + 3 * 12 + 3 * 8
    damage(tmp_path / f"a.{suffix}")
    with pytest.raises(PackError, match=re.escape(message.format(tmp_path))):
        pack(f"{tmp_path}/a.idx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.integers(1, 30))
def test_any_change_of_an_index_is_an_error_or_loses_nothing(tmp_path: Path, changes, unit_size: int) -> None:
    write_pair(tmp_path / "a", [[[1, 2], [3, 4]], [], [[5]], [[6, 7, 8]], [[]]], "int32")
    index, content = tmp_path / "a.idx", (tmp_path / "a.bin").read_bytes()
    for at, value in changes:
        patched(index, at % index.stat().st_size, bytes([value]))
    try:
        source = open_source([f"{tmp_path}/a.idx"])
        plan = source.plan(None, unit_size)
    except PackError as error:
        assert "a.idx" in str(error)
        return
    read = [sample.values["tokens"].tobytes() for unit in plan.units for sample in plan.reader.read(unit)]
    assert b"".join(read) == content


def test_no_bounds(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", [], "int32")
    assert read_all(f"{tmp_path}/a")[1] == [[]]
    patched(tmp_path / "a.idx", 26, b"\x00")
    os.truncate(tmp_path / "a.idx", 34)
    with pytest.raises(PackError, match="it has no bounds of documents"):
        read_all(f"{tmp_path}/a")


def test_files_that_change_meanwhile(tmp_path: Path, monkeypatch) -> None:
    write_pair(tmp_path / "a", [[[1, 2]], [[3]]], "int32")
    monkeypatch.chdir(tmp_path)
    plan, _ = read_all("a")
    os.utime("a.idx", (1, 1))
    with pytest.raises(PackError, match=r"a\.idx changed while it was being packed"):
        list(plan.reader.read(plan.units[0]))
    monkeypatch.setattr(megatron.layout, "MAX_RECORD_BYTES", 7)
    _, ((first, second),) = read_all("a")
    assert isinstance(first, Reject) and first.message == "a.bin document 0 has 8 bytes; a sample holds less than 4 GiB"
    assert second.values["tokens"].tolist() == [3]


def test_packed_alike_by_any_number_of_workers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [[rng.integers(0, 50_000, length)] for length in rng.integers(0, 400, 500)]
    write_pair(tmp_path / "a", documents, "uint16")
    write_pair(tmp_path / "b", documents[:100], "uint16")
    sources = [tmp_path / "a.idx", tmp_path / "a.bin", tmp_path / "b"]
    fingerprints = set()
    for workers in (1, 4):
        summary = pack(sources, tmp_path / f"{workers}", workers=workers, unit_size=30_000, shard_size="40KiB")
        fingerprints.add(summary.fingerprint)
    assert len(fingerprints) == 1 and summary.num_units >= 6
    dataset = shardload.open(tmp_path / "4")
    assert dataset.schema["tokens"].streamed and summary.num_tokens == dataset.lengths("tokens").sum()
    expected = [document[0].tolist() for document in [*documents, *documents[:100]]]
    assert [sample["tokens"].tolist() for sample in dataset] == expected
    with pytest.raises(PackError, match="holds tokens already: leave out the tokenizer"):
        pack(sources, tmp_path / "out", tokenizer="bytes")
    write_pair(tmp_path / "b", [[document[0] for document in documents[:100]]], "uint16")
    with pytest.raises(PackError, match="exists and holds a dataset"):
        # The same bytes of tokens, but other documents: not the pack that is complete there.
        pack(sources, tmp_path / "4", workers=1, unit_size=30_000, shard_size="40KiB", resume=True)
