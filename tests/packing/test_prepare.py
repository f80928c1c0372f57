"""Maps and filters: in order, on any number of processes, and whatever the functions do."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
from faults import in_child
from killing import Counted, KilledAt
from PIL import Image

import shardload
from shardload.errors import PackError
from shardload.packing import Progress, pack
from shardload.packing.processes import Workers
from shardload.reader.verify import verify_dataset
from shardload.writer.journal_lines import decode_line

pytestmark = pytest.mark.usefixtures("quick_workers")

NUM_SAMPLES = 200
STEPS: dict[str, Any] = {"map": ["preparing:same", preparing.clean], "filter": preparing.keep}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered samples with a bad line after each fiftieth. Read only."""
    path = tmp_path_factory.mktemp("source") / "rows.jsonl"
    with path.open("w") as file:
        for number in range(NUM_SAMPLES):
            file.write(json.dumps({"_raw": 1, "number": number, "text": f"{number} " * (number % 60)}) + "\n")
            if number % 50 == 49:
                file.write("{\n")
    return path


def expected() -> Iterator[dict[str, Any]]:
    """What the steps make of the source, written anew."""
    for number in range(NUM_SAMPLES):
        text = f"{number} " * (number % 60)
        made = {0: [], 1: [(part, text * part) for part in range(3)]}.get(number % 7, [(9, text)])
        yield from (
            {"_raw": 1, "text": text, "number": number, "part": part} for part, text in made if (number + part) % 5
        )


def without_raw(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "_raw"}


def options(**more: Any) -> dict[str, Any]:
    usual = {
        "unit_size": 8_000,
        "shard_size": "16KiB",
        "on_error": "reject",
        "workers": 1,
        "compression": "none",
        "schema": {"text": "str", "number": "int64", "part": "int8", "raw": "int64?"},
        "map": ["preparing:same", preparing.clean, "preparing_raw:renamed"],
        "filter": preparing.keep,
    }
    return usual | more


@pytest.fixture(autouse=True)
def renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, beside where the command is given: its function takes a name that no field can have."""
    module = tmp_path / "preparing_raw.py"
    module.write_text("def renamed(sample):\n    del sample['_raw']\n    return sample\n")
    monkeypatch.chdir(tmp_path)
    return module


def check(target: Path) -> None:
    samples = [{name: value for name, value in sample.items() if name != "raw"} for sample in shardload.open(target)]
    assert samples == [without_raw(sample) for sample in expected()]


def test_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path, source: Path, digests) -> None:
    taken = []
    # With 4, and duplicates too, in test_dedup.py.
    for workers in (1, 2):
        summary = pack(source, tmp_path / f"{workers}", **options(workers=workers, operations=Counted()))
        assert summary.num_workers == min(workers, summary.num_units) and summary.num_rejects == 4
        check(tmp_path / f"{workers}")
        taken.append(digests(tmp_path / f"{workers}"))
    assert taken[0] == taken[1] and summary.num_units > 3
    assert summary.num_dropped == sum(n % 7 == 0 or (n % 7 > 1 and (n + 9) % 5 == 0) for n in range(NUM_SAMPLES))
    assert summary.num_split == sum(n % 7 == 1 for n in range(NUM_SAMPLES))


@pytest.mark.parametrize(
    ("look_seconds", "min_waiting", "num_started"),
    [(60, 0, 0), (0, 2, 2), pytest.param(60, 2, 2, marks=pytest.mark.slow)],
)
def test_one_packs_for_all_as_long_as_it_keeps_them_busy(
    tmp_path: Path, source: Path, digests, monkeypatch, look_seconds: float, min_waiting: float, num_started: int
) -> None:
    """Others take over after the first unit, or in the midst of it, and nothing shows that it was begun."""
    monkeypatch.setattr("shardload.packing.alone.LOOK_SECONDS", look_seconds)
    monkeypatch.setattr("shardload.packing.alone.MIN_WAITING", min_waiting)
    monkeypatch.setattr("shardload.packing.unit.REPORT_SECONDS", 0)
    started: list[int] = []
    start = Workers.start
    monkeypatch.setattr(Workers, "start", lambda self, number: (started.append(number), start(self, number))[1])
    more = options(shard_size="1MiB", operations=Counted())
    del more["workers"]
    told: list[Progress] = []
    pack(source, tmp_path / "two", workers=2, progress=told.append, **more)
    assert sum(started) == num_started and (told[-1].num_workers, told[-1].done.num_rejects) == (2, 4)
    check(tmp_path / "two")
    pack(source, tmp_path / "one", workers=1, **more)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_a_single_unit_is_mapped_by_several_processes(tmp_path: Path, source: Path, monkeypatch) -> None:
    monkeypatch.setattr("shardload.preparation.pool.BATCH_SAMPLES", 9)
    summary = pack(source, tmp_path / "three", **options(workers=3, unit_size="1MiB"))
    check(tmp_path / "three")
    assert (summary.num_units, summary.num_workers) == (1, 1)


# tools/test --slow tests/packing/test_prepare.py -k killed_at_operations
@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_operations_and_continued(tmp_path: Path, source: Path, digests, kills: int) -> None:
    """Most parts end between the samples that one was split into."""
    operations = Counted()
    more = {
        "unit_size": 60_000,
        "shard_size": "9KiB",
        "map": ["preparing_raw:renamed", "preparing:many"],
        "filter": None,
    }
    pack(source, tmp_path / "whole", **options(operations=operations, **more))
    whole, num_inside = digests(tmp_path / "whole"), 0
    for number in (operations.count * kill // (kills + 1) for kill in range(1, kills + 1)):
        target, workers = tmp_path / f"{number}", 1 + number % 2
        work = lambda: pack(source, target, **options(operations=KilledAt(number), workers=workers, **more))  # noqa: E731, B023
        assert in_child(work, group=True) in (0, -signal.SIGKILL)
        steps = lines_of(target / ".work/journal")
        num_inside += bool(steps and steps[-1]["outputs"])
        pack(source, target, **options(resume=True, operations=Counted(), **more))
        assert digests(target) == whole, number
        shutil.rmtree(target)
    assert num_inside


def lines_of(journal: Path) -> list[dict[str, Any]]:
    lines = journal.read_bytes().splitlines() if journal.exists() else []
    return [facts for line in lines if (facts := decode_line(line + b"\n")) is not None]


def test_types_of_what_a_map_gives(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"number": n}) + "\n" for n in range(50)))
    summary = pack(rows, tmp_path / "out", map="preparing:typed", workers=1)
    assert summary.types == {
        **{"tokens": "uint16[*]", "fixed": "float32[2,3]", "small": "int8", "text": "str", "bytes": "bytes"},
        **{"image": "jpeg", "flag": "bool", "tree": "json", "half": "float64?"},
    }
    dataset = shardload.open(tmp_path / "out")
    for number, sample in enumerate(dataset):
        for name, value in preparing.typed({"number": number}).items():
            assert np.array_equal(sample[name], value) if isinstance(value, np.ndarray) else sample[name] == value
    # Types of the source that still hold stay.
    csv = tmp_path / "rows.csv"
    csv.write_text("number,text\n1,a\n2,b\n")
    types = {"number": "int64", "text": "str"}
    assert pack(csv, tmp_path / "csv", map="preparing:same", workers=1).types == types


REASONS = {
    30: "map preparing:bad took longer than 0.5 s (--map-timeout) and was ended",
    40: "map preparing:bad took longer than 0.5 s (--map-timeout) and was ended",
    50: "map preparing:bad: its process was killed by SIGKILL, perhaps for want of memory",
    51: "map preparing:bad: its process was killed by SIGKILL, perhaps for want of memory",
    60: "map preparing:bad raised ValueError: no good (preparing.py line N)",
    61: "map preparing:bad gave int; a map gives a sample (a dict), None or a list of samples",
    62: "map preparing:bad gave a list with str; a map gives a sample (a dict), None or a list of samples",
    63: "field 'number': expected int64, got str of length 5",
    64: "map preparing:bad gave values that cannot leave its process: Can't pickle local object 'bad.<locals>.<lambda>'",
    65: "map preparing:bad gave a sample with int as the name of a field",
    66: "map preparing:bad raised SystemExit: 2 (preparing.py line N)",
    67: "map preparing:bad: its process ended with status 3",
    68: "map preparing:bad: its process was killed by SIGSEGV",
    69: "map preparing:bad gave generator; a map gives a sample (a dict), None or a list of samples",
}


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hundred") / "rows.jsonl"
    path.write_text("".join(json.dumps({"number": n}) + "\n" for n in range(100)))
    return path


def test_whatever_a_function_does_is_told_and_set_aside(tmp_path: Path, hundred: Path, capfd) -> None:
    summary = pack(
        *(hundred, tmp_path / "out"), map="preparing:bad", map_timeout=0.5, on_error="reject", workers=1,
        schema={"number": "int64"}, dictionary="off",
    )  # fmt: skip
    told = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    found = {int(one["place"].rpartition(" ")[2]) - 1: re.sub(r"line \d+\)", "line N)", one["reason"]) for one in told}
    assert found == REASONS and summary.num_rejects == len(REASONS) == 100 - summary.num_samples
    assert shardload.open(tmp_path / "out").column("number").tolist() == [n for n in range(100) if n not in REASONS]
    assert not verify_dataset(tmp_path / "out")
    output, errors = capfd.readouterr()
    assert "printed" in errors and not output


@pytest.mark.slow  # tools/test --slow tests/packing/test_prepare.py -k two_hung
def test_two_hung_processes_of_two_workers_are_replaced(tmp_path: Path, hundred: Path) -> None:
    summary = pack(
        *(hundred, tmp_path / "out"), map="preparing:bad", map_timeout=0.5, on_error="reject", workers=2, unit_size=700,
        schema={"number": "int64"},
    )  # fmt: skip
    assert summary.num_workers == 2 and summary.num_rejects == len(REASONS)


@pytest.mark.parametrize(("number", "workers"), [(30, 1), (50, 2), (60, 1)])
def test_each_is_an_error_by_name(tmp_path: Path, number: int, workers: int) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"number": n}) + "\n" for n in (*range(20), number, *range(20))))
    with pytest.raises(PackError) as caught:
        pack(
            *(source, tmp_path / "out"), map="preparing:bad", map_timeout=0.5, schema={"number": "int64"}, unit_size=100,
            workers=workers,
        )  # fmt: skip
    text = re.sub(r"line \d+\)", "line N)", str(caught.value))
    assert text.startswith(f"{source} line 21: {REASONS[number]}")


def test_no_process_outlives_a_pack_that_is_killed(tmp_path: Path, hundred: Path) -> None:
    """Not even one in a function that never returns."""
    script = (
        "import os, signal, sys, threading, time, shardload\n"
        "def end():\n"
        "    while not os.path.exists(os.environ['HANGS']):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=end).start()\n"
        "shardload.pack(sys.argv[1], sys.argv[2], map='preparing:hang', workers=1, schema={'number': 'int64'})\n"
    )
    paths = os.pathsep.join([str(Path(shardload.__file__).parents[1]), str(Path(preparing.__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(hundred), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": paths, "HANGS": str(tmp_path / "hangs")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    # The kernel ends it with its parent; whoever adopts it may never ask for its status.
    assert in_time(lambda: ended((tmp_path / "hangs").read_text()))


def ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def in_time(condition: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 20
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return condition()


def test_another_function_or_another_text_of_it_is_refused_by_name(tmp_path: Path, source: Path, renamed: Path) -> None:
    target = tmp_path / "out"
    work = lambda: pack(source, target, **options(operations=KilledAt(80)))  # noqa: E731
    assert in_child(work, group=True) == -signal.SIGKILL
    with pytest.raises(
        PackError, match=r'option steps was \["map preparing:same",.* when it was begun and is \["map prep'
    ):
        pack(source, target, **options(resume=True, map=["preparing:same", "preparing_raw:renamed"]))
    text = renamed.read_text()
    renamed.write_text(text + "# another\n")
    with pytest.raises(
        PackError, match=r'option steps, source of preparing_raw:renamed was "\w{64}" when it was begun and is "'
    ):
        pack(source, target, **options(resume=True))
    renamed.write_text(text)
    pack(source, target, **options(resume=True))
    check(target)


def local(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"map": "nothing"}, ValueError, "map must be named as pkg.module:function, not 'nothing'"),
        ({"map": "nothing:there"}, PackError, "map nothing:there: nothing cannot be imported: ModuleNotFoundError: No"),
        ({"map": "preparing:there"}, PackError, "map preparing:there: preparing has no there"),
        ({"filter": "preparing:Sample.x"}, PackError, "filter preparing:Sample.x: preparing has no Sample.x"),
        ({"map": lambda sample: sample}, ValueError, "map: other processes cannot import <function"),
        ({"map": 5}, ValueError, "map: other processes cannot import 5"),
        ({"map": "preparing:same", "map_timeout": 0}, ValueError, "map_timeout must be above 0 seconds, not 0"),
        ({"map_timeout": 5}, ValueError, "map_timeout goes with map or filter"),
        ({"filter": "preparing:no_bool"}, PackError, "line 1: filter preparing:no_bool gave str; a filter gives True or"),
        ({"steps": "nfd:text"}, ValueError, "a step is nfc, length, image, map or filter, a colon and a field"),
    ],
)  # fmt: skip
def test_functions_that_cannot_be(tmp_path: Path, hundred: Path, more, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        pack(hundred, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_all_dropped(tmp_path: Path, hundred: Path) -> None:
    with pytest.raises(PackError, match=r"the steps dropped all of the first samples.* give them with --schema"):
        pack(hundred, tmp_path / "out", map="preparing:same", steps="length:text,min=1")
    with pytest.raises(PackError, match=r"holds no sample to pack: the steps dropped 100$"):
        pack(hundred, tmp_path / "out", map="preparing:same", steps="length:text,min=1", schema={"number": "int64"})


def test_images_become_small_jpegs(tmp_path: Path) -> None:
    """In a folder of both kinds, by steps alone; one that is none is told."""
    source = tmp_path / "source"
    source.mkdir()
    for number, kind in enumerate(("PNG", "PNG", "PNG")):
        Image.new("RGB", (64 + number, 32)).save(source / f"{number}.png", kind)
    summary = pack(source, tmp_path / "out", steps="image:image,shorter=16", workers=1)
    assert summary.types["image"] == "jpeg"
    found = [Image.open(io.BytesIO(sample["image"])) for sample in shardload.open(tmp_path / "out")]
    assert [(image.format, image.size) for image in found] == [
        ("JPEG", (32, 16)),
        ("JPEG", (32, 16)),
        ("JPEG", (33, 16)),
    ]
    # The same with a schema, in an append too.
    (source / "3.png").write_bytes((source / "0.png").read_bytes()[:50])
    steps = {"steps": ["image:image,shorter=16"], "workers": 1}
    with pytest.raises(PackError, match=r"3\.png: image:image,shorter=16: field 'image' is no image that can be read"):
        pack(source, tmp_path / "given", schema={"image": "jpeg", "path": "str"}, **steps)
    assert pack(source, tmp_path / "out", append=True, on_error="reject", **steps).num_rejects == 1
    assert len(shardload.open(tmp_path / "out")) == 6


def test_lengths_in_tokens_are_those_after_the_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": "e\u0301" * n}) + "\n" for n in range(20)))
    summary = pack(
        *(source, tmp_path / "out"), tokenizer="bytes", append_token=0, workers=1,
        steps=["length:tokens,min=5,max=9,unit=tokens", "nfc:text", "length:text,max=3"],
    )  # fmt: skip
    # Two bytes a letter in normal form, and the token at the end.
    assert [len(sample["tokens"]) for sample in shardload.open(tmp_path / "out")] == [5, 7]
    assert (summary.num_dropped, summary.num_tokens) == (18, 12)
