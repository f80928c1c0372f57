"""Text for people: cut, escaped and aligned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import click


def printable(text: str) -> str:
    """Returns text with control characters escaped, so that data cannot steer the terminal or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Returns a message as one line that any terminal can show."""
    return printable(" ".join(text.splitlines()) if "\n" in text else text)


def cut(text: str, width: int) -> str:
    """Returns escaped text of at most `width` characters; three dots tell that there is more."""
    # Escapes only lengthen text: no more of it than the width is needed.
    shown = printable(text[: width + 1])
    return shown if len(shown) <= width else shown[: max(0, width - 3)] + "..."


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 unit, 2,000 units."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def line_width() -> int:
    """Returns the characters in a line of the terminal, or 120 if there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def echo(line: str) -> None:
    """Prints a line to standard output.

    Raises:
        BrokenPipeError: its reader has gone.
        OSError: it cannot be written for another reason; names standard output.
    """
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def echo_json(value: Any) -> None:
    """Prints one JSON document."""
    echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def echo_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints names and values in two columns; facts without a value are left out."""
    shown = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        echo(f"  {name:<{width}}  {value}")


def bars(counts: Sequence[int], width: int) -> list[str]:
    """Returns bars as long as the counts, the longest of them `width`; a count that is not 0 can be seen."""
    longest = max(counts, default=0) or 1
    return ["#" * max(round(width * count / longest), 1 if count else 0) for count in counts]


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Returns ascending numbers as 3, 7-12, 40 and how many more."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(f"{start}" if start == last else f"{start}-{last}" for start, last in runs[:most])
    more = sum(last - start + 1 for start, last in runs[most:])
    return text + (f" and {more} more" if more else "")
