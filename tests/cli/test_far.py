"""Commands on a dataset behind a URL: what they tell of the local one, and nothing of what is secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from range_server import RangeServer

from shardload.cli import main

OPTION = ["--storage-option", 'headers={"X-Key": "canary-1"}', "--storage-option", "encoded=false"]


@pytest.fixture
def server(mixed: Path) -> Iterator[RangeServer]:
    with RangeServer(mixed) as server:
        yield server


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["head", "-n", "2"],
        ["verify"],
        ["locate", "--step", "3", "--batch-size", "4"],
        ["shuffle-report", "--max-positions", "400"],
    ],
    ids=lambda words: words[0],
)
def test_as_of_the_files(
    mixed: Path, server: RangeServer, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command, *rest = words
    found = []
    for dataset, options in ((str(mixed), []), (f"{server.url}?sig=canary-2", OPTION)):
        assert main([command, dataset, *rest, "--json", *options]) == 0
        out, err = capsys.readouterr()
        assert "canary" not in out + err
        found.append(json.loads(out))
        assert found[-1].pop("dataset") == (server.url if options else str(mixed))
    assert found[0] == found[1]
    assert all(one.query == "sig=canary-2" and one.headers["x-key"] == "canary-1" for one in server.requests)
    assert main([command, f"{server.url}/none?sig=canary-2", *rest, *OPTION]) == 1
    out, err = capsys.readouterr()
    assert "canary" not in out + err and err.count("\n") == 1 and "is not a dataset" in err + out


def test_the_plan_tells_what_reading_costs(server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--dataset", server.url, "--json"]) == 0
    full, block = json.loads(capsys.readouterr()[0])["reads"]
    assert (full["shuffle"], block["shuffle"], full["num_samples"]) == ("full", "block", 500)
    # All samples are in one window: every byte once, and a request or two for each of 11 shards.
    assert 1.0 <= full["amplification"] <= 1.2 and 11 <= full["num_requests"] <= 33
    assert main(["plan", "--dataset", server.url, "--gpus", "4", "--samples-per-gpu", "10"]) == 0
    out = capsys.readouterr()[0]
    assert "block shuffle:" in out and "training reads" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "must be KEY=VALUE"),
        ("=canary", "must be KEY=VALUE"),
        ("a={canary", "the value of a starts with a brace"),
    ],
)
def test_options_that_are_none(capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    assert main(["info", "s3://bucket/key", "--storage-option", text]) == 2
    out, err = capsys.readouterr()
    assert message in err and "canary" not in out + err


def test_options_for_a_path(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(mixed), "--storage-option", "key=canary"]) == 1
    assert "storage_options are for URLs" in capsys.readouterr()[1]
