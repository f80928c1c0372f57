"""Runs training scripts as their users do: plainly, or with torchrun and one process a rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
AS_RANK = Path(__file__).parent / "as_rank.py"
_THROUGH_STORE = str(Path(__file__).parent / "through")


def launch(script: Path, *arguments: Any, ranks: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, which must be a good one, and returns what it printed."""
    done = attempt(script, *arguments, ranks=ranks, **options)
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def attempt(
    script: Path, *arguments: Any, ranks: int = 1, torchrun: bool = False, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, good or bad; with torchrun if there are several ranks, or if asked for."""
    command = [sys.executable]
    if ranks > 1 or torchrun:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(AS_RANK)]
    # A rank or a group of the process that runs the tests is none of the script's; one thread a rank is enough.
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": python_path(ROOT, ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def python_path(*folders: Path | str) -> str:
    """Returns a PYTHONPATH of folders, with which a program reads through the store that its test reads through, if any."""
    first = [_THROUGH_STORE] if os.environ.get("SHARDLOAD_TEST_STORE") else []
    return os.pathsep.join(first + [str(folder) for folder in folders if str(folder) not in ("", _THROUGH_STORE)])


def recorded(folder: Path, *names: str, kind: str = "train", rank: int | str = "*") -> list[dict[str, Any]]:
    """Returns the lines of a kind that the ranks of some runs recorded."""
    lines = []
    for name in names:
        for file in sorted(folder.glob(f"{name}-{rank}.jsonl")):
            lines += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def ids_by_epoch(lines: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Returns the sorted ids of each epoch."""
    ids: dict[int, list[int]] = {}
    for line in lines:
        ids.setdefault(line["epoch"], []).extend(line["ids"])
    return {epoch: sorted(found) for epoch, found in sorted(ids.items())}
