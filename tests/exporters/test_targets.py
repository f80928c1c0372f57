"""Targets appear whole or not at all: what is refused, and what a fault, a kill or an interrupt leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from faults import TAKING_SPACE, Counting, FailAt, KillAt, NoDevice, NoLinks, files_below, in_child

import shardload
from shardload.errors import ExportError

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")

TARGETS = {"tars": "webdataset", "one.tar": None, "rows": "parquet", "one.parquet": None}
every_target = pytest.mark.parametrize("name", TARGETS)


def export(dataset: Path, folder: Path, name: str, operations=None):
    return shardload.export(
        dataset, folder / name, to=TARGETS[name], shard_size=20_000, operations=operations or NoDevice()
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@every_target
def test_a_fault_at_any_operation_leaves_the_whole_target_or_nothing(numbers, folder, name):
    counting = Counting(NoDevice())
    export(numbers, folder, name, counting)
    whole = content(folder / name)
    remove(folder / name)
    left, number, fired = set(), 0, True
    while fired:
        number += 1
        instrument = FailAt(number, errno.ENOSPC, lasting=number % 2 == 0, names=TAKING_SPACE, inner=NoDevice())
        try:
            export(numbers, folder, name, instrument)
        except ExportError as error:
            assert "cannot be written: No space left on device" in str(error)
            there = "it is there, but" in str(error)
            assert sorted(os.listdir(folder)) == ([name] if there else [])
            assert not there or content(folder / name) == whole
            left.add(there)
        fired = instrument.fired > 0
        if (folder / name).exists():
            assert content(folder / name) == whole
            remove(folder / name)
    assert left == {True, False}
    assert number > 8


@every_target
def test_a_kill_at_any_operation_leaves_the_whole_target_or_none(numbers, folder, name):
    counting = Counting(NoDevice())
    export(numbers, folder, name, counting)
    whole = content(folder / name)
    remove(folder / name)
    total, seen = len(counting.changing), set()
    for number in {1, 3, total // 2, *range(total - 4, total + 1)}:
        status = in_child(lambda number=number: export(numbers, folder, name, KillAt(number, inner=NoDevice())))
        assert status == -signal.SIGKILL
        there = (folder / name).exists()
        seen.add(there)
        if there:
            assert content(folder / name) == whole
        else:
            # The next one removes what is left, and is not confused by it.
            export(numbers, folder, name)
            assert content(folder / name) == whole
            assert os.listdir(folder) == [name]
        remove(folder / name)
        for one in os.listdir(folder):
            assert one == f".{name}.exporting"
    assert seen == {True, False}


@every_target
def test_an_interrupt_leaves_nothing(numbers, folder, name):
    def stop(progress):
        if progress.seconds:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shardload.export(numbers, folder / name, to=TARGETS[name], progress=stop)
    assert os.listdir(folder) == []


@every_target
def test_damage_leaves_nothing(numbers, folder, name):
    [shard] = (
        (numbers / "shards").rglob("*.shard")
        if list((numbers / "shards").rglob("*.shard"))
        else (numbers / "shards").iterdir()
    )
    data = bytearray(shard.read_bytes())
    data[4096:4200] = bytes(104)
    shard.write_bytes(data)
    with pytest.raises(shardload.FormatError):
        export(numbers, folder, name)
    assert os.listdir(folder) == []


@every_target
def test_targets_that_are_there_are_refused_and_stay(numbers, folder, name):
    path = folder / name
    for make in (
        path.mkdir,
        lambda: path.write_text("mine"),
        lambda: path.symlink_to("nowhere"),
    ):
        make()
        with pytest.raises(ExportError, match=f"{name} is there already: choose another target"):
            export(numbers, folder, name)
        assert os.listdir(folder) == [name]
        path.rmdir() if path.is_dir() else path.unlink()

    def appear(progress):
        if progress.seconds and not path.exists():
            path.mkdir()
            (path / "mine").write_text("mine")

    with pytest.raises(ExportError, match="is there already"):
        shardload.export(numbers, path, to=TARGETS[name], progress=appear)
    assert files_below(folder) == {name: None, f"{name}/mine": b"mine"}


@every_target
def test_file_systems_without_links(numbers, folder, name):
    export(numbers, folder, name, NoLinks())
    whole = content(folder / name)
    remove(folder / name)
    export(numbers, folder, name)
    assert content(folder / name) == whole
    assert os.listdir(folder) == [name]


def test_two_exports_to_one_target_are_refused(numbers, folder):
    (folder / ".out.exporting").mkdir()
    descriptor = os.open(folder / ".out.exporting", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ExportError, match="another export to it is under way"):
            shardload.export(numbers, folder / "out", to="parquet")
    finally:
        os.close(descriptor)
    assert os.listdir(folder) == [".out.exporting"]


def test_wrong_arguments_are_refused_before_anything_is_written(numbers, folder):
    dataset = shardload.open(numbers)
    for target, options, message in [
        ("out", {}, "say what to write, webdataset or parquet"),
        ("out", {"to": "csv"}, "to must be one of webdataset, parquet, not 'csv'"),
        ("out.tar", {"to": "parquet"}, "its ending says webdataset, but it should become parquet"),
        ("out.tar.gz", {"to": "webdataset"}, "tars are written uncompressed"),
        ("out.tar", {"fields": ["numbre"]}, "there is no field 'numbre'; the fields are number, text"),
        ("out.tar", {"fields": "number"}, "fields must be a list of names"),
        ("out.tar", {"fields": []}, "at least one field"),
        ("out.tar", {"key": "number"}, "'number' is no field of str that could name the samples: it is int64"),
        ("out.tar", {"key": "no"}, "'no' is no field of str that could name the samples; the fields are number, text"),
        ("out.parquet", {"key": "text"}, "goes with webdataset only"),
        ("out.tar", {"shard_size": "big"}, "shard_size must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            shardload.export(dataset, folder / target, **options)
    with pytest.raises(ValueError, match="open the dataset without transform"):
        shardload.export(shardload.open(numbers, transform=dict), folder / "out.tar")
    with pytest.raises(ValueError, match="Mixture has no order of its own"):
        shardload.export(shardload.Mixture({"a": (dataset, 1), "b": (dataset, 1)}), folder / "out.tar")
    with pytest.raises(ExportError, match="lies inside the dataset"):
        shardload.export(numbers, numbers / "out.tar")
    with pytest.raises(ExportError, match="No such file or directory; nothing was left there"):
        shardload.export(numbers, folder / "no" / "out.tar")
    assert os.listdir(folder) == []


def test_values_too_large_for_parquet_are_named(numbers, folder, monkeypatch):
    monkeypatch.setattr("shardload.exporters.arrow_columns._MAX_VALUE_BYTES", 40)
    with pytest.raises(ExportError, match="field 'text' of sample 13 has 42 bytes, more than Parquet can hold"):
        shardload.export(numbers, folder / "out.parquet", fields=["text"])
    assert os.listdir(folder) == []


def test_progress_ends_with_all(numbers, folder):
    told = []
    summary = shardload.export(numbers, folder / "out.tar", progress=told.append)
    assert told[0].fraction == 0
    assert (told[-1].fraction, told[-1].num_samples, told[-1].total_samples) == (1, 100, 100)
    assert told[-1].num_bytes == summary.num_bytes == (folder / "out.tar").stat().st_size
    assert summary.fingerprint == shardload.open(numbers).fingerprint


def test_a_dataset_by_url(numbers, folder):
    files = fsspec.filesystem("memory")
    files.put(str(numbers), "/export-numbers", recursive=True)
    try:
        shardload.export("memory://export-numbers", folder / "a.tar")
    finally:
        files.rm("/export-numbers", recursive=True)
    shardload.export(numbers, folder / "b.tar")
    assert (folder / "a.tar").read_bytes() == (folder / "b.tar").read_bytes()


def test_an_empty_dataset_becomes_an_empty_file(tmp_path, folder):
    with shardload.ShardWriter(tmp_path / "d", {"text": "str"}):
        pass
    for name in TARGETS:
        assert export(tmp_path / "d", folder, name).num_files == 1


# Not getrusage, which starts with what the parent has.
MEMORY = """
import sys, shardload
shardload.export(sys.argv[1], sys.argv[2], to=sys.argv[3])
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) >> 10)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    data = bytes(range(256)) * 4096
    with shardload.ShardWriter(tmp_path / "d", {"data": "bytes", "row": "uint8[65536]"}) as writer:
        for i in range(1000):
            writer.write({"data": data[i:], "row": np.frombuffer(data, "u1", 65536)})
    for to in ("webdataset", "parquet"):
        command = [sys.executable, "-c", MEMORY, tmp_path / "d", tmp_path / to, to]
        peak_mib = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)
        # 1 GB of samples.
        assert peak_mib < 300


def content(path: Path) -> object:
    return files_below(path) if path.is_dir() else path.read_bytes()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
