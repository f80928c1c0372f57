"""Version 1 of the format is read for ever: the files in `golden/`, made by `golden.py` once, hold what they held then."""

from __future__ import annotations

import base64
import itertools
import json
import math
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import golden
import numpy as np
import plain_reader
import pytest
import strict_reader
from forge import Forge, canonical
from golden import GOLDEN
from range_server import RangeServer

import shardload
from shardload.codecs.zstd import library_version
from shardload.format.manifest import Writer
from shardload.reader import access
from shardload.reader.verify import verify_dataset
from shardload.writer import describe
from shardload.writer.rebuild import rebuild_index

NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden datasets, unpacked. Read only."""
    root = tmp_path_factory.mktemp("golden")
    for name in NAMES:
        with zipfile.ZipFile(GOLDEN / f"{name}.zip") as archive:
            archive.extractall(root / name)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RangeServer]:
    with RangeServer(root) as server:
        yield server


def facts_of(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return facts


def read_value(one: Any) -> Any:
    """A value from its neutral form: bfloat16 as the float32 whose upper half it is."""
    if one is None or isinstance(one, str):
        return one
    if "json" in one:
        return json.dumps(one["json"])
    if "list" in one:
        return [read_value(item) for item in one["list"]]
    text = one["bytes"]
    data = zlib.decompress(base64.b64decode(text[1:])) if text.startswith("~") else bytes.fromhex(text)
    if "kind" not in one:
        return data
    dtype = np.dtype({"bfloat16": "u2"}.get(one["kind"], one["kind"])).newbyteorder("<")
    array = np.frombuffer(data, dtype).reshape(one["shape"])
    return (array.astype("u4") << 16).view("f4") if one["kind"] == "bfloat16" else array


def expected(name: str) -> list[dict[str, Any]]:
    """The samples that a golden dataset has."""
    facts, columns = facts_of(name), {}
    for field, column in facts["columns"].items():
        if isinstance(column, dict):
            missing = set(column["missing"])
            columns[field] = [None if i in missing else one for i, one in enumerate(read_value(column["all"]))]
        else:
            columns[field] = [read_value(one) for one in column]
    return [{field: columns[field][i] for field in columns} for i in range(facts["num_samples"])]


def bits(array: Any, dtype: Any) -> bytes:
    """The bytes of numbers, all NaN alike: what a NaN holds is not promised."""
    array = np.array(array, dtype)
    if dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array.tobytes()


def check(got: list[dict[str, Any]], want: list[dict[str, Any]], types: dict[str, str]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert list(one) == list(other) == list(types)
        for name, value in other.items():
            read = one[name]
            if types[name].startswith("json") and read is not None:
                assert json.dumps(read) == value
            elif isinstance(value, np.ndarray | np.generic):
                assert np.shape(read) == value.shape
                assert not value.shape or read.dtype == value.dtype
                assert bits(read, value.dtype) == bits(value, value.dtype), name
            else:
                assert type(read) is type(value) and read == value, name


@pytest.mark.parametrize("reader", [plain_reader, strict_reader])
@pytest.mark.parametrize("name", NAMES)
def test_readers_of_the_page(root: Path, name: str, reader: ModuleType) -> None:
    check(reader.read_dataset(root / name), expected(name), facts_of(name)["types"])


@pytest.mark.parametrize(("engine", "verify"), [("map", "always"), ("pread", "once"), ("map", "off")])
@pytest.mark.parametrize("name", NAMES)
def test_read(root: Path, name: str, engine: Any, verify: Any) -> None:
    facts, want = facts_of(name), expected(name)
    dataset = shardload.open(root / name, engine=engine, verify=verify)
    assert dataset.schema.types == facts["types"]
    assert (dataset.fingerprint, dataset.metadata) == (list(facts["fingerprints"].values())[-1], facts["metadata"])
    order = np.random.default_rng(0).permutation(len(want))
    check(list(dataset.__getitems__(order)), [want[i] for i in order], facts["types"])
    check([dataset[int(i)] for i in order[:20]], [want[i] for i in order[:20]], facts["types"])
    if facts["key"]:
        keys = [one[facts["key"]] for one in want]
        found = dataset.find_many([key if isinstance(key, str) else int(key) for key in keys])
        assert found.tolist() == list(range(len(want)))
    missing = {field: sum(one[field] is None for one in want) for field in facts["types"]}
    assert {field: one.num_missing for field, one in dataset.statistics().items()} == missing
    if verify == "always":
        assert verify_dataset(str(root / name), samples=True) == []


@pytest.mark.parametrize("budget", [0, 256 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_read_from_afar(server: RangeServer, name: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", budget)
    facts, want = facts_of(name), expected(name)
    dataset = shardload.open(f"{server.url}/{name}", fingerprint=list(facts["fingerprints"].values())[-1])
    assert dataset.engine_name == "ranges"
    order = np.random.default_rng(1).permutation(len(want))
    dataset.will_need(order[:10])
    check(list(dataset.__getitems__(order)), [want[i] for i in order], facts["types"])


@pytest.mark.parametrize("name", NAMES)
def test_earlier_versions(root: Path, name: str) -> None:
    facts, want = facts_of(name), expected(name)
    for version, fingerprint in facts["fingerprints"].items():
        dataset = shardload.open(root / name, version=int(version), fingerprint=fingerprint)
        types = dict(itertools.islice(facts["types"].items(), len(dataset.schema)))
        want_then = [{field: one[field] for field in types} for one in want[: len(dataset)]]
        check(list(dataset.__getitems__(range(len(dataset)))), want_then, types)


@pytest.mark.parametrize("name", NAMES)
def test_goes_on(root: Path, name: str, tmp_path: Path) -> None:
    """What is there stays as it was when a writer of today adds to it, and shards give back a lost manifest."""
    facts, want = facts_of(name), expected(name)
    path = shutil.copytree(root / name, tmp_path / name)
    if want:
        before = (path / "manifest.json").read_bytes()
        shutil.rmtree(path / "manifests")
        shutil.rmtree(path / "tables")
        (path / "manifest.json").unlink()
        rebuild_index(path)
        assert (path / "manifest.json").read_bytes() == before
    added: dict[str, Any] = dict.fromkeys(facts["types"])
    added |= {field: filling(text) for field, text in facts["types"].items() if not text.endswith("?")}
    schema = json.loads((path / "manifest.json").read_text())["manifest"]["schema"]
    types: dict[str, Any] = {one["name"]: {"type": one["type"], "compression": one["codec"]} for one in schema}
    with shardload.ShardWriter(path, types | {"more of it": "str?"}, append=True, compression="zstd:1") as writer:
        writer.write(added | {"more of it": "new"})
    dataset = shardload.open(path)
    types_now = facts["types"] | {"more of it": "str?"}
    check(list(dataset.__getitems__(range(len(want)))), [one | {"more of it": None} for one in want], types_now)
    assert dataset[len(want)]["more of it"] == "new"
    for reader in (plain_reader, strict_reader):
        assert len(reader.read_dataset(path)) == len(want) + 1


def filling(type_text: str) -> Any:
    """Some value of a type."""
    kind, _, shape = type_text.partition("[")
    if shape:
        sizes = [0 if size == "*" else int(size) for size in shape.rstrip("]").split(",")]
        dtype = {"bfloat16": "f4"}.get(kind, kind)
        return [] if kind in ("bytes", "str") else np.zeros(sizes, dtype)
    texts = {"str": "new", "json": [], "bool": False, "bytes": b"", "audio": b"", "video": b""}
    return texts.get(kind, golden.MAGICS.get(kind, 7))


@pytest.mark.parametrize("name", NAMES)
def test_the_writer_of_today_makes_the_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal input gives equal bytes; what zstd makes, if it is the same zstd."""
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as archive:
        then = {file.filename: archive.read(file) for file in archive.infolist()}
    generations = json.loads(then["manifest.json"])["manifest"]["generations"]
    versions = generations[0]["writer"]
    assert all(generation["writer"] == versions for generation in generations)
    if versions["zstd"] != library_version() and any(generation["codec"] != "none" for generation in generations):
        pytest.skip(f"written with zstd {versions['zstd']}, here is {library_version()}")
    # The versions stand in the manifest, whatever they are; the rest must not depend on those of numpy and of us.
    monkeypatch.setattr(describe, "Writer", lambda *_: Writer(**versions))
    now, facts = golden.make(name, tmp_path)
    assert facts == facts_of(name)
    assert now.keys() == then.keys()
    assert [file for file in now if now[file] != then[file]] == []


@pytest.mark.parametrize("name", ["generations", "nullable"])
def test_what_a_later_version_may_add_is_passed_over(root: Path, tmp_path: Path, name: str) -> None:
    """Optional flags, facts and files that nobody knows yet: section 12 of the page."""
    facts, want = facts_of(name), expected(name)
    forged = Forge.copy(root / name, tmp_path / name)
    fact = {"later": ["things", 1, True]}
    forged.manifest["metadata"] |= fact
    newest = forged.manifest["generations"][-1]["generation"]
    for shard in forged.shards:
        shard.header[16:20] = struct.pack("<I", 0x80000003)
        if shard.identity[0] == newest:
            section = shard.section(11)
            described = json.loads(section.data)
            section.data = bytearray(canonical(described | {"metadata": described["metadata"] | fact}))
    path = forged.save()
    (path / "later.bin").write_bytes(b"what a fact tells of")
    (path / "later").mkdir()
    assert verify_dataset(str(path), samples=True) == []
    with RangeServer(tmp_path) as server:
        for dataset in (shardload.open(path, verify="always"), shardload.open(f"{server.url}/{name}")):
            check(list(dataset.__getitems__(range(len(want)))), want, facts["types"])
            assert dataset.metadata == facts["metadata"] | fact
    for reader in (plain_reader, strict_reader):
        check(reader.read_dataset(path), want, facts["types"])


def test_what_must_be_understood_is_refused_by_its_name(root: Path, tmp_path: Path) -> None:
    """Whatever else is different under the name of a feature."""
    path = tmp_path / "set"
    shutil.copytree(root / "empty", path)
    for manifest in (
        {"format": "shardload", "draft": 2, "required": ["shears"]},
        {
            "format": "shardload",
            "draft": 2,
            "required": ["external", "shears"],
            "schema": {"new": [1.5]},
            "table": None,
        },
    ):
        (path / "manifest.json").write_text(json.dumps({"manifest": manifest, "more": 1}))
        with pytest.raises(shardload.UnsupportedVersionError, match="needs 'shears', which this version lacks: update"):
            shardload.open(path)
        with pytest.raises(shardload.UnsupportedVersionError, match="'shears'"):
            shardload.ShardWriter(path, append=True).write({})


@pytest.mark.parametrize(
    ("number", "words"), [(1, "draft 1, before"), (3, "later version of the format"), (0, "draft 0")]
)
def test_another_number_is_refused(root: Path, tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "set"
    shutil.copytree(root / "empty", path)
    text = (path / "manifest.json").read_text()
    assert text.count('"draft":2') == 1
    (path / "manifest.json").write_text(text.replace('"draft":2', f'"draft":{number}'))
    with pytest.raises(shardload.UnsupportedVersionError, match=words):
        shardload.open(path)


def test_every_kind_and_feature_is_there(root: Path) -> None:
    """What FORMAT.md knows stands in one of the golden files at least."""
    manifests = [json.loads((root / name / "manifest.json").read_bytes())["manifest"] for name in NAMES]
    entries = [entry for manifest in manifests for entry in manifest["schema"]]
    seen = {place_of(entry) for entry in entries}
    numbers = {(kind, place) for kind in golden.KINDS for place in ("number", "row", "wide", "stream", "record")}
    others = {(kind, codec) for kind in ("bytes", "str", "json", "str[*]") for codec in ("none", "zstd")}
    assert numbers | others | {("bytes[*]", "zstd")} | {(kind, "none") for kind in golden.MAGICS} <= seen
    missing = {place_of(entry)[:2] for entry in entries if entry["type"].endswith("?")}
    assert {place for _, place in missing} >= {"number", "row", "wide", "stream", "record", "none", "zstd"}
    assert {kind for kind, _ in missing} >= {
        *golden.KINDS,
        *golden.MAGICS,
        "bytes",
        "str",
        "json",
        "bytes[*]",
        "str[*]",
    }
    kinds, footers, records, pages, names = set(), set(), set(), [], set()
    for path in root.rglob("*.shard"):
        data = path.read_bytes()
        num_sections, samples, _, _, flags = struct.unpack_from("<IQQ32sI", data, len(data) - 116)
        sections = list(struct.iter_unpack("<IIQQQ32x", data[len(data) - 128 - 64 * num_sections : -128]))
        kinds |= {section[0] for section in sections}
        footers.add(flags)
        _, _, start, _, size = next(section for section in sections if section[0] == 3)
        pages.append((math.ceil(samples / max(1, 16384 // size)), size))
        names.add(tuple(map(int, path.stem.split("-"))))
        if sections[0][0] == 1:
            # `place` stands first in a row, and makes its size a multiple of its own.
            words = np.frombuffer(data, "<u8", size // 8 * samples, start)[:: size // 8]
            records |= set((words >> np.uint64(48)).tolist())
    assert kinds == set(range(1, 12))
    assert footers == {0, 1} and records == {0, 1, 2}
    assert max(count for count, _ in pages) >= 3 and max(size for _, size in pages) > 16384
    assert {generation for generation, _, _ in names} >= {1, 2, 3}
    assert any(unit and part for _, unit, part in names)
    assert {tuple(manifest["required"]) for manifest in manifests} == {(), ("external",)}
    assert any(not manifest["num_shards"] for manifest in manifests)
    generations = [generation for manifest in manifests for generation in manifest["generations"]]
    assert {bool(generation["dictionary"]) for generation in generations if generation["codec"] != "none"} == {
        False,
        True,
    }
    assert any(one["codec"] == "none" and one["generation"] > 1 for one in generations)
    assert {"str", "int32"} <= {one["type"] for m in manifests for one in m["schema"] if one["name"] == m["key"]}


def place_of(entry: dict[str, str]) -> tuple[str, str]:
    """A field's kind and place; of others than numbers its type and codec."""
    kind, _, shape = entry["type"].rstrip("?").partition("[")
    if kind not in golden.KINDS:
        return entry["type"].rstrip("?"), entry["codec"]
    if shape.startswith("*"):
        return kind, "stream" if entry["codec"] == "none" else "record"
    size = np.dtype({"bfloat16": "u2"}.get(kind, kind)).itemsize
    size *= math.prod(map(int, shape.rstrip("]").split(","))) if shape else 1
    return kind, "wide" if size >= 512 else "row" if shape else "number"
