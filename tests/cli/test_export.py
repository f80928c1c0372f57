"""`shardload export` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest

import shardload
from shardload.cli import main


@pytest.fixture
def dataset(tmp_path):
    with shardload.ShardWriter(tmp_path / "out", {"number": "int64", "a,b": "str"}) as writer:
        for i in range(50):
            writer.write({"number": i, "a,b": f"text {i}"})
    return tmp_path / "out"


def test_export_of_tars(run, dataset, tmp_path):
    status, output, errors = run("export", dataset, tmp_path / "tars", "--to", "webdataset", "--shard-size", "20kB")
    assert status == 0
    assert "50 samples exported and on disk" in output
    assert "number: number.cls, a,b: a_b.txt" in output
    assert errors[0] == "exporting 50 samples"
    assert sorted(os.listdir(tmp_path / "tars")) == [f"00000{i}.tar" for i in range(7)]
    with tarfile.open(tmp_path / "tars/000000.tar") as tar:
        assert tar.getnames()[:3] == ["__shardload__", "000000000.number.cls", "000000000.a_b.txt"]


def test_json_fields_samples_and_version(run, dataset, tmp_path):
    words = ["--fields", "a,b", "--samples", "-10:", "--version", "1", "--json"]
    status, output, _ = run("export", dataset, tmp_path / "one.tar", *words)
    assert status == 0
    facts = json.loads(output)
    assert (facts["num_samples"], facts["num_files"], facts["stored"]) == (10, 1, {"a,b": "a_b.txt"})
    assert facts["num_bytes"] == (tmp_path / "one.tar").stat().st_size
    assert facts["to"] == "webdataset"


def test_what_is_wrong_is_one_sentence(dataset, tmp_path, capsys):
    for words, status, message in [
        ([tmp_path / "new"], 1, "say what to write"),
        ([tmp_path / "a.tar", "--samples", "5"], 2, "no range such as"),
        ([tmp_path / "a.tar", "--samples", "5:2"], 2, "has none of the 50 samples"),
        ([tmp_path / "a.tar", "--fields", "number,x"], 1, "there is no field 'x'"),
        ([tmp_path, "--to", "parquet"], 1, "is there already"),
        (["s3://bucket/e.tar"], 1, "s3://bucket/e.tar is a URL: export to a local path"),
    ]:
        assert main(["export", str(dataset), *map(str, words)]) == status
        output, errors = capsys.readouterr()
        assert output == ""
        assert message in errors
        assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == ["out"]


def test_a_termination_leaves_nothing(environment, tmp_path):
    with shardload.ShardWriter(tmp_path / "out", {"data": "bytes"}) as writer:
        for _ in range(20_000):
            writer.write({"data": bytes(10)})
    (tmp_path / "there").mkdir()
    command = [
        sys.executable,
        "-m",
        "shardload",
        "export",
        tmp_path / "out",
        tmp_path / "there/tars",
        "--to",
        "webdataset",
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # The second line comes with the first samples.
        lines = [process.stderr.readline(), process.stderr.readline()]
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.readlines()
        status = process.wait(60)
    assert (status, lines[-1]) == (143, "shardload: terminated\n"), lines
    assert os.listdir(tmp_path / "there") == []
