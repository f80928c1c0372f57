from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardload

ROOT = Path(shardload.__file__).parents[1]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a command: this checkout, warnings as errors, a terminal of known width."""
    # Unbuffered output would hide what Python does with a buffer that cannot be written at the end.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return inherited | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "100"}


@pytest.fixture
def run(environment):
    """Runs the real command in a process of its own; returns status, output and lines of standard error."""

    def call(*words: object, **options: object) -> tuple[int, str, list[str]]:
        command = [sys.executable, "-m", "shardload", *map(str, words)]
        done = subprocess.run(
            command, **{"capture_output": True, "text": True, "timeout": 60, "env": environment} | options
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr.splitlines()

    return call


@pytest.fixture
def refused(run):
    """Runs a command that must fail, and returns its one line of error."""

    def call(*words: object, status: int = 1) -> str:
        code, output, errors = run(*words)
        assert (code, output) == (status, ""), errors
        told = [line for line in errors if not re.match(r"schema: |packing |\d+ %: ", line)]
        assert len(told) == 1 and told[0].startswith("shardload: error: ")
        return told[0].removeprefix("shardload: error: ")

    return call
