"""`shardload export` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

import shardload


@pytest.fixture
def dataset(tmp_path):
    with shardload.ShardWriter(tmp_path / "out", {"number": "int64", "a,b": "str"}) as writer:
        for i in range(50):
            writer.write({"number": i, "a,b": f"text {i}"})
    return tmp_path / "out"


def test_export_and_pack_again(run, dataset, tmp_path):
    status, output, errors = run("export", dataset, tmp_path / "tars", "--to", "webdataset", "--shard-size", "20kB")
    assert status == 0
    assert "50 samples exported and on disk" in output
    assert "number: number.cls, a,b: a_b.txt" in output
    assert errors[0] == "exporting 50 samples"
    assert run("pack", tmp_path / "tars", tmp_path / "again", "--workers", 1)[0] == 0
    assert list(shardload.open(tmp_path / "again")) == list(shardload.open(dataset))


def test_json_fields_samples_and_version(run, dataset, tmp_path):
    words = ["--fields", "a,b", "--samples", "-10:", "--version", "1", "--json"]
    status, output, _ = run("export", dataset, tmp_path / "one.tar", *words)
    assert status == 0
    facts = json.loads(output)
    assert (facts["num_samples"], facts["num_files"], facts["stored"]) == (10, 1, {"a,b": "a_b.txt"})
    assert facts["num_bytes"] == (tmp_path / "one.tar").stat().st_size
    assert facts["to"] == "webdataset"


def test_what_is_wrong_is_one_sentence(refused, dataset, tmp_path):
    assert "say what to write" in refused("export", dataset, tmp_path / "new")
    assert "no range such as" in refused("export", dataset, tmp_path / "a.tar", "--samples", "5", status=2)
    assert "there is no field 'x'" in refused("export", dataset, tmp_path / "a.tar", "--fields", "number,x")
    assert "is there already" in refused("export", dataset, tmp_path, "--to", "parquet")


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
