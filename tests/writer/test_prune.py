"""`prune`: old versions go, and nothing that a kept one needs."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

import shardload
from shardload.cli.main import main
from shardload.errors import PackError, ShardloadError
from shardload.reader.verify import verify_dataset
from shardload.storage import Operations
from shardload.writer.prune import prune

SCHEMA = {"number": "int64", "data": "bytes"}


def write(path: Path, start: int, stop: int, **options: Any) -> None:
    schema = None if options.get("append") else SCHEMA
    with shardload.ShardWriter(path, schema, shard_size="12KiB", **options) as writer:
        for i in range(start, stop):
            writer.write({"number": i, "data": random.Random(i).randbytes(400)})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Version 1, an append to it, a replacement, and an append to that."""
    path = tmp_path / "set"
    write(path, 0, 50)
    write(path, 50, 80, append=True)
    write(path, 0, 60, replace=True)
    write(path, 60, 90, append=True)
    return path


def numbers(path: Path, version: int | None = None) -> list[int]:
    return [sample["number"] for sample in shardload.open(path, version=version)]


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
def test_kept_versions_are_whole(dataset: Path, keep: int) -> None:
    content = {version: numbers(dataset, version) for version in (1, 2, 3, 4)}
    there = files(dataset)
    told = prune(dataset, keep=keep, dry_run=True)
    assert files(dataset) == there
    assert prune(dataset, keep=keep) == told and there - files(dataset) == set(told.files)
    for version in content:
        if version > 4 - keep:
            assert numbers(dataset, version) == content[version]
        else:
            with pytest.raises(ShardloadError):
                shardload.open(dataset, version=version)
    assert not verify_dataset(dataset) and prune(dataset, keep=keep).files == []
    # Only what nobody refers to is gone: with two versions kept, the shards that both share are there once.
    generations = {name[7:11] for name in files(dataset) if name.startswith("shards")}
    assert generations == {1: {"0003", "0004"}, 2: {"0003", "0004"}}.get(keep, {"0001", "0002", "0003", "0004"})


def test_a_writer_goes_on_after_it(dataset: Path) -> None:
    prune(dataset)
    write(dataset, 90, 95, append=True)
    assert numbers(dataset) == list(range(95)) and shardload.open(dataset).manifest.version == 5


class _Killed(Operations):
    def __init__(self, at: int) -> None:
        self.at = at

    def unlink(self, path: str) -> None:
        self.at -= 1
        if self.at < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().unlink(path)


def test_one_that_was_killed_is_finished_by_the_next(dataset: Path, tmp_path: Path) -> None:
    content, total = numbers(dataset), len(prune(dataset, dry_run=True).files)
    assert total > 12
    for at in range(total):
        pid = os.fork()
        if pid == 0:
            prune(dataset, operations=_Killed(1))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) == (at < total - 1)
        assert numbers(dataset) == content
        for version in (1, 2, 3):
            try:
                assert len(numbers(dataset, version)) == {1: 50, 2: 80, 3: 60}[version]
            except ShardloadError:
                assert not (dataset / "manifests" / str(version)).exists(), "a version stayed that lacks a shard"
    prune(dataset)
    assert not verify_dataset(dataset) and prune(dataset).files == []


def test_refusals(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        prune(dataset, keep=0)
    with pytest.raises(ShardloadError, match="is not a directory"):
        prune(tmp_path / "nowhere")
    writer = shardload.ShardWriter(dataset, SCHEMA, replace=True)
    writer.write({"number": 1, "data": b""})
    with pytest.raises(PackError, match="a writer is at work"):
        prune(dataset)
    writer.abandon()
    (dataset / ".work").mkdir()
    (dataset / ".work" / "journal").write_bytes(b"x")
    with pytest.raises(PackError, match="unfinished"):
        prune(dataset)
    assert ".work/journal" in prune(dataset, unfinished=True).files and not (dataset / ".work").exists()
    damaged = dataset / "manifests" / "4"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    there = files(dataset)
    with pytest.raises(ShardloadError):
        prune(dataset)
    assert files(dataset) == there


def test_the_command(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(dataset), "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"] == [1, 2, 3] and not facts["removed"] and len(files(dataset)) > 10
    assert main(["prune", str(dataset)]) == 0 and "3 versions" in capsys.readouterr().out
    assert main(["prune", str(dataset), "--keep", "0"]) == 2
