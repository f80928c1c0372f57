from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
from pathlib import Path

import preparing
import pytest

import shardload
from shardload.quantities import format_bytes

JPEG = b"\xff\xd8\xff\xe0"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    for number in range(20):
        path = root / f"class{number % 2}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number} " * number)
    (root / ".hidden").touch()
    return root


def test_summary_on_standard_output_the_rest_on_standard_error(run, texts: Path, tmp_path: Path) -> None:
    status, output, errors = run("pack", texts, tmp_path / "out", "--workers", 2)
    assert status == 0
    size = format_bytes(sum(path.stat().st_size for path in texts.rglob("*.txt")))
    assert errors[:2] == ["schema: text: str, label: int64, path: str", f"packing {size} in 1 unit with 1 worker"]
    assert len(errors) == 3
    assert re.fullmatch(
        r"100 %: 20 samples, [\d,]+ samples/s, .* MB/s, ratio \d\.\d\d, 0\.0 s left, read .* MB/s", errors[2]
    )
    assert output.startswith(f"{tmp_path}/out: 20 samples packed and on disk\n")
    fingerprint = shardload.open(tmp_path / "out").fingerprint
    for expected in (
        f"source +{size} in 1 unit\n",
        "stored .* in 1 shard\n",
        "left out +1 hidden",
        f"fingerprint +{fingerprint}",
    ):
        assert re.search(expected, output)


def test_summary_as_json(run, texts: Path, tmp_path: Path) -> None:
    status, output, _ = run("pack", texts, tmp_path / "out", "--json", "--include", "class1/*", "--include", "*8.txt")
    facts = json.loads(output)
    dataset = shardload.open(tmp_path / "out")
    assert status == 0 and facts["num_samples"] == len(dataset) == 12
    assert facts["fingerprint"] == dataset.fingerprint and facts["skipped"] == {"hidden": 1, "not included": 8}
    assert facts["types"] == {"text": "str", "label": "int64", "path": "str"}
    assert facts["ratio"] == facts["source_bytes"] / facts["stored_bytes"]


def test_options_reach_the_dataset(run, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"text": "bytes"}')
    words = ("--schema", tmp_path / "schema.json", "--compression", "none", "--shard-size", "20KiB")
    assert run("pack", texts, tmp_path / "out", *words)[0] == 0
    manifest = shardload.open(tmp_path / "out").manifest
    assert (manifest.generations[-1].codec, manifest.generations[-1].shard_size, manifest.schema[0].type) == (
        "none",
        20 << 10,
        "bytes",
    )
    assert run("pack", texts, tmp_path / "out", "--replace")[0] == 0
    manifest = shardload.open(tmp_path / "out").manifest
    assert (manifest.generations[-1].codec, manifest.generations[-1].shard_size, manifest.version) == (
        "zstd:3",
        256 << 20,
        2,
    )


def test_several_files(run, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": name}) + "\n")
    assert run("pack", "b.jsonl", "a.jsonl", "out", cwd=tmp_path)[0] == 0
    assert [sample["name"] for sample in shardload.open(tmp_path / "out")] == ["b", "a"]


def test_texts_as_tokens(run, texts: Path, tmp_path: Path) -> None:
    status, output, errors = run("pack", texts, tmp_path / "out", "--tokenizer", "bytes", "--append-token", 256)
    assert status == 0 and errors[0] == "schema: tokens: uint16[*], label: int64, path: str"
    lengths = shardload.open(tmp_path / "out").lengths("tokens")
    assert lengths.tolist() == [len((texts / s["path"]).read_bytes()) + 1 for s in shardload.open(tmp_path / "out")]
    told = f"tokens +{lengths.sum():,}, uint16 by bytes, ids below 257, token 256 after each document\n"
    assert re.search(told, output)
    names = [texts / "class0" / "2.txt", texts / "class1" / "1.txt"]
    words = "--tokenizer", "bytes", "--token-field", "ids", "--json"
    status, output, _ = run("pack", *names, tmp_path / "files", *words)
    assert status == 0 and json.loads(output)["num_tokens"] == sum(name.stat().st_size for name in names)
    assert json.loads(output)["note"].endswith("nothing between documents")
    status, _, errors = run("pack", texts, tmp_path / "no", "--tokenizer", "bytes", "--append-token", "<end>")
    assert status == 1 and errors[-1].startswith("shardload: error: bytes have no token '<end>': give a number")


def test_shuffled(run, texts: Path, tmp_path: Path) -> None:
    status, output, errors = run("pack", texts, tmp_path / "out", "--shuffle", 4, "--compression", "none")
    assert status == 0 and output.startswith(f"{tmp_path}/out: 20 samples packed and on disk\n")
    assert errors[0].startswith("schema: ") and sum(line.startswith("schema: ") for line in errors) == 1
    assert errors[1].startswith("packing ") and errors[3].startswith("shuffling ")
    assert errors[2].startswith("100 %: 20 samples, ") and errors[4].startswith("100 %: 20 samples, ")
    paths = [sample["path"] for sample in shardload.open(tmp_path / "out")]
    assert len(set(paths)) == 20 and paths != sorted(paths)


def test_live_progress_on_a_terminal(environment, texts: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "shardload", "pack", str(texts), str(tmp_path / "out"), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=child, env=environment | {"TERM": "xterm", "COLUMNS": "150"}
    )
    os.close(child)
    shown = b""
    try:
        while select.select([parent], [], [], 60)[0]:
            try:
                shown += os.read(parent, 4096)
            except OSError:
                break
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(parent)
    assert process.returncode == 0 and json.loads(output)["num_samples"] == 20
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"100 % 20 samples, [\d,]+ samples/s, [\d.]+ MB/s, ratio [\d.]+, 0\.0 s left", text)
    assert "\x1b[?25h" in shown.decode()


def test_a_closed_standard_error_does_not_stop_the_packing(environment, texts: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shardload", "pack", str(texts), str(tmp_path / "out")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, timeout=60, env=environment)
    os.close(writing)
    assert done.returncode == 0 and len(shardload.open(tmp_path / "out")) == 20


WRONG_USAGE = [
    ([], "Missing argument 'SOURCE...'. (see shardload pack --help)"),
    (["a"], "Missing argument 'SOURCE...'. (see shardload pack --help)"),
    (["a", "b", "--workers", "0"], "Invalid value for '--workers': 0 is not in the range x>=1."),
    (["a", "b", "--workers", "x"], "Invalid value for '--workers': 'x' is not a valid integer range."),
    (["a", "b", "--compression", "lz4"], "Invalid value for '--compression': unknown compression 'lz4'; use none or"),
    (["a", "b", "--compression", "zstd:99"], "Invalid value for '--compression': zstd level '99' must be an integer"),
    (["a", "b", "--shard-size", "big"], "Invalid value for '--shard-size': it must be a number of bytes or text such"),
    (
        ["a", "b", "--schema", "nowhere"],
        "Invalid value for '--schema': 'nowhere' is neither a JSON object nor a readable",
    ),
    (["a", "b", "--schema", "{"], "Invalid value for '--schema': broken JSON: "),
    (["a", "b", "--schema", '{"a": 1}'], "Invalid value for '--schema': field 'a': 1 is not a type such as int64"),
    (["a", "b", "--schema", '{"a": "int"}'], "Invalid value for '--schema': field 'a': unknown type 'int'; the types"),
    (["a", "b", "--schema", '{"_a": "int8"}'], "Invalid value for '--schema': field name '_a' is reserved"),
    (
        ["a", "b", "--schema", '{"a": "str", "a": "str"}'],
        "Invalid value for '--schema': field 'a' stands in an object twice",
    ),
    (["a", "b", "--schema", "{}"], "Invalid value for '--schema': a schema has 1 to 1024 fields, not 0"),
    (["a", "b", "--fast"], "No such option"),
    (["a", "b", "--append-token", "1"], "--append-token goes with --tokenizer (see shardload pack --help)"),
    (["a", "b", "--shuffle", "-1"], "Invalid value for '--shuffle': -1 is not in the range 0<=x<="),
    (["a", "b", "--append", "--replace"], "--append and --replace exclude each other (see shardload pack --help)"),
    (["a", "b", "--on-error", "skip"], "Invalid value for '--on-error': 'skip' is not one of 'raise', 'reject'."),
    (["a", "b", "--max-rejects", "3"], "--max-rejects goes with --on-error reject (see shardload pack --help)"),
    (["a", "b", "--on-error", "reject", "--max-rejects", "-1"], "Invalid value for '--max-rejects': -1 is not in the"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_USAGE, ids=[" ".join(words) for words, _ in WRONG_USAGE])
def test_wrong_usage_has_status_2(words: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    from shardload.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["pack", *words]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith(f"shardload: error: {message}") and errors.count("\n") == 1


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


def write(name: str, data: bytes):
    return lambda root: (root / name).write_bytes(data)


GOOD = b'{"a": 1}\n'
BAD_SOURCES = [
    (lambda root: root.rmdir(), "source does not exist"),
    (lambda root: None, "source holds no file to pack"),
    (write(".hidden", b""), "source holds no file to pack; left out: 1 hidden"),
    (lambda root: (root / "a.txt").symlink_to("/proc/self/mem"), "source/a.txt cannot be read: Input/output error"),
    (lambda root: os.mkfifo(root / "a.txt"), "source/a.txt is a FIFO; only regular files can be packed"),
    (lambda root: make_socket(root / "a.txt"), "source/a.txt is a socket; only regular files can be packed"),
    (lambda root: (root / "a\nb\x1b").symlink_to("gone"), "source/a b\\x1b is a link that leads nowhere"),
    (
        write("a.txt", b"abc\xff"),
        "source/a.txt is not UTF-8: byte 3 is 0xff; to keep the bytes as they are, give --schema",
    ),
    (
        lambda root: write(os.fsdecode(b"\xff.txt"), b"")(root),
        "source/b'\\xff.txt' is a file name that is not UTF-8; rename it",
    ),
    (
        lambda root: (write("a.jpg", JPEG)(root), write("b.txt", b"")(root)),
        "source holds files of several kinds (1 .jpg,",
    ),
    (write("a.jpg", b"no image"), "source/a.jpg: field 'image': expected jpeg, got bytes that start with b'no image'"),
    (write("a.jsonl", b""), "source is empty: no sample to pack"),
    (write("a.jsonl", GOOD * 2 + b'{"a": \n'), "source/a.jsonl line 3: broken JSON: Expecting value at column 7"),
    (write("a.jsonl", GOOD + b'{"a": 1, "a": 2}\n'), "source/a.jsonl line 2: field 'a' stands in an object twice"),
    (write("a.jsonl", b'{"_id": 1}\n'), "source/a.jsonl line 1: field name '_id' is reserved: names starting with"),
    (write("a.jsonl", b'{"a": "\xff"}\n'), "source/a.jsonl line 1 is not UTF-8: byte 7 of the line is 0xff"),
    (
        write("a.jsonl", GOOD * 1001 + b'{"a": "x"}\n'),
        "source/a.jsonl line 1002: field 'a': expected int64, got str of",
    ),
    (write("a.jsonl.gz", b"\x1f\x8b\x08\0"), "source/a.jsonl.gz is damaged or was cut short: Compressed file ended"),
    (
        write("a.jsonl.zst", b"\x28\xb5\x2f\xfd"),
        "source/a.jsonl.zst is damaged or was cut short: a zstd frame has no end",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD_SOURCES, ids=[message[:50] for _, message in BAD_SOURCES])
def test_bad_source_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch, capsys, make, message: str) -> None:
    from shardload.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    before = sorted(os.listdir("."))
    assert main(["pack", "source", "out"]) == 1
    output, errors = capsys.readouterr()
    [told] = [line for line in errors.splitlines() if not line.startswith(("schema: ", "packing "))]
    assert output == "" and told.startswith(f"shardload: error: {message}")
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"a": "int32[2]"}, "source.jsonl line 1: field 'a': expected int32[2], got int 1"),
        ({"a": "str"}, "source.jsonl line 1: field 'a': expected str, got int 1"),
        ({"b": "str"}, "source.jsonl line 1: field 'b': expected str, got no such field in the sample"),
    ],
)
def test_wrong_type_or_shape(refused, tmp_path: Path, monkeypatch, schema: dict[str, str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.jsonl").write_bytes(GOOD)
    assert refused("pack", "source.jsonl", "out", "--schema", json.dumps(schema)).startswith(message)
    assert os.listdir(".") == ["source.jsonl"]


def test_target_that_exists(refused, run, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").touch()
    assert "is not empty and holds 'keep', which is no part of a dataset" in refused("pack", texts, tmp_path / "full")
    assert "exists and is not a directory" in refused("pack", texts, tmp_path / "full" / "keep")
    assert "the target lies inside the source" in refused("pack", texts, texts / "out")
    run("pack", texts, tmp_path / "out")
    assert "exists and holds a dataset: choose another target" in refused("pack", texts, tmp_path / "out")
    assert len(shardload.open(tmp_path / "out")) == 20


def test_rejects_in_summary_progress_and_json(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD * 3 + b"{\n" + GOOD)
    words = ("pack", tmp_path / "rows.jsonl", tmp_path / "out", "--on-error", "reject")
    status, output, errors = run(*words)
    assert status == 0 and "4 samples packed and on disk" in output
    assert re.search(r"rejected +1, told in rejects\.jsonl\n", output) and ", 1 rejected, " in errors[-1]
    status, output, _ = run(*words, "--replace", "--json", "--max-rejects", "1")
    assert status == 0 and json.loads(output)["num_rejects"] == 1
    status, output, errors = run(*words, "--replace", "--max-rejects", "0")
    assert status == 1 and "1 rejects so far, and at most 0 may be set aside (--max-rejects" in errors[-1]
    assert "go on with the same command and --continue" in errors[-1]
    assert run(*words, "--replace", "--max-rejects", "1", "--continue")[0] == 0
    assert shardload.open(tmp_path / "out").manifest.version == 3


def test_append(refused, run, texts: Path, tmp_path: Path) -> None:
    assert "holds no dataset to append to" in refused("pack", texts, tmp_path / "out", "--append")
    assert not (tmp_path / "out").exists()
    run("pack", texts, tmp_path / "out")
    num_samples = len(shardload.open(tmp_path / "out"))
    assert run("pack", texts, tmp_path / "out", "--append")[0] == 0
    dataset = shardload.open(tmp_path / "out")
    assert (len(dataset), dataset.manifest.version) == (2 * num_samples, 2)
    assert dataset[num_samples] == dataset[0]
    assert run("pack", texts, tmp_path / "out", "--replace")[0] == 0


HERE = Path(preparing.__file__).parent
"""Where a command finds the functions: beside where it is given."""


def test_steps_are_done_in_the_order_of_the_command_line(run, tmp_path: Path) -> None:
    """A length before and after a map that changes it: the order over three options counts."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"number": n, "text": "x" * n}) + "\n" for n in range(20)))
    long, short = ("--step", "length:text,min=5"), ("--step", "length:text,max=16")
    clean, keep = ("--map", "preparing:clean"), ("--filter", "preparing:keep")
    found = {}
    for name, steps in (("a", (*short, *clean, *long, *keep)), ("b", (*clean, *long, *keep, *short))):
        status, output, errors = run("pack", tmp_path / "rows.jsonl", tmp_path / name, *steps, "--workers", 1, cwd=HERE)
        assert status == 0, errors
        found[name] = [(sample["number"], sample["part"]) for sample in shardload.open(tmp_path / name)]
        assert re.search(r"  stages +read \d+ % \([\d.,]+ MB/s a worker\), map \d+ %", output)
        assert re.search(r"  CPU +[\d.]+ s, [\d.]+ cores in use\n", output) and re.search(
            r"  dropped +1\d samples", output
        )
    rows = [(n, part, "x" * n * (part if part < 9 else 1)) for n in range(20) for part in parts(n)]
    rows = [row for row in rows if (row[0] + row[1]) % 5 and len(row[2]) >= 5]
    assert found["a"] == [(n, part) for n, part, text in rows if n <= 16]
    assert found["b"] == [(n, part) for n, part, text in rows if len(text) <= 16] != found["a"]


def parts(number: int) -> list[int]:
    return {0: [], 1: [0, 1, 2]}.get(number % 7, [9])


def test_dry_run(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": [1, 2]}\n{"a": 2, "b": [3]}\n{\n')
    arguments = ("pack", tmp_path / "rows.jsonl", tmp_path / "out", "--dry-run", "--on-error", "reject")
    schema = ("--schema", '{"a": "int64", "b": "int32[*]"}')
    status, output, _ = run(*arguments, *schema)
    assert status == 0 and not (tmp_path / "out").exists()
    assert output.startswith(f"{tmp_path}/out: nothing was written; about 2 samples would be packed\n")
    assert "  schema    a: int64, b: int32[*]\n" in output and "would be rejected: " in output
    assert output.endswith("sample 1\n  a  2\n  b  int32[1]: 3\n")
    status, output, _ = run(*arguments, *schema, "--json")
    facts = json.loads(output)
    assert facts["dry_run"] and facts["first_samples"][0]["b"] == {"dtype": "int32", "shape": [2], "first": [1, 2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--map", "clean"), "map must be named as pkg.module:function"),
        (("--step", "nfd:text"), "a step is nfc, length, image"),
        (("--map-timeout", "5"), "--map-timeout goes with --map or --filter"),
        (("--map", "preparing:same", "--map-timeout", "0"), "Invalid value for '--map-timeout'"),
    ],
)
def test_wrong_usage_of_steps(run, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    status, _, errors = run("pack", tmp_path / "rows.jsonl", tmp_path / "out", *options, cwd=HERE)
    assert status == 2 and message in errors[-1] and not (tmp_path / "out").exists()


def test_duplicates(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": 1}\n{"a": 1, "b": 2}\n{"a": 1, "b": 1}\n')
    for fields, number in (("all", 1), ("a", 2)):
        status, output, errors = run("pack", tmp_path / "rows.jsonl", tmp_path / fields, "--dedup", fields)
        assert status == 0 and f"  duplicates   {number}\n" in output
        assert any(line.startswith("deduplicating ") for line in errors)
