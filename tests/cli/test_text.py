from __future__ import annotations

import pytest

from shardload.cli.progress import duration, facts
from shardload.cli.text import bars, cut, one_line, printable, ranges
from shardload.packing import Progress
from shardload.packing.progress import Count


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\tc\u202ed é漢") == "a\\x1b[31m\\nb\\tc\\u202ed é漢"
    assert one_line("a\nb\x07") == "a b\\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("1234567890", "1234567890"),
        ("12345678901", "1234567..."),
        ("\n" * 5, "\\n" * 5),
        ("\n" * 6, "\\n\\n\\n\\..."),
    ],
)
def test_cut_to_a_width(text: str, shown: str) -> None:
    assert cut(text, 10) == shown


def test_bars_show_every_count() -> None:
    assert bars([0, 1, 50, 100], 10) == ["", "#", "#####", "##########"]
    assert bars([], 10) == [] and bars([0], 10) == [""]


def test_ranges_of_numbers() -> None:
    assert ranges([3, 7, 8, 9, 40]) == "3, 7-9, 40"
    assert ranges(list(range(0, 40, 2)), most=2) == "0, 2 and 18 more"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7805, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_facts_of_a_progress() -> None:
    progress = Progress(Count(2000, 30_000_000, 10_000_000), 90_000_000, 2.0, {"a": "str"}, 3, 2)
    assert facts(progress) == "2,000 samples, 1,000 samples/s, 15.0 MB/s, ratio 3.00, 4.0 s left"
    assert facts(Progress(Count(), 90, 2.0, {}, 3, 2)) == "0 samples, 0 samples/s, 0.0 MB/s"
    first = Count(num_samples=1, source_bytes=1)
    assert facts(Progress(first, 1_000, 2.0, {}, 3, 2)) == "1 sample, 0 samples/s, 0.0 MB/s"
    assert facts(Progress(first, 1_000, 60.0, {}, 3, 2)).endswith("MB/s, 16 h 39 min left")
