"""`shardload plan`: the figures of the contract, JSON of one form, refusals in one sentence, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree
from pathlib import Path
from typing import Literal

import msgspec
import pytest

import shardload
from shardload.capacity.picture import SUFFIXES
from shardload.cli import main

TRAINING = ["--gpus", "64", "--samples-per-gpu", "12.5", "--sample-size", "110kB", "--num-samples", "1.28M"]
EVERYTHING = [*TRAINING, "--params", "70B", "--result-size", "400"]
Kind = Literal["sequential write", "sequential read", "random read"]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing more, nothing less, and no number in place of a text."""


class Flow(Strict):
    name: str
    kind: Kind
    request_bytes: float
    sustained_bytes_per_second: float | None
    peak_bytes_per_second: float
    needed_bytes_per_second: float
    sustained_requests_per_second: float | None
    peak_requests_per_second: float
    measured_bytes_per_second: float | None


class Verdict(Strict):
    state: Literal["enough", "short", "unknown"]
    factor: float | None
    limit: str
    reasons: list[str]


class Stage(Strict):
    stage: Literal["ingest", "data preparation", "training reads", "checkpoint & restore", "inference"]
    flows: list[Flow]
    capacity_bytes: float | None
    written_bytes: float | None
    missing: list[str]
    verdict: Verdict


class Speed(Strict):
    kind: Kind
    request_bytes: int
    num_requests: int
    num_bytes: int
    seconds: float
    num_at_once: int
    median_seconds: float
    slow_seconds: float
    from_memory: bool
    limited_by_processor: bool
    bytes_per_second: float
    requests_per_second: float


class Measurement(Strict):
    path: str
    file_system: str
    free_bytes: int
    direct: bool
    speeds: list[Speed]
    notes: list[str]


class Step(Strict):
    stage: str
    name: str
    formula: str
    inputs: dict[str, float]
    value: float
    unit: str
    sources: list[str]


class Plan(Strict):
    workload: dict[str, float | None]
    values: dict[str, float]
    stages: list[Stage]
    measurement: Measurement | None
    steps: list[Step] | None = None
    explanation: list[str] | None = None


@pytest.fixture
def planned(capsys):
    """Runs the command with --json in this process, and returns the checked document."""

    def call(*words: object) -> Plan:
        assert main(["plan", *map(str, words), "--json"]) == 0
        plan = msgspec.json.decode(capsys.readouterr().out, type=Plan)
        assert len(plan.stages) == 5
        return plan

    return call


@pytest.fixture
def told(capsys):
    """Runs the command in this process, and returns the lines it prints."""

    def call(*words: object) -> list[str]:
        assert main(["plan", *map(str, words)]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def test_the_contract(run):
    status, output, errors = run("plan", "--params", "175e9", "--gpus", 1024)
    assert (status, errors) == (0, [])
    assert "a checkpoint: 2.45 TB in 3 min every 1 h: 13.6 GB/s, 13.3 MB/s by each of 1,024 writers" in output
    assert "a restore: 8 times that in 3 min: 109 GB/s" in output
    row = next(line for line in output.splitlines() if line.startswith("checkpoint & restore"))
    assert re.split(r"  +", row)[2:] == ["681 MB/s", "13.6 GB/s", "12,981", "9.8 TB"]


@pytest.mark.parametrize("params", ["500e9", "500B", "0.5T", "500000000000"])
def test_numbers_in_all_spellings(planned, params):
    plan = planned("--params", params, "--checkpoint-interval", "60min", "--checkpoint-share", "5 %")
    assert plan.values["checkpoint_bytes"] == 7e12
    assert plan.values["checkpoint_seconds"] == pytest.approx(180)


def test_json_has_one_form(planned):
    plan = planned(*EVERYTHING)
    assert [stage.verdict.state for stage in plan.stages] == ["unknown"] * 5 and plan.measurement is None
    assert plan.explanation is None and plan.steps is None
    assert [len(stage.flows) for stage in plan.stages] == [1, 2, 1, 2, 2]
    explained = planned(*EVERYTHING, "--explain")
    assert explained.stages == plan.stages
    assert {step.name: step.value for step in explained.steps} == plan.values
    assert "sources" in explained.explanation
    sparse = planned("--params", "1B")
    assert [stage.missing for stage in sparse.stages] == [
        ["--num-samples", "--sample-size"],
        ["--num-samples", "--sample-size"],
        ["--gpus", "--sample-size", "--samples-per-gpu"],
        [],
        ["--gpus", "--sample-size", "--inference-samples-per-gpu"],
    ]


def test_every_fact_has_an_option_that_reaches_it(planned):
    from shardload.cli.plan import _FACTS

    alone = {"checkpoint_seconds", "step_seconds", "batch_size", "batch_tokens", "bytes_per_token"}
    words, wanted = [], {}
    for number, (name, (option, kind, _)) in enumerate(_FACTS.items(), 3):
        if name not in alone:
            wanted[name] = number / 100 if kind._metavar == "SHARE" else number
            words += [option, wanted[name]]
    wanted["num_checkpoint_writers"] = wanted["num_gpus"]
    words += ["--checkpoint-writers", wanted["num_gpus"]]
    workload = planned(*words).workload
    assert {name: workload[name] for name in wanted} == wanted
    assert set(workload) == set(wanted) | alone
    words = [
        "--checkpoint-time",
        "1min",
        "--step-time",
        "2s",
        "--batch-tokens",
        "8k",
        "--bytes-per-token",
        "2",
        "--params",
        "1",
    ]
    workload = planned(*words).workload
    names = ["checkpoint_seconds", "step_seconds", "batch_tokens", "bytes_per_token"]
    assert [workload[name] for name in names] == [60, 2, 8000, 2]
    assert planned("--params", "1", "--step-time", "2", "--batch-size", "3").workload["batch_size"] == 3


def test_explanations_are_for_people(told):
    lines = told(*EVERYTHING, "--explain")
    assert "  checkpoint_bytes = num_params * bytes_per_param" in [line.partition(" [")[0] for line in lines]
    assert "    = 70000000000 * 14 = 980 GB" in lines
    assert any("https://arxiv.org/abs/1910.02054" in line for line in lines)


def test_size_and_number_come_from_a_dataset(planned, mixed):
    manifest = shardload.open(mixed).manifest
    workload = planned("--dataset", mixed, "--gpus", 8, "--samples-per-gpu", 100).workload
    assert workload["num_samples"] == 500
    assert workload["sample_bytes"] == pytest.approx(manifest.num_bytes / 500)


def test_a_dataset_without_samples_is_refused(tmp_path, capsys):
    with shardload.ShardWriter(tmp_path / "empty", {"number": "int64"}):
        pass
    assert main(["plan", "--dataset", str(tmp_path / "empty")]) == 2
    assert "has no samples to plan with" in capsys.readouterr().err
    assert main(["plan", "--dataset", str(tmp_path / "none")]) == 1
    assert "none is not a dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing can be planned from that: give --params, or"),
        ("--gpus 8", "nothing can be planned from that"),
        ("--gpus 0", "--gpus must be from 1 to 10,000,000, not 0"),
        ("--gpus -8", "'--gpus': it must be a positive number"),
        ("--gpus 1.5", "--gpus must be a whole number, not 1.5"),
        ("--gpus 1e30", "--gpus must be from 1 to"),
        ("--params nan", "'--params': it must be a positive number"),
        ("--params inf", "'--params': it must be a positive number"),
        ("--params 1e999", "'--params': it must be a positive number"),
        ("--params 1e300", "--params must be from 1 to 1e+15, not 1e+300"),
        ("--params 0", "--params must be from 1 to 1e+15, not 0"),
        ("--params 175Q", "'--params': it must be a positive number such as 1000, 175e9, 175B or 7T, not '175Q'"),
        ("--params 1B --checkpoint-share 5", "'--checkpoint-share': it must be a share between 0 and 100 %"),
        ("--params 1B --checkpoint-share 100%", "'--checkpoint-share': it must be a share between"),
        ("--params 1B --checkpoint-share 0", "'--checkpoint-share': it must be a share between"),
        (
            "--params 1B --checkpoint-interval 2fortnights",
            "'--checkpoint-interval': it must be a positive time such as",
        ),
        ("--params 1B --checkpoint-interval 0", "--checkpoint-interval must be from"),
        (
            "--params 1B --checkpoint-interval 10min --checkpoint-time 15min",
            "--checkpoint-interval of 600 s is no longer",
        ),
        ("--params 1B --checkpoint-share 5% --checkpoint-time 15min", "--checkpoint-share and --checkpoint-time both"),
        ("--params 1B --restore-ratio 0", "--restore-ratio must be from 0.001 to"),
        ("--params 1B --restore-time 100y", "'--restore-time': it must be a positive time"),
        ("--params 1B --gpus 8 --checkpoint-writers 9", "--checkpoint-writers of 9 are more than --gpus, 8"),
        ("--gpus 8 --sample-size 5parsec", "'--sample-size': it must be a number of bytes"),
        ("--gpus 8 --sample-size 0", "'--sample-size': it must be at least 1 byte"),
        ("--gpus 8 --samples-per-gpu 9 --step-time 1s", "--samples-per-gpu and --step-time both tell"),
        ("--gpus 8 --batch-size 9", "--batch-size goes with --step-time"),
        ("--gpus 8 --step-time 1s --batch-size 9 --batch-tokens 9", "--batch-size and --batch-tokens both tell"),
        ("--gpus 8 --bytes-per-token 2", "--bytes-per-token goes with --batch-tokens"),
        ("--dataset somewhere --sample-size 5", "--dataset tells what --sample-size says: leave one out"),
        ("--dataset somewhere --num-samples 5", "--dataset tells what --num-samples says: leave one out"),
        ("--params 1B --prefetch-batches 0", "--prefetch-batches must be from 1"),
        ("--params 1B --plot plan.gif", "--plot: 'plan.gif' must end in .pdf, .png or .svg"),
        ("--params 1B --plot nowhere/plan.svg", "--plot: there is no directory for 'nowhere/plan.svg'"),
        ("--params 1B --measure nowhere", "'--measure': Directory 'nowhere' does not exist"),
        ("--params 1B --measure-size 5M", "--measure-size and --measure-time go with --measure PATH"),
        ("--params 1B --measure . --measure-size 5k", "--measure-size must be at least 1048576"),
        ("--params 1B --measure . --measure-time 0", "--measure-time must be from 10 ms to 1 h"),
        ("--params 1B --measure . --measure-time 9d", "--measure-time must be from 10 ms to 1 h"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words.split()]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and errors.startswith("shardload: error: ")
    assert message in errors and len(errors) < 250
    assert os.listdir(tmp_path) == []


def test_bad_input_to_the_real_command(refused):
    assert refused("plan", "--gpus", 0, status=2).startswith("--gpus must be from 1 to 10,000,000, not 0")


SMALL = ["--measure-size", "4MiB", "--measure-time", "6s"]


def test_a_measured_plan_has_a_verdict_for_each_stage(tmp_path, planned, told):
    plan = planned(*EVERYTHING, "--measure", tmp_path, *SMALL)
    assert plan.measurement.path == str(tmp_path)
    speeds = {speed.kind: speed for speed in plan.measurement.speeds}
    assert set(speeds) == {"sequential write", "sequential read", "random read"}
    assert speeds["random read"].request_bytes == 110_000
    for stage in plan.stages:
        for flow in stage.flows:
            assert flow.measured_bytes_per_second == speeds[flow.kind].bytes_per_second
        assert stage.verdict.reasons and (stage.verdict.factor is None) == (stage.verdict.state == "unknown")
    # Ten exabytes are nowhere free, and a byte a second is always reached.
    plan = planned("--params", "700T", "--measure", tmp_path, *SMALL)
    assert plan.stages[3].verdict.state == "short" and plan.stages[3].verdict.factor > 1000
    lines = told("--params", "700T", "--measure", tmp_path, *SMALL)
    assert any(re.search(r"short by [\d,.e+]+x \((space|restore|checkpoint)\)$", line) for line in lines)
    assert any(line.startswith("short: checkpoint & restore: ") and "are free" in line for line in lines)
    assert any(line.startswith("note: ") and "one process on one machine" in line for line in lines)
    slow = ["--params", "1", "--checkpoint-interval", "1d", "--restore-ratio", "1"]
    assert planned(*slow, "--measure", tmp_path, *SMALL).stages[3].verdict.state in ("enough", "unknown")
    assert os.listdir(tmp_path) == []


def test_a_place_without_room_is_an_error_that_says_so(tmp_path, run):
    status, output, errors = run("plan", "--params", "1B", "--measure", tmp_path, "--measure-size", "200TiB")
    assert (status, output) == (1, "") and errors[0].startswith("measuring in ") and len(errors) == 2
    assert "are free there, too few to write 220 TB and leave some: measure with less, or elsewhere" in errors[1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_stays_of_a_measurement_that_was_ended(tmp_path, environment, number, status):
    words = ["plan", "--params", "1B", "--measure", str(tmp_path), "--measure-time", "10min", "--measure-size", "1GiB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shardload", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    limit = threading.Timer(60, process.kill)
    limit.start()
    # It is in the middle when its files hold something.
    while not any(size >= 4 << 20 for size in open_sizes(process.pid, tmp_path)):
        assert process.poll() is None
        select.select([], [], [], 0.005)
    assert os.listdir(tmp_path) == []
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    limit.cancel()
    assert (process.returncode, output) == (status, "") and "Traceback" not in errors
    assert os.listdir(tmp_path) == []


def open_sizes(pid: int, folder: Path) -> list[int]:
    """Returns the sizes of files of a folder that a process has open."""
    sizes = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith(f"{folder}/"):
                sizes.append(entry.stat().st_size)
        except OSError:
            continue
    return sizes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures(tmp_path, told, suffix):
    pytest.importorskip("matplotlib", reason="pictures need shardload[plot]")
    path = tmp_path / f"plan{suffix}"
    told(*EVERYTHING, "--plot", path)
    first = path.read_bytes()
    assert first.startswith({".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])
    told(*EVERYTHING, "--plot", path)
    assert path.read_bytes() == first and os.listdir(tmp_path) == [path.name]
    if suffix == ".svg":
        texts = {element.text for element in xml.etree.ElementTree.parse(path).iter() if element.tag.endswith("text")}
        assert "272 MB/s, in bursts 5.44 GB/s" in texts and "43.6 GB/s" in texts
        told(*EVERYTHING, "--plot", path, "--measure", tmp_path, *SMALL)
        assert "thick mark: measured" in path.read_text()


def test_a_picture_appears_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="pictures need shardload[plot]")
    path = tmp_path / "plan.svg"
    path.write_text("the one before")

    def fails(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))

    monkeypatch.setattr(os, "replace", fails)
    assert main(["plan", "--params", "1B", "--plot", str(path)]) == 1
    assert capsys.readouterr().err == f"shardload: error: {path}: Input/output error\n"
    assert path.read_text() == "the one before" and os.listdir(tmp_path) == [path.name]


def test_pictures_without_matplotlib_name_the_extra(tmp_path, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["plan", "--params", "1B", "--plot", str(tmp_path / "plan.svg"), "--measure", str(tmp_path)]) == 1
    output, errors = capsys.readouterr()
    # Before anything is measured for it.
    assert output == "" and errors.count("\n") == 1 and "pip install 'shardload[plot]'" in errors
    assert os.listdir(tmp_path) == []


def test_the_table_of_the_readme_is_what_its_command_prints(told):
    readme = (Path(shardload.__file__).parents[1] / "README.md").read_text()
    found = re.search(r"```console\n\$ shardload (plan [^`]*?[^\\])\n([^`]*)```", readme)
    command = found[1].replace("\\\n", " ").split()
    assert told(*command[1:]) == found[2].splitlines()


def test_json_is_the_only_output(run):
    status, output, _ = run("plan", "--params", "7T", "--json")
    assert status == 0 and json.loads(output)["values"]["checkpoint_bytes"] == 98e12
