from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from shardload.errors import PackError
from shardload.importers import Reject, Sample, Unit, UnitReader, open_source

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
def samples():
    """Reads a unit as a pack does that stops at the first thing that is no sample."""

    def read(reader: UnitReader, unit: Unit) -> Iterator[Sample]:
        for item in reader.read(unit):
            if isinstance(item, Reject):
                raise PackError(item.message)
            yield item

    return read


@pytest.fixture
def read_all(samples):
    """Reads a whole source: its types, and the values of all samples unit by unit."""

    def read(*paths, include=(), types=None, unit_size=None):
        plan = open_source(paths, include).plan(types, unit_size)
        if plan.reject is not None:
            raise PackError(plan.reject.message)
        return plan, [[sample.values for sample in samples(plan.reader, unit)] for unit in plan.units]

    return read
