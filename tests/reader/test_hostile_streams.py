"""Rows that no writer of ours makes: right digests over items that overlap, or lie outside their stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardload
from shardload.writer import shard

Span = tuple[int, int]


def write(path: Path, monkeypatch: pytest.MonkeyPatch, span_of: Callable[[Span], Span]) -> shardload.ShardDataset:
    """Writes 20 samples of 100 items whose rows point where `span_of(right span)` says."""
    add_values = shard.ShardFile._add_values

    def add(self: Any, sample: Any, local_id: int) -> None:
        add_values(self, sample, local_id)
        for start, count in self._places.spans:
            sample.row[start], sample.row[count] = span_of((sample.row[start], sample.row[count]))

    with monkeypatch.context() as patch:
        patch.setattr(shard.ShardFile, "_add_values", add)
        with shardload.ShardWriter(path, {"t": "uint8[*]", "n": "int64"}) as writer:
            for i in range(20):
                writer.write({"t": np.full(100, i, np.uint8), "n": i})
    return shardload.open(path)


@pytest.mark.parametrize(
    ("span_of", "first_bad"),
    [
        (lambda span: (0, 100), 1),
        (lambda span: (span[0] - (span[0] > 0), span[1]), 1),
        (lambda span: (span[0], 2000 - span[0]), 1),
        (lambda span: (1900 - span[0], 100), 1),
        (lambda span: (1901 if span[0] == 1900 else span[0], 100), 19),
        (lambda span: (span[0], 101 if span[0] == 1900 else 100), 19),
        (lambda span: ((1 << 64) - 50 if span[0] == 500 else span[0], 100), 5),
        (lambda span: (span[0], (1 << 32) - 1 if span[0] == 500 else 100), 5),
    ],
    ids=["same", "by one", "to the end", "falling", "outside by one", "too long by one", "wrapping", "4 GiB"],
)
def test_items_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span_of: Callable[[Span], Span], first_bad: int
) -> None:
    dataset = write(tmp_path / "d", monkeypatch, span_of)
    with pytest.raises(shardload.FormatError, match=r"of field 't' from \d+ on, which cannot be") as caught:
        dataset.__getitems__(range(20))
    assert (
        caught.value.shard == "shards/0001-000000-00000.shard" and abs((caught.value.sample_id or 0) - first_bad) <= 1
    )
    assert f"sample {caught.value.sample_id}" in str(caught.value)
    assert shardload.open(tmp_path / "d", fields=["n"])[7] == {"n": 7}
    dataset.will_need(np.arange(20))
