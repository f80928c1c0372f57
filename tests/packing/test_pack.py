from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

import shardload
from shardload.errors import FormatError, PackError
from shardload.packing import DEFAULT_COMPRESSION, PackSummary, Progress, pack

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_all_files_are_the_same_for_any_number_of_workers(tmp_path: Path, texts, rows, digests, kind: str) -> None:
    source, unit_size = (texts, 40_000) if kind == "folder" else (rows, 100_000)
    taken, summaries = [], []
    for workers in (1, 2, 5):
        target = tmp_path / f"{workers}"
        summaries.append(
            pack(source, target, workers=workers, unit_size=unit_size, shard_size="16KiB", compression="zstd:1")
        )
        taken.append(digests(target))
    assert taken[0] == taken[1] == taken[2]
    assert [summary.num_workers for summary in summaries] == [1, 2, 5]
    assert summaries[0].num_units >= 3 and summaries[0].num_shards > summaries[0].num_units
    assert len({summary.fingerprint for summary in summaries}) == 1
    names = {Path(name).name for name in taken[0] if name.endswith(".shard")}
    assert {name[:13] for name in names} >= {"0001-000000-0", "0001-000001-0", "0001-000002-0"}


def test_samples_equal_the_source_in_its_order(tmp_path: Path, texts, rows) -> None:
    pack(texts, tmp_path / "texts", workers=2, unit_size=20_000)
    dataset = shardload.open(tmp_path / "texts")
    paths = sorted((str(path.relative_to(texts)) for path in texts.rglob("*.txt")), key=str.encode)
    assert [sample["path"] for sample in dataset] == paths
    assert dataset.metadata == {"classes": ["class0", "class1", "class2"]}
    for sample in dataset:
        assert sample["text"] == (texts / sample["path"]).read_text()
        assert sample["label"] == int(sample["path"][5])
    pack(rows, tmp_path / "rows", workers=2, unit_size=100_000)
    expected = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [dict(sample) for sample in shardload.open(tmp_path / "rows")] == [{"note": None} | row for row in expected]


def test_compressed_sources_give_the_same_samples(tmp_path: Path, rows) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = rows.read_bytes()
    (source / "a.jsonl").write_bytes(data)
    (source / "b.jsonl.gz").write_bytes(gzip.compress(data))
    (source / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    summary = pack(source, tmp_path / "out", workers=2, unit_size=200_000)
    numbers = shardload.open(tmp_path / "out").column("number").tolist()
    assert numbers == list(range(2000)) * 3
    assert summary.source_bytes == sum(path.stat().st_size for path in source.iterdir())


def test_summary_tells_what_is_on_disk(tmp_path: Path, texts, digests) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.txt", ".hidden", "b.md"):
        (tmp_path / "source" / name).write_text("text")
    summary = pack(tmp_path / "source", tmp_path / "out", include=["*.txt"])
    manifest = shardload.open(tmp_path / "out").manifest
    assert summary == PackSummary(
        target=str(tmp_path / "out"),
        version=1,
        fingerprint=manifest.fingerprint,
        types={"text": "str", "path": "str"},
        num_samples=1,
        num_shards=1,
        num_units=1,
        num_workers=1,
        source_bytes=4,
        stored_bytes=sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir()),
        seconds=summary.seconds,
        skipped={"hidden": 1, "not included": 1},
    )
    assert manifest.generations[-1].codec == DEFAULT_COMPRESSION == "zstd:3"


def test_options_reach_the_dataset(tmp_path: Path, rows) -> None:
    types = {"number": "int32", "text": "str", "score": "float64", "tags": "json", "note": "str?"}
    pack(rows, tmp_path / "out", schema=types, compression="none", shard_size="32KiB")
    manifest = shardload.open(tmp_path / "out").manifest
    assert {field.name: field.type for field in manifest.schema} == types
    assert (manifest.generations[-1].codec, manifest.generations[-1].shard_size) == ("none", 32 << 10)


def test_progress_starts_rises_and_ends(tmp_path: Path, texts) -> None:
    for workers in (1, 2):
        told: list[Progress] = []
        summary = pack(
            texts,
            tmp_path / f"{workers}",
            workers=workers,
            unit_size=20_000,
            progress=told.append,
            compression="zstd:19",
        )
        assert told[0].done.num_samples == 0 and told[0].seconds == 0 and told[0].fraction == 0
        assert told[0].types == summary.types and told[0].num_workers == workers
        assert told[-1].done.num_samples == summary.num_samples == 300
        assert told[-1].done.source_bytes == summary.source_bytes == told[-1].total_bytes
        assert told[-1].done.stored_bytes == summary.stored_bytes
        assert told[-1].fraction == 1 and told[-1].seconds_left == 0
        counts = [progress.done.num_samples for progress in told]
        assert counts == sorted(counts)


FRESH = """
import sys
import shardload
import shardload.packing.processes as processes
summary = shardload.pack(sys.argv[1], sys.argv[2], workers=2, unit_size=20_000)
assert summary.num_workers == 2 and summary.num_samples == 300
assert "torch" not in sys.modules
print("packed")
"""


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_packs_from_any_script_and_without_torch(tmp_path: Path, texts, way: str) -> None:
    """A script without `if __name__ == "__main__"`: the workers must not run it again."""
    script = tmp_path / "script.py"
    script.write_text(FRESH)
    given = {"input": FRESH} if way == "stdin" else {"stdin": subprocess.DEVNULL}
    command = [sys.executable, "-" if way == "stdin" else str(script), str(texts), str(tmp_path / "out")]
    done = subprocess.run(command, **given, capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "packed\n", "")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(shardload.__file__).parents[1]), "PYTHONWARNINGS": "error"}


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nothing", "out", "nothing does not exist"),
        ("texts", "texts", "texts is the source itself"),
        ("texts", "texts/out", "the target lies inside the source"),
        ("texts/deep", "texts", "the source lies inside the target"),
        ("texts", "link/out", "the target lies inside the source"),
        ("texts/a.jsonl", "texts", "the source lies inside the target"),
        ("empty", "out", "empty holds no file to pack"),
        ("texts", "full", "full is not empty and holds 'keep'"),
        ("texts", "full/keep", "full/keep exists and is not a directory"),
        ("texts/a.rst", "out", "texts/a.rst is not a source"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, monkeypatch, digests, source: str, target: str, message: str) -> None:
    for folder in ("texts/deep", "empty", "full"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("texts/deep/a.txt", "texts/a.jsonl", "texts/a.rst", "full/keep"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("texts")
    monkeypatch.chdir(tmp_path)
    before = digests("."), sorted(os.listdir("."))
    with pytest.raises(PackError, match=re.escape(message)):
        pack(source, target)
    assert (digests("."), sorted(os.listdir("."))) == before


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"shard_size": "big"}, ValueError, "shard_size must be"),
        ({"unit_size": 0}, ValueError, "unit_size must be"),
        ({"compression": "lz4"}, FormatError, "unknown compression 'lz4'"),
        ({"schema": {"_text": "str"}}, FormatError, "field name '_text' is reserved"),
        ({"schema": {}}, FormatError, "a schema has 1 to 1024 fields"),
        ({"include": ["../*"]}, ValueError, "must be relative to the source"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, texts, options, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        pack(texts, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


def test_a_single_pattern_may_be_text(tmp_path: Path, texts) -> None:
    assert pack(texts, tmp_path / "out", include="class1/*").num_samples == 100


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"number": "one"}', "field 'number': expected int64, got str of length 3; the types were inferred from"),
        ('{"number": 1.5}', "field 'number': expected int64, got float 1.5; the types were inferred from"),
        ('{"number": null}', "field 'number': expected int64, got None; if it may be missing, its type is int64?; the"),
        ('{"text": "a"}', "field 'number': expected int64, got no such field in the sample; if it may be missing, its"),
        (
            '{"number": 1, "text": "a"}',
            "field 'text' is not in the schema {number: int64}; the types were inferred from",
        ),
        ('{"number": 9223372036854775808}', "field 'number': expected int64, got int 9223372036854775808, outside"),
        ('{"number": 1, "number": 2}', "field 'number' stands in an object twice"),
        ('{"number": ', "broken JSON: Expecting value at column"),
    ],
)
def test_a_late_line_that_does_not_fit(tmp_path: Path, workers: int, line: str, message: str) -> None:
    check_a_late_line(tmp_path, workers, line, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"number": "one"}', "field 'number': expected int64, got str of length 3; the types were inferred from"),
        ('{"number": ', "broken JSON: Expecting value at column"),
    ],
)
def test_a_late_line_that_a_worker_finds(tmp_path: Path, line: str, message: str) -> None:
    """One that the schema refuses, and one that is none: whatever the message, it crosses the pipe as text."""
    check_a_late_line(tmp_path, 2, line, message)


def check_a_late_line(tmp_path: Path, workers: int, line: str, message: str) -> None:
    source = tmp_path / "rows.jsonl"
    good = '{"number": 1}\n'
    source.write_text(good * 2000 + line + "\n" + good * 1000)
    with pytest.raises(PackError) as caught:
        pack(source, tmp_path / "out", workers=workers, unit_size=9000)
    assert str(caught.value).startswith(f"{source} line 2001: ") and message in str(caught.value)
    stays = str(caught.value).endswith(
        "; what was packed stays: go on with the same command and --continue (resume=True)"
    )
    assert stays == (tmp_path / "out").exists()


def test_error_of_a_given_schema_has_no_hint(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"a": [1, 2]}\n{"a": [1, 2, 3]}\n')
    with pytest.raises(PackError, match=r"line 2: field 'a': expected int32\[2\], got array of int32 \[3\]$"):
        pack(source, tmp_path / "out", schema={"a": "int32[2]"})


def test_given_schema_and_nothing_but_blank_lines(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n\n")
    with pytest.raises(PackError, match=r"rows\.jsonl holds no sample to pack"):
        pack(source, tmp_path / "out", schema={"a": "int32"})
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_replace_makes_the_next_version_and_a_failure_leaves_the_first(tmp_path: Path, texts, rows, digests) -> None:
    target = tmp_path / "out"
    pack(texts, target)
    reader, before = shardload.open(target), digests(target)
    with pytest.raises(PackError, match="exists and holds a dataset: choose another target, or replace it"):
        pack(rows, target)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\n{')
    with pytest.raises(PackError, match="line 2: broken JSON"):
        pack(bad, target, replace=True)
    assert digests(target) == before
    assert pack(rows, target, replace=True, workers=2, unit_size=100_000).version == 2
    assert len(shardload.open(target)) == 2000
    assert len(list(reader)) == 300


def test_source_that_vanishes_meanwhile(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.txt", "b.txt"):
        (source / name).write_text("text")
    with pytest.raises(PackError, match=re.escape(f"{source}/b.txt vanished while it was being packed")):
        pack(source, tmp_path / "out", progress=lambda progress: (source / "b.txt").unlink())
    assert os.listdir(tmp_path) == ["source"]


def test_class_names_beyond_a_manifest_leave_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(4300):
        folder = source / f"{number:0250d}"
        folder.mkdir(parents=True)
        (folder / "a.txt").touch()
    with pytest.raises(PackError, match=r"names of its 4300 sub-folders.*a manifest holds 1 MiB"):
        pack(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_a_daemonic_process_packs_alone(tmp_path: Path, rows, digests, monkeypatch) -> None:
    """As a worker of a multiprocessing.Pool is: it may not start processes."""
    pack(rows, tmp_path / "free", workers=2, unit_size=100_000)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert pack(rows, tmp_path / "alone", unit_size=100_000).num_workers == 1
    assert digests(tmp_path / "alone") == digests(tmp_path / "free")
    with pytest.raises(PackError, match=r"2 workers cannot be started: this is a daemonic process.* workers=1"):
        pack(rows, tmp_path / "two", workers=2, unit_size=100_000)
    assert pack(rows, tmp_path / "one unit", workers=2).num_workers == 1
    assert sorted(os.listdir(tmp_path)) == ["alone", "free", "one unit"]
