"""What the commands say of hostile datasets: one line, exit status 1, never a traceback."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable

import pytest
from forge import Forge
from hostile.judge import bounded_memory

import shardload
from shardload.cli import main
from shardload.format import layout
from shardload.format.rows import PLACE, RAW, STORED
from shardload.reader.verify import verify_dataset


def _places(forged: Forge) -> None:
    forged.shards[0].edit_rows = lambda rows: rows[PLACE].__setitem__(0, 1 << 47)


def _sizes(forged: Forge) -> None:
    forged.shards[0].edit_rows = lambda rows: rows[RAW].__setitem__(0, rows[STORED][0] - 1)


def _spans(forged: Forge) -> None:
    forged.shards[0].edit_rows = lambda rows: rows["_count_tokens"].__setitem__(0, (1 << 32) - 1)


def _head(forged: Forge) -> None:
    forged.shards[0].edit_directory = lambda entries: entries.reverse()


def _statistics(forged: Forge) -> None:
    forged.shards[0].section(layout.SECTION_STATISTICS).data[56:60] = b"\xff" * 4


def _count(forged: Forge, count: int = (1 << 32) - 1) -> None:
    forged.edit_entries = lambda entries: entries["num_samples"].__setitem__(0, count)


def _fields(forged: Forge) -> None:
    forged.shards[0].header[40:72] = bytes(32)


LIES: dict[str, tuple[Callable[[Forge], None], tuple[str, ...]]] = {
    "place": (_places, ("head",)),
    "raw": (_sizes, ("head",)),
    "span": (_spans, ("head",)),
    "head": (_head, ("info", "head")),
    "statistics": (_statistics, ("info",)),
    "schema digest": (_fields, ("info", "head")),
}


@pytest.mark.parametrize("name", LIES)
def test_commands(forge, commands, name):
    forged = forge()
    lie, failing = LIES[name]
    lie(forged)
    with bounded_memory():
        commands(forged.save(), failing)


@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("head",)])
def test_commands_on_a_count_of_samples_that_no_shard_has(forge, capsys, words):
    forged = forge()
    # Of more, info tells no more than the manifest does.
    _count(forged, 4_000_000)
    path = forged.save()
    with bounded_memory():
        assert main([*words, str(path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["shard gone", "shard there"])
def test_verify_on_a_count_of_samples_that_no_shard_has(forge, kind):
    """It lists the samples it cannot read: of a count that only the table states, four thousand million numbers."""
    forged = forge()
    _count(forged)
    path = forged.save()
    if kind == "shard gone":
        (path / forged.names[0]).unlink()
    else:
        (path / forged.names[0]).write_bytes(b"x" * (path / forged.names[0]).stat().st_size)
    with bounded_memory():
        assert verify_dataset(path, workers=1)


@pytest.mark.parametrize(
    "bits", [0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000], ids=["inf", "-inf", "NaN"]
)
def test_statistics_that_are_no_numbers(forge, capsys, bits):
    """Under right digests the bounds of a float may be anything."""
    forged = forge()
    shard = forged.shards[0]
    at = 64 * shard.schema.number("score") + 32
    shard.section(layout.SECTION_STATISTICS).data[at : at + 16] = struct.pack("<2Q", bits, bits)
    path = forged.save()
    for words in (("info",), ("info", "--json")):
        assert main([*words, str(path)]) in (0, 1)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        if words[-1] == "--json" and not told.err:
            json.loads(told.out, parse_constant=lambda text: pytest.fail(text))


def test_infinities_in_a_sound_dataset(tmp_path, capsys):
    with shardload.ShardWriter(tmp_path / "d", {"x": "float32"}) as writer:
        for value in (1.0, math.inf, -math.inf, math.nan):
            writer.write({"x": value})
    assert main(["info", "--json", str(tmp_path / "d")]) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["x"]["largest"] == "inf"
