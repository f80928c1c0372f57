"""Text of CSV fields as values, and the types that columns of text have.

| texts seen, but for empty ones | type |
| --- | --- |
| integers that 64 bits with sign hold, without leading zeros | `int64` |
| fractions, `nan` and `inf`, or fractions and integers up to 2^53 | `float64` |
| `true` and `false` in any case | `bool` |
| all others, or none | `str` |

An empty text is text where the type is `str`, and None in nullable fields of all other types, which a `?` is given for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from shardload.format.schema import MEDIA_TYPES, Field
from shardload.importers.strict_json import STRICT_JSON

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(
    r"[+-]?((0|[1-9][0-9]{0,400})(\.[0-9]{0,400})?|\.[0-9]{1,400})(e[+-]?[0-9]{1,4})?|nan|[+-]?inf", re.I
)
_ANY_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_BOOLS = {"true": True, "false": False}
_GIVEN_BOOLS = {**_BOOLS, "1": True, "0": False}
_SHOWN_CHARACTERS = 40

Decode = Callable[[str], Any]


class BadText(Exception):
    """A text that is no value of its field, or a type that text does not become; the message is the predicate."""


def column_type(texts: Sequence[str]) -> str:
    """Returns the type of a column from some of its texts."""
    seen = [text for text in texts if text]
    if not seen:
        return "str"
    empty = "?" if len(seen) < len(texts) else ""
    if all(text.lower() in _BOOLS for text in seen):
        return f"bool{empty}"
    integers = [int(text) for text in seen if _INTEGER.fullmatch(text)]
    if len(integers) == len(seen):
        return f"int64{empty}" if all(-(1 << 63) <= one < 1 << 63 for one in integers) else "str"
    # Beyond 2^53 a float64 would change integers, so those stay text.
    if all(_FLOAT.fullmatch(text) for text in seen) and all(abs(one) <= 1 << 53 for one in integers):
        return f"float64{empty}"
    return "str"


def text_decoder(field: Field) -> Decode:
    """Returns the function from a text to a value.

    Raises:
        BadText: text does not become values of this type.
    """
    if field.kind in MEDIA_TYPES:
        raise BadText(f"its field {field.name!r} is text and cannot be {field.type}")
    if field.numeric and not field.shape and not field.starred:
        decode: Decode = _bool if field.kind == "bool" else _float if "float" in field.kind else _integer
    elif field.starred or field.shape or field.kind == "json":
        decode = _json
    else:
        decode = str.encode if field.kind == "bytes" else str
    if field.nullable:
        return lambda text: decode(text) if text else None
    if field.kind in ("str", "bytes") and not field.starred:
        return decode

    def decode_there(text: str) -> Any:
        if not text:
            raise BadText(f"is empty; if it may be, make its type {field.type}?")
        return decode(text)

    return decode_there


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS]) + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def _bool(text: str) -> bool:
    value = _GIVEN_BOOLS.get(text.strip().lower())
    if value is None:
        raise BadText(f"is neither true nor false: {_shown(text)}")
    return value


def _integer(text: str) -> int:
    if not _ANY_INTEGER.fullmatch(text.strip()):
        raise BadText(f"is no integer: {_shown(text)}")
    return int(text)


def _float(text: str) -> float:
    stripped = text.strip()
    if not (_FLOAT.fullmatch(stripped) or _ANY_INTEGER.fullmatch(stripped)):
        raise BadText(f"is no number: {_shown(text)}")
    value = float(stripped)
    if value in (float("inf"), float("-inf")) and "inf" not in stripped.lower():
        raise BadText(f"is too large for a float: {_shown(text)}")
    return value


def _json(text: str) -> Any:
    try:
        return STRICT_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadText(f"is broken JSON: {error}") from None
