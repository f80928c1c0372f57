from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from programs import Program

import shardload

ROOT = Path(shardload.__file__).parents[1]
COMMAND = "import sys; from shardload.cli import main; sys.exit(main())"


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a command: this checkout, warnings as errors, a terminal of known width."""
    # Unbuffered output would hide what Python does with a buffer that cannot be written at the end.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return inherited | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "100"}


@pytest.fixture
def run(environment):
    """Runs the command in a process of its own; returns status, output and lines of standard error.

    What it is as a program that starts, others look at: `test_look`, `test_signals`.
    """

    def call(*words: object, cwd: Path | None = None) -> tuple[int, str, list[str]]:
        program = Program(COMMAND, *words, strict=True, torch=False, cwd=cwd, env=environment)
        output, errors = program.communicate(timeout=60)
        assert "Traceback" not in errors
        return program.returncode, output, errors.splitlines()

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
