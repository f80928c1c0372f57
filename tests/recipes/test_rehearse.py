"""The recipes of `tools/` at small size: ranks and runs are killed, and what each was given is compared with the order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def rehearse(folder: Path, *words: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "rehearse.py", *map(str, words), "--folder", str(folder)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_images(tmp_path):
    said = rehearse(tmp_path, "images", "--steps", 48, "--number", 480, "--letters", "ABCD")
    assert "every rank was given exactly the samples that the order says" in said
    assert said.count("kill -9 of everything") == 2 and "kill -9 of one rank" in said
    assert "stall" in said and "checkpoints" in said


@pytest.mark.slow
def test_text(tmp_path):
    said = rehearse(tmp_path, "text", "--steps", 48)
    assert "every window is the next one of its corpus; 3 to 1 to within one window" in said
    assert said.count("kill -9 of everything") == 2 and "of 768 after the change 384 of code" in said


@pytest.mark.slow
def test_inference(tmp_path):
    said = rehearse(tmp_path, "inference", "--number", 600)
    assert "600 scores, each document's once" in said and said.count("kill -9 of everything") == 2
