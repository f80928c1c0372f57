"""What a person sees: a dry run, events, and where the time went."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

import shardload
from shardload.errors import PackError
from shardload.packing import Progress, pack

pytestmark = pytest.mark.usefixtures("quick_workers")

NUM_SAMPLES = 3000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"number": n, "text": f"{n:05d} " * 40}) + "\n" for n in range(NUM_SAMPLES)))
    return path


@pytest.mark.parametrize("more", [{}, {"map": "preparing:same"}, {"dedup": "text", "shuffle": 1, "steps": "nfc:text"}])
def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path, rows: Path, more: dict[str, Any]) -> None:
    before = os.listdir(tmp_path)
    told = pack(rows, tmp_path / "out", dry_run=True, workers=1, unit_size=100_000, log_json=tmp_path / "log", **more)
    assert os.listdir(tmp_path) == before
    done = pack(rows, tmp_path / "out", workers=1, unit_size=100_000, compression="none", **more)
    assert (told.dry_run, told.version, told.fingerprint, told.types) == (True, 0, "", done.types)
    assert (told.num_units, told.num_workers, told.source_bytes) == (done.num_units, 1, done.source_bytes)
    assert abs(told.num_samples - done.num_samples) <= 0.02 * done.num_samples and told.seconds > 0
    assert told.first_samples == [{"number": n, "text": f"{n:05d} " * 40} for n in range(3)]
    plain = pack(rows, tmp_path / "plain", dry_run=True, unit_size=100_000, compression="none")
    assert 0.8 < plain.stored_bytes / done.stored_bytes < 1.05


def test_a_dry_run_of_an_append(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(PackError, match="holds no dataset to append to"):
        pack(rows, tmp_path / "out", dry_run=True, append=True)
    pack(rows, tmp_path / "out", schema={"number": "int32", "text": "str"})
    told = pack(rows, tmp_path / "out", dry_run=True, append=True)
    assert told.types == {"number": "int32", "text": "str"}
    with pytest.raises(PackError, match="is not empty: choose another target"):
        pack(rows, tmp_path / "out", dry_run=True)
    assert pack(rows, tmp_path / "out", dry_run=True, replace=True).types["number"] == "int64"
    assert shardload.open(tmp_path / "out").manifest.version == 1


def test_a_dry_run_tells_what_would_be_rejected(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"a": 1}\n{"a": "x"}\n{\n' * 10)
    told = pack(source, tmp_path / "out", dry_run=True, on_error="reject", schema={"a": "int64"}, map="preparing:same")
    assert (told.num_samples, told.num_rejects) == (10, 20)
    assert told.first_rejects[0] == f"{source} line 2: field 'a': expected int64, got str of length 1"
    with pytest.raises(PackError, match="line 2: field 'a': expected int64"):
        pack(source, tmp_path / "out", dry_run=True, schema={"a": "int64"})


def test_a_dry_run_counts_duplicates_among_what_it_tries(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"a": n // 2, "b": n}) + "\n" for n in range(100)))
    told = pack(source, tmp_path / "out", dry_run=True, dedup="a")
    assert (told.num_samples, told.num_duplicates) == (50, 50)
    assert [sample["b"] for sample in told.first_samples] == [0, 2, 4]
    assert pack(source, tmp_path / "out", dry_run=True, dedup=True).num_duplicates == 0


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shardload.packing.events.PROGRESS_SECONDS", 0.0)
    source, log = tmp_path / "rows.jsonl", tmp_path / "log"
    source.write_text("".join(json.dumps({"number": n, "text": "x" * 99}) + "\n" for n in range(500)) + "{\n")
    options: dict[str, Any] = {"unit_size": 20_000, "workers": 2, "map": "preparing:same", "log_json": log}
    with pytest.raises(PackError, match="line 501: broken JSON"):
        pack(source, tmp_path / "out", **options)
    first = events(log)
    assert [first[0]["event"], first[-1]["event"]] == ["start", "error"]
    assert "line 501: broken JSON" in first[-1]["message"] and first[-1]["error"] == "PackError"
    summary = pack(source, tmp_path / "out", on_error="reject", resume=True, **options)
    later = events(log)[len(first) :]
    assert {event["event"] for event in later} == {"start", "unit", "reject", "progress", "end"}
    [reject] = [event for event in later if event["event"] == "reject"]
    assert reject["place"] == f"{source} line 501" and reject["reason"].startswith("broken JSON")
    units = [event["unit"] for event in (*first, *later) if event["event"] == "unit"]
    assert sorted(units) == list(range(summary.num_units))
    assert sum(event["num_samples"] for event in (*first, *later) if event["event"] == "unit") == 500
    assert later[-1] | {"num_samples": 500, "fingerprint": summary.fingerprint} == later[-1]
    assert all(event["time"] <= after["time"] for event, after in itertools.pairwise(later))


def test_a_log_that_cannot_be_written(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(PackError, match=r"nowhere/log: the log cannot be written: No such file"):
        pack(rows, tmp_path / "out", log_json=tmp_path / "nowhere/log")
    assert not (tmp_path / "out").exists()
    # A disk that is full: the pack goes on, and says so.
    summary = pack(rows, tmp_path / "out", log_json="/dev/full")
    assert summary.num_samples == NUM_SAMPLES
    assert summary.log_problem == "events are missing in the log: No space left on device"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_where_the_time_went(tmp_path: Path, rows: Path, workers: int) -> None:
    told: list[Progress] = []
    summary = pack(
        *(rows, tmp_path / "out"), map="preparing:spin", workers=workers, unit_size=300_000, progress=told.append
    )
    assert summary.slowest_stage == "map" and set(summary.stage_seconds) == {"read", "map", "encode", "write"}
    assert all(took > 0 for took in summary.stage_seconds.values()) and summary.read_bytes == summary.source_bytes
    assert sum(summary.stage_seconds.values()) <= workers * summary.seconds
    assert summary.cpu_seconds > 0
    last = told[-1].done
    assert (last.map_seconds, last.cpu_seconds) == (summary.stage_seconds["map"], summary.cpu_seconds)
    again = pack(rows, tmp_path / "out", map="preparing:spin", workers=workers, unit_size=300_000, resume=True)
    assert again == pack(rows, tmp_path / "out", map="preparing:spin", unit_size=300_000, resume=True)
    assert not again.stage_seconds and not again.slowest_stage
