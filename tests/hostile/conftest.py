from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import Forge
from hostile.base import SAMPLES, sample, write_base
from hostile.judge import Verdict, alike, check_verify, read_all, reads_of

import shardload
from shardload.cli import main
from shardload.reader.verify import verify_dataset

NAMES = [f"name-{i}" for i in range(SAMPLES)]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound dataset. Read only."""
    path = write_base(tmp_path_factory.mktemp("base") / "dataset")
    assert verify_dataset(path) == []
    return path


@pytest.fixture(scope="session")
def sound(base: Path) -> dict[str, Any]:
    """What every way of reading gives for the sound dataset."""
    dataset = shardload.open(base, verify="always")
    values = {way: read() for way, read in reads_of(dataset, NAMES).items()}
    for i in range(SAMPLES):
        assert alike(values[f"item {i}"], {"late": None} | sample(i))
    return values


@pytest.fixture
def forge(base: Path, tmp_path: Path) -> Callable[[], Forge]:
    """Makes copies of the sound dataset, in pieces."""
    numbers = itertools.count()
    return lambda: Forge.copy(base, tmp_path / f"dataset-{next(numbers)}")


@pytest.fixture
def judge(sound: dict[str, Any]) -> Callable[..., Verdict]:
    """Reads a hostile dataset in every way and lets verify look at it; something must tell."""

    def call(path: Path, *, by: str = "", ways: tuple[str, ...] = ()) -> Verdict:
        verdict = read_all(path, sound, NAMES[:2], ways)
        if by:
            assert any(way.startswith(by) for way in verdict.errors), (verdict.errors, verdict.wrong)
        # What reads as another value under right digests only a pinned fingerprint could tell.
        assert check_verify(path) or not verdict.errors, verdict.errors
        return verdict

    return call


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs the commands that look at a dataset; those named must fail, with one line."""

    def call(path: Path, failing: tuple[str, ...] = ("info", "head", "verify")) -> None:
        for words in (("info",), ("info", "--json"), ("head",), ("head", "--json", "-n", "64"), ("verify",)):
            status = main([*words, str(path)])
            errors = capsys.readouterr().err.splitlines()
            assert status in (0, 1) and len(errors) == status, (words, errors)
            assert words[0] not in failing or status == 1, words
            assert all(line.startswith("shardload: error: ") and str(path) in line for line in errors), errors

    return call
