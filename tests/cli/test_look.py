"""`info`, `head`, `verify`, and what holds for every command."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardload
from shardload.cli import main

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 640, 480, 8, 2, 0, 0, 0)
SCHEMA = {
    "image": "png",
    "text": "str",
    "data": "bytes",
    "facts": "json",
    "label": "int64",
    "score": "float64?",
    "vector": "float32[2,4]",
    "wide": "int32[200]",
    "flag": "bool",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("look") / "dataset"
    with shardload.ShardWriter(
        path, SCHEMA, compression="zstd:3", shard_size="24KiB", metadata={"classes": ["cat", "dog"]}
    ) as writer:
        for number in range(30):
            writer.write(
                {
                    "image": PNG,
                    "text": f"line {number}\n\x1b[31m" + "x" * 100 * number,
                    "data": bytes(range(number)),
                    "facts": {"n": number, "deep": ["é"]},
                    "label": number % 2,
                    "score": [None, float("nan"), 0.5][number % 3],
                    "vector": np.full((2, 4), number, np.float32),
                    "wide": np.arange(200, dtype=np.int32),
                    "flag": number == 1,
                }
            )
    return path


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_info_tells_what_the_dataset_is(dataset: Path, capsys) -> None:
    status, output, errors = call(capsys, "info", dataset)
    opened = shardload.open(dataset)
    assert (status, errors) == (0, "")
    assert output.startswith(f"{dataset}: 30 samples\n")
    for expected in (
        rf"stored .* in {len(opened.table)} shards",
        r"compression +zstd:3, ratio \d\.\d\d over the samples",
        r"version +1 \(format version 1\)\n",
        rf"fingerprint +{opened.fingerprint}",
        r"written by +numpy .*, shardload .*, zstd ",
        r"metadata +classes: 2",
        r"text +str \(zstd\): length \d+ to [\d,]+\n",
        r"image +png: length .*\n",
        r"vector +float32\[2,4\]: from .* to .*\n",
        r"bytes of a sample: .* to .*, median .*, mean ",
    ):
        assert re.search(expected, output), expected
    counts = [int(count) for count in re.findall(r"^ +\S+ \S+ - \S+ \S+ +(\d+)", output, re.MULTILINE)]
    assert sum(counts) == 30 and re.search(r" #{20,}$", output, re.MULTILINE)


def test_info_as_json(dataset: Path, capsys) -> None:
    status, output, _ = call(capsys, "info", dataset, "--json")
    facts, opened = json.loads(output), shardload.open(dataset)
    stored, raw = opened.record_sizes()
    assert status == 0 and facts["num_samples"] == 30 and facts["fingerprint"] == opened.fingerprint
    assert facts["compression"] == "zstd:3" and facts["metadata"] == {"classes": 2}
    assert {field["name"]: field["type"] for field in facts["schema"]} == SCHEMA
    sizes = facts["sizes"]
    assert (sizes["stored_bytes"], sizes["raw_bytes"]) == (stored.sum(), raw.sum())
    assert sizes["ratio"] == pytest.approx(raw.sum() / stored.sum())
    assert (sizes["min"], sizes["max"], sizes["median"]) == (raw.min(), raw.max(), np.median(raw))
    for entry in sizes["histogram"]:
        assert entry["num_samples"] == ((raw >= entry["start"]) & (raw < entry["stop"])).sum()
    assert sum(entry["num_samples"] for entry in sizes["histogram"]) == 30


def test_info_does_not_read_many_rows_unless_asked(dataset: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("shardload.cli.info.SIZED_SAMPLES", 29)
    assert "sizes" not in json.loads(call(capsys, "info", dataset, "--json")[1])
    assert "bytes of a sample" not in call(capsys, "info", dataset)[1]
    assert "sizes" in json.loads(call(capsys, "info", dataset, "--json", "--sizes")[1])


@pytest.mark.parametrize("sizes", [[0, 0], [1], [1, 2, 3], [5] * 9, [0, 1, 2**40], list(range(1000)), [2**62]])
def test_histogram_counts_every_sample_once_in_few_bins(sizes: list[int]) -> None:
    from shardload.cli.info import _sizes

    raw = np.array(sizes, dtype=np.int64)
    bins = _sizes(raw, raw)["histogram"]
    assert len(bins) <= 16
    for entry in bins:
        assert entry["num_samples"] == ((raw >= entry["start"]) & (raw < entry["stop"])).sum()
    assert sum(entry["num_samples"] for entry in bins) == len(sizes)


def test_empty_dataset(tmp_path: Path, capsys) -> None:
    with shardload.ShardWriter(tmp_path / "out", {"a": "str"}):
        pass
    assert call(capsys, "info", tmp_path / "out")[0] == 0
    assert call(capsys, "head", tmp_path / "out")[:2] == (0, "")
    assert call(capsys, "verify", tmp_path / "out")[0] == 0


def test_head_shows_each_kind_of_value(dataset: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    status, output, errors = call(capsys, "head", dataset, "-n", 3)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0::10] == ["sample 0", "sample 1", "sample 2", "... 27 more"]
    shown = [line.split(None, 1)[1] for line in lines[21:30]]
    assert shown == [
        f"png 640x480, {len(PNG)} B",
        r"line 2\n\x1b[31mxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...",
        "bytes, 2 B: 00 01",
        '{"n": 2, "deep": ["é"]}',
        "0",
        "0.5",
        "float32[2,4]: 2, 2, 2, 2, 2, 2, ...",
        "int32[200]: 0, 1, 2, 3, 4, 5, ...",
        "False",
    ]
    assert all(len(line) <= 60 for line in lines)
    assert (
        re.search(r"score +null\n", output)
        and re.search(r"score +nan\n", output)
        and re.search(r"flag +True\n", output)
    )


def test_head_as_json(dataset: Path, capsys) -> None:
    status, output, _ = call(capsys, "head", dataset, "-n", 2, "--json")
    facts = json.loads(output, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert status == 0 and facts["num_samples"] == 30 and len(facts["samples"]) == 2
    assert facts["samples"][1] == {
        "image": {"format": "png", "width": 640, "height": 480, "num_bytes": len(PNG)},
        "text": "line 1\n\x1b[31m" + "x" * 100,
        "data": {"num_bytes": 1, "first_base64": "AA=="},
        "facts": {"n": 1, "deep": ["é"]},
        "label": 1,
        "score": "nan",
        "vector": {"dtype": "float32", "shape": [2, 4], "first": [1.0] * 6},
        "wide": {"dtype": "int32", "shape": [200], "first": [0, 1, 2, 3, 4, 5]},
        "flag": True,
    }
    assert facts["samples"][0]["score"] is None


def test_head_of_more_than_there_is(dataset: Path, capsys) -> None:
    _, output, _ = call(capsys, "head", dataset, "-n", 99)
    assert output.count("sample ") == 30 and "more" not in output
    assert call(capsys, "head", dataset, "-n", 0)[1] == "... 30 more\n"


def test_verify_of_a_sound_dataset(dataset: Path, capsys) -> None:
    status, output, errors = call(capsys, "verify", dataset, "--workers", 2)
    manifest = shardload.open(dataset).manifest
    assert (status, errors) == (0, "")
    assert output.startswith(f"{dataset}: {manifest.num_shards} shards, 30 samples, ") and "all as written" in output
    facts = json.loads(call(capsys, "verify", dataset, "--json")[1])
    assert facts["sound"] and facts["damages"] == [] and facts["num_bytes"] == manifest.num_bytes


def test_verify_names_what_is_damaged(dataset: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    opened = shardload.open(copy)
    entry, name = opened.table[1], opened.table[1].name
    data = bytearray((copy / name).read_bytes())
    data[5000] ^= 1
    (copy / name).write_bytes(data)
    (copy / opened.table[0].name).unlink()
    status, output, errors = call(capsys, "verify", copy)
    first = opened.table[0].num_samples
    lines = output.splitlines()
    assert status == 1 and errors == f"shardload: error: {copy} is damaged in {len(lines)} places\n"
    assert lines[0].startswith(f"{opened.table[0].name}: ") and "is missing" in lines[0]
    assert lines[0].endswith(f"samples 0-{first - 1}")
    bad = [i for i in range(first, first + entry.num_samples) if not readable(opened, i)]
    assert len(bad) == 1 < entry.num_samples
    assert lines[1].startswith(f"{name}, heap: ") and lines[1].endswith(f"; samples {bad[0]}")
    status, output, _ = call(capsys, "verify", copy, "--json")
    facts = json.loads(output)
    assert status == 1 and not facts["sound"] and len(facts["damages"]) == len(lines)
    assert facts["damages"][1]["sample_ids"] == bad


def readable(dataset: shardload.ShardDataset, sample_id: int) -> bool:
    try:
        return bool(dataset[sample_id])
    except shardload.ChecksumError:
        return False


def test_damaged_manifest(dataset: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"num_samples":30', b'"num_samples":31'))
    for command in ("info", "head"):
        status, output, errors = call(capsys, command, copy)
        assert (status, output) == (1, "") and errors.startswith("shardload: error: ") and "manifest.json" in errors
    assert call(capsys, "verify", copy)[0] == 1


@pytest.mark.parametrize("command", ["info", "head", "verify"])
def test_a_directory_that_is_no_dataset(refused, tmp_path: Path, command: str) -> None:
    assert refused(command, tmp_path) == f"{tmp_path} is not a dataset: it has no manifest.json"
    assert "is not a dataset" in refused(command, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infos"], "No such command 'infos'"),
        (["info"], "Missing argument 'DATASET'. (see shardload info --help)"),
        (["head", "x", "-n", "-1"], "Invalid value for '-n': -1 is not in the range x>=0."),
        (["verify", "x", "--workers", "0"], "Invalid value for '--workers'"),
        (["info", "x", "y"], "Got unexpected extra argument (y)"),
    ],
)
def test_wrong_usage(capsys, words: list[str], message: str) -> None:
    status, output, errors = call(capsys, *words)
    assert (status, output) == (2, "") and errors.startswith(f"shardload: error: {message}") and errors.count("\n") == 1


def test_help_and_version(run) -> None:
    status, output, errors = run("--help")
    assert status == 0 and errors == [] and all(f"  {name} " in output for name in ("pack", "info", "head", "verify"))
    # As they are needed, and each told in full.
    assert (
        output.index("  pack ") < output.index("  info ") < output.index("  prune ")
        and "..." not in output[output.index("Commands:") :]
    )
    assert run("pack", "--help")[0] == 0
    assert run("--version") == (0, f"shardload {shardload.__version__}\n", [])
    status, output, errors = run()
    assert (status, output) == (2, "") and errors[0].startswith("Usage: shardload ")


def test_commands_never_load_torch(environment, dataset: Path) -> None:
    code = "import sys; from shardload.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for command in ("info", "head", "verify"):
        words = [sys.executable, "-c", code, command, str(dataset)]
        done = subprocess.run(words, capture_output=True, timeout=60, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["info", "head", "verify"])
def test_closed_standard_output_is_quiet(environment, dataset: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "shardload", command, str(dataset)]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, timeout=60, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_full_standard_output_is_an_error(environment, dataset: Path) -> None:
    words = [sys.executable, "-m", "shardload", "info", str(dataset)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (1, b"shardload: error: standard output: No space left on device\n")


def test_text_that_the_terminal_cannot_encode_is_escaped(environment, dataset: Path) -> None:
    words = [sys.executable, "-m", "shardload", "head", str(dataset), "-n", "1"]
    done = subprocess.run(words, capture_output=True, timeout=60, env=environment | {"PYTHONIOENCODING": "koi8-r"})
    assert done.returncode == 0 and b'"deep": ["\\xe9"]' in done.stdout
