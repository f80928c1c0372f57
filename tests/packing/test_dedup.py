"""Duplicates: the first in the order of the source stays, whatever packs and however often it is interrupted."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
from faults import in_child
from killing import Counted, KilledAt

import shardload
from shardload.errors import PackError
from shardload.order import Permutation
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")

FIELDS: list[tuple[Any, tuple[str, ...], int]] = [(True, ("number", "text", "n"), 2), ("text", ("text",), 1)]
"""What is compared, the same as names, and the workers that come to the same as one."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 samples of 150 numbers and fewer texts, with copies far from each other. Read only."""
    path, words = tmp_path_factory.mktemp("rows") / "rows.jsonl", random.Random(7)
    with path.open("w") as file:
        for _ in range(600):
            number = words.randrange(150)
            file.write(
                json.dumps({"number": number, "text": f"text {number % 60} " * (number % 9), "n": words.randrange(3)})
                + "\n"
            )
    return path


def kept(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """What stays, by a set of Python."""
    seen: set[Any] = set()
    return [
        row
        for row in rows
        if (key := tuple(row[name] for name in names)) not in seen and not seen.add(key)  # type: ignore[func-returns-value]
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("dedup", "names", "others"), FIELDS)
def test_the_first_stays(tmp_path: Path, rows: Path, digests, dedup, names, others: int) -> None:
    taken, expected = [], kept(read(rows), names)
    for workers in sorted({1, others}):
        summary = pack(
            *(rows, tmp_path / f"{workers}"), dedup=dedup, workers=workers, unit_size=9000, shard_size="16KiB",
            operations=Counted(),
        )  # fmt: skip
        assert list(shardload.open(tmp_path / f"{workers}")) == expected and summary.num_workers == workers
        assert (summary.num_samples, summary.num_duplicates) == (len(expected), 600 - len(expected))
        taken.append(digests(tmp_path / f"{workers}"))
    assert taken[0] == taken[-1] and 0 < len(expected) < 500
    again = pack(rows, tmp_path / "1", dedup=dedup, unit_size=9000, shard_size="16KiB", resume=True)
    assert again.num_workers == 0 and again.num_duplicates == 600 - len(expected)


def test_with_a_map_and_a_filter_that_make_the_duplicates(tmp_path: Path, rows: Path, digests) -> None:
    """And shuffled: a permutation of what the first pass holds, of which the duplicates are left out."""
    mapped = [sample for row in read(rows) for sample in as_list(preparing.clean(dict(row)))]
    mapped = [sample for sample in mapped if preparing.keep(sample)]
    expected = kept(mapped, ("number", "part"))
    options: dict[str, Any] = {"map": preparing.clean, "filter": preparing.keep, "dedup": ["number", "part"]}
    options |= {"unit_size": 9000, "operations": Counted(), "steps": "nfc:text"}
    taken = []
    for workers in (1, 2, 4):
        summary = pack(rows, tmp_path / f"{workers}", workers=workers, **options)
        assert list(shardload.open(tmp_path / f"{workers}")) == expected
        assert summary.num_duplicates == len(mapped) - len(expected) and summary.num_split and summary.num_dropped
        taken.append(digests(tmp_path / f"{workers}"))
    assert taken[0] == taken[1] == taken[2]
    pack(rows, tmp_path / "shuffled", workers=1, shuffle=3, **options)
    order = Permutation(len(mapped), seed=3, epoch=2**63 - 1).sample_ids(np.arange(len(mapped)))
    shuffled = [mapped[i] for i in order.tolist() if any(mapped[i] is sample for sample in expected)]
    assert list(shardload.open(tmp_path / "shuffled")) == shuffled


def as_list(made: Any) -> list[dict[str, Any]]:
    return [] if made is None else made if isinstance(made, list) else [made]


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_and_continued(tmp_path: Path, rows: Path, digests, kills: int) -> None:
    operations = Counted()
    more: dict[str, Any] = {"dedup": "text", "unit_size": 20_000, "shard_size": "9KiB", "compression": "none"}
    pack(rows, tmp_path / "whole", workers=1, operations=operations, **more)
    whole = digests(tmp_path / "whole")
    for number in (operations.count * kill // (kills + 1) for kill in range(1, kills + 1)):
        target, workers = tmp_path / f"{number}", 1 + number % 2
        work = lambda: pack(rows, target, workers=workers, operations=KilledAt(number), **more)  # noqa: E731, B023
        assert in_child(work, group=True) in (0, -signal.SIGKILL)
        pack(rows, target, workers=1, resume=True, operations=Counted(), **more)
        assert digests(target) == whole, number
        shutil.rmtree(target)
    # Cut off while duplicates were marked: what lies there is in nobody's way.
    target = tmp_path / "marking"
    work = lambda: pack(rows, target, workers=1, operations=KilledAt(operations.count // 2), **more)  # noqa: E731
    assert in_child(work, group=True) == -signal.SIGKILL
    for name in ("spill-0000", "duplicates"):
        (target / ".work" / name).write_bytes(b"torn")
    pack(rows, target, workers=1, resume=True, operations=Counted(), **more)
    assert digests(target) == whole


def test_keys_may_repeat_in_duplicates(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": i % 40, "text": f"{i % 40}"}) for i in range(100)]
    source.write_text("\n".join(lines))
    pack(source, tmp_path / "out", key="id", dedup=True, workers=1)
    assert shardload.open(tmp_path / "out").find(39) == 39
    source.write_text("\n".join([*lines, json.dumps({"id": 3, "text": "another"})]))
    with pytest.raises(PackError, match=r"its key \(field 'id'\) is that of an earlier sample"):
        pack(source, tmp_path / "other", key="id", dedup=True, workers=1)


def test_a_field_that_is_not_there_and_one_named_as_the_digest(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(PackError, match=r"rows\.jsonl: dedup names the field 'txt', which is not in the schema"):
        pack(rows, tmp_path / "out", dedup=["text", "txt"])
    with pytest.raises(ValueError, match="dedup must be True for all fields, or names of fields"):
        pack(rows, tmp_path / "out", dedup=[])
    source = tmp_path / "rows.jsonl"
    source.write_text('{"content_digest": 1}\n' * 3 + '{"content_digest": 2}\n')
    assert pack(source, tmp_path / "out", dedup=True).num_duplicates == 2
    assert list(shardload.open(tmp_path / "out")) == [{"content_digest": 1}, {"content_digest": 2}]


def test_a_value_that_does_not_fit_is_a_reject_and_no_duplicate(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"a": 1}\n{"a": "x"}\n{"a": "x"}\n{"a": 1}\n')
    summary = pack(source, tmp_path / "out", schema={"a": "int64"}, dedup=True, on_error="reject")
    assert (summary.num_samples, summary.num_rejects, summary.num_duplicates) == (1, 2, 1)
