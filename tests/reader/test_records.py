"""Values that lie in one record with others, framed or not, read in one piece or in several, from several generations."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shardload
from shardload.codecs import zstd
from shardload.reader import records
from shardload.reader.strings import ByteStrings

NUM_SAMPLES, NUM_OLD = 240, 90
SCHEMA = {"image": "jpeg", "text": "str", "facts": "json", "tags": "str[*]", "data": "bytes?"}


def sample_of(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "image": b"\xff\xd8\xff" + rng.bytes(i % 70),
        # Each fifth is shorter than a frame of it; some are not ASCII.
        "text": "" if i % 5 == 0 else f"sample {i} " * (i % 60) + "é" * (i % 7 == 0),
        "facts": {"number": i},
        "tags": [str(i)] * (i % 4),
        "data": None if i % 3 == 0 else rng.bytes(i % 50) + bytes(i % 90),
        "more": None if i < NUM_OLD or i % 4 == 0 else f"more {i} " * 20,
    }


@pytest.fixture(scope="module", params=["none", "zstd:3"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, of which the first lacks a field. Read only."""
    path = tmp_path_factory.mktemp("records") / "d"
    with shardload.ShardWriter(path, SCHEMA, compression=request.param, shard_size="8KiB", dictionary="off") as writer:
        for i in range(NUM_OLD):
            writer.write({name: value for name, value in sample_of(i).items() if name != "more"})
    with shardload.ShardWriter(path, SCHEMA | {"more": "str?"}, append=True, shard_size="8KiB") as writer:
        for i in range(NUM_OLD, NUM_SAMPLES):
            writer.write(sample_of(i))
    return path


FIELDS = [None, ["text"], ["image"], ["data", "image"], ["more"], ["tags", "text"]]


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=60) | st.lists(st.integers(0, NUM_OLD - 1), max_size=60),
    fields=st.sampled_from(FIELDS),
    piece=st.sampled_from([1, 500, 3000, 1 << 24]),
    engine=st.sampled_from(["map", "pread"]),
)
@example(ids=list(range(NUM_SAMPLES)), fields=None, piece=1 << 24, engine="map")
def test_values(mixed: Path, ids: list[int], fields: list[str] | None, piece: int, engine: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "PIECE_BYTES", piece)
        patch.setattr(zstd, "_FRAMES_A_CALL", 7)
        dataset = shardload.open(mixed, fields=fields, engine=engine, verify="always")
        batch = dataset.__getitems__(ids)
    wanted = [{name: sample_of(i)[name] for name in dataset.schema if fields is None or name in fields} for i in ids]
    assert list(batch) == wanted
    assert list(pickle.loads(pickle.dumps(batch))) == wanted
    for name in wanted[0] if wanted else ():
        assert batch.values_of(name) == [sample[name] for sample in wanted]
        assert batch[:3] == wanted[:3]


def test_byte_strings() -> None:
    values = [b"", b"one", "zwei ü".encode(), b"three"]
    for strings in (
        ByteStrings.of(values),
        ByteStrings([b"onethree", "zwei ü".encode()], *np.array([[0, 0, 1, 0], [8, 0, 0, 3], [8, 3, 7, 8]])),
    ):
        assert len(strings) == 4 and list(strings) == strings.tolist() == values
        assert [strings[i] for i in range(-4, 4)] == values * 2
        assert strings[1:3].tolist() == values[1:3] and strings[np.array([3, 0, 3])].tolist() == [
            b"three",
            b"",
            b"three",
        ]
        assert strings.texts() == [value.decode() for value in values]
        assert values[1] in strings and b"four" not in strings
        with pytest.raises(IndexError):
            strings[4]
    with pytest.raises(UnicodeDecodeError):
        ByteStrings.of([b"good", b"\xff"]).texts()
