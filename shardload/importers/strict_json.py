"""JSON as it is meant: no field twice in an object, no NaN, no Infinity."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class RefusedJson(ValueError):
    """The text is JSON of a kind that is not taken; the message says which."""


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of its pairs.

    Raises:
        RefusedJson: a name stands in it twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        # One pass: a count of each name would take hours for an object of a million.
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise RefusedJson(f"field {twice!r:.80} stands in an object twice")
    return values


def _constant(text: str) -> NoReturn:
    raise RefusedJson(f"{text} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=unique_names, parse_constant=_constant)
