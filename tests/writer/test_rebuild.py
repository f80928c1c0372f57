"""`rebuild_index`: manifest and table from the shards alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from faults import Counting, KillAt, in_child

import shardload
from shardload.cli.main import main
from shardload.errors import FormatError, PackError, StorageError
from shardload.format import layout
from shardload.format.shard import parse_tail, tail_bytes
from shardload.reader.verify import verify_dataset
from shardload.writer.rebuild import rebuild_index

SCHEMA = {"name": "str", "number": "int64", "tokens": "uint16[*]"}


def write(path: Path, start: int, stop: int, schema: dict[str, str] | None = None, **options: object) -> None:
    with shardload.ShardWriter(path, schema, shard_size="16KiB", **options) as writer:  # type: ignore[arg-type]
        for i in range(start, stop):
            writer.write({"name": f"sample {i}", "number": i, "tokens": [i % 7] * (i % 50)})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three generations of several shards: written, replaced, and added to with a new field."""
    path = tmp_path / "set"
    write(path, 0, 10, SCHEMA)
    write(path, 0, 200, SCHEMA, replace=True, key="name", compression="zstd:3", metadata={"answer": 42})
    write(path, 200, 300, SCHEMA | {"late": "float32?"}, append=True, compression="zstd:3")
    return path


def tree(path: Path) -> dict[str, str]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def newest(path: Path) -> dict[str, str]:
    """All but what belongs to earlier versions alone: no shard tells of those."""
    table = shardload.open(path).manifest.table
    there = ("shards", f"tables/{table}", "manifest.json", "manifests/3")
    found = {name: digest for name, digest in tree(path).items() if name.startswith(there)}
    assert found.keys() >= {"manifest.json", "manifests/3"}
    return found


@pytest.mark.parametrize(
    "lost",
    [
        ["manifest.json"],
        ["manifests/3"],
        ["tables"],
        ["manifest.json", "manifests", "tables"],
        ["manifest.json", "manifests/3", "tables"],
    ],
)
def test_what_was_lost_comes_back_byte_for_byte(dataset: Path, lost: list[str]) -> None:
    before = newest(dataset)
    earlier = lost == ["manifest.json", "manifests/3", "tables"]
    for name in lost:
        shutil.rmtree(dataset / name) if (dataset / name).is_dir() else (dataset / name).unlink()
    if earlier:
        # Manifests of earlier versions are sound, so nobody can tell that a later one was ever committed.
        shutil.rmtree(dataset / "manifests")
    rebuilt = rebuild_index(dataset)
    assert newest(dataset) == before and rebuilt.empty_units == []
    assert not verify_dataset(dataset) and [sample["number"] for sample in shardload.open(dataset)] == list(range(300))


def test_damaged_index_is_replaced_and_a_sound_one_left(dataset: Path) -> None:
    before = newest(dataset)
    rebuild_index(dataset)
    assert newest(dataset) == before
    for name in ("manifest.json", "manifests/3", f"tables/{shardload.open(dataset).manifest.table}"):
        data = bytearray((dataset / name).read_bytes())
        data[len(data) // 2] ^= 1
        (dataset / name).write_bytes(data)
    # The manifests of the versions before are sound, and older than what the shards say.
    shutil.rmtree(dataset / "manifests")
    rebuild_index(dataset)
    assert newest(dataset) == before


@pytest.mark.parametrize("part", ["first", "middle", "last"])
def test_a_missing_part_is_named(dataset: Path, part: str) -> None:
    names = sorted(name for name in os.listdir(dataset / "shards") if name.startswith("0002"))
    assert len(names) > 2
    victim = {"first": names[0], "middle": names[1], "last": names[-1]}[part]
    (dataset / "shards" / victim).unlink()
    for name in ("manifest.json", "manifests", "tables"):
        shutil.rmtree(dataset / name) if (dataset / name).is_dir() else (dataset / name).unlink()
    before = tree(dataset)
    with pytest.raises(PackError, match=f"shards/{victim} is missing"):
        rebuild_index(dataset)
    assert tree(dataset) == before


def test_a_whole_generation_is_missing(dataset: Path) -> None:
    for name in os.listdir(dataset / "shards"):
        if name.startswith("0002"):
            (dataset / "shards" / name).unlink()
    shutil.rmtree(dataset / "manifests")
    (dataset / "manifest.json").unlink()
    with pytest.raises(PackError, match="generation 2 had 200 samples, its shards have 0"):
        rebuild_index(dataset)


def test_shards_that_a_sound_manifest_names_otherwise(dataset: Path) -> None:
    """The newest generation is gone, and the manifest knows of it."""
    for name in os.listdir(dataset / "shards"):
        if name.startswith("0003"):
            (dataset / "shards" / name).unlink()
    with pytest.raises(PackError, match="sound and names other content"):
        rebuild_index(dataset)


def test_an_uncommitted_generation_is_not_published(dataset: Path) -> None:
    before = newest(dataset)
    other = dataset.parent / "other"
    shutil.copytree(dataset, other)
    write(other, 300, 310, SCHEMA, replace=True)
    for name in os.listdir(other / "shards"):
        if name.startswith("0004"):
            shutil.copy(other / "shards" / name, dataset / "shards" / name)
    rebuild_index(dataset)
    assert {name: digest for name, digest in newest(dataset).items() if "/0004" not in name} == before


@pytest.mark.parametrize(
    "kind", ["HEAP", "STREAM", "ROWS", "PAGES", "SUMS", "KEYS", "STATISTICS", "DESCRIPTION", "tail"]
)
def test_a_damaged_shard_is_not_believed(dataset: Path, kind: str) -> None:
    """Sections under a digest in the directory are checked; the rest is what the new table vouches for."""
    (dataset / "manifest.json").unlink()
    shutil.rmtree(dataset / "manifests")
    shard = sorted((dataset / "shards").iterdir())[-2]
    data = bytearray(shard.read_bytes())
    sections, _ = parse_tail(bytes(data[-tail_bytes(bytes(data), "") :]))
    starts = {section.kind: section.start for section in sections}
    data[starts[getattr(layout, f"SECTION_{kind}")] + 1 if kind != "tail" else len(data) - 300] ^= 1
    shard.write_bytes(data)
    if kind not in ("HEAP", "STREAM", "ROWS", "SUMS"):
        with pytest.raises(FormatError, match=r"damaged|sections|place"):
            rebuild_index(dataset)
        return
    rebuild_index(dataset)
    # A flip among samples is not hidden: their own sums still tell.
    with pytest.raises(FormatError, match="damaged"):
        list(shardload.open(dataset, verify="always"))


def test_refusals(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(StorageError, match="is not a directory"):
        rebuild_index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackError, match="holds no shard"):
        rebuild_index(tmp_path / "empty")
    (dataset / ".work").mkdir()
    (dataset / ".work" / "journal").write_bytes(b"")
    with pytest.raises(PackError, match="unfinished pack"):
        rebuild_index(dataset)
    shutil.rmtree(dataset / ".work")
    foreign = tmp_path / "foreign"
    write(foreign, 0, 5, SCHEMA)
    write(foreign, 0, 5, SCHEMA, replace=True)
    write(foreign, 0, 5, SCHEMA, replace=True)
    shutil.copy(foreign / "shards" / "0003-000000-00000.shard", dataset / "shards" / "0002-000000-00000.shard")
    with pytest.raises(FormatError):
        rebuild_index(dataset)


def test_the_command(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = newest(dataset)
    (dataset / "manifest.json").unlink()
    assert main(["rebuild-index", str(dataset), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_samples"], facts["version"], facts["empty_units"]) == (300, 3, []) and newest(dataset) == before
    assert main(["rebuild-index", str(dataset / "shards")]) == 1
    assert "holds no shard" in capsys.readouterr().err


def test_one_that_was_killed_is_done_again(dataset: Path) -> None:
    """At every operation, with what is to be rebuilt gone each time."""
    before = newest(dataset)
    counted = Counting()
    lose(dataset)
    rebuild_index(dataset, workers=1, operations=counted)
    assert newest(dataset) == before and len(counted.changing) > 10
    for number in range(1, len(counted.changing) + 1):
        lose(dataset)
        status = in_child(lambda number=number: rebuild_index(dataset, workers=1, operations=KillAt(number)))  # type: ignore[misc]
        assert status == -signal.SIGKILL, number
        rebuild_index(dataset, workers=1)
        assert newest(dataset) == before and not (dataset / ".work").exists(), number


def lose(path: Path) -> None:
    (path / "manifest.json").unlink(missing_ok=True)
    for name in ("manifests", "tables"):
        shutil.rmtree(path / name, ignore_errors=True)
