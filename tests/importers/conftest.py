from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from shardload.importers import open_source

Tree = Callable[[Mapping[str, bytes]], str]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files by relative path into a fresh folder and returns the folder."""

    def write(files: Mapping[str, bytes]) -> str:
        root = tmp_path / "source"
        root.mkdir(exist_ok=True)
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(root)

    return write


@pytest.fixture
def read_all():
    """Reads a whole source: its types, and the values of all samples unit by unit."""

    def read(*paths, include=(), types=None, unit_size=None):
        plan = open_source(paths, include).plan(types, unit_size)
        return plan, [[sample.values for sample in plan.reader.read(unit)] for unit in plan.units]

    return read
