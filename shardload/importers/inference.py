"""The types of JSON fields, from the first samples of a source.

| values seen | type |
| --- | --- |
| `true`, `false` | `bool` |
| integers that 64 bits with sign hold | `int64` |
| fractions, or fractions and integers up to 2^53 | `float64` |
| strings | `str` |
| objects, arrays, or any other mixture | `json` |
| `null`, or the field missing in a sample | a trailing `?` |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_TYPES = {
    frozenset({"bool"}): "bool",
    frozenset({"small"}): "int64",
    frozenset({"large"}): "int64",
    frozenset({"small", "large"}): "int64",
    frozenset({"float"}): "float64",
    # Beyond 2^53 a float64 would change integers, so those stay JSON.
    frozenset({"small", "float"}): "float64",
    frozenset({"str"}): "str",
}


def infer_types(samples: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns field name -> type, fields in the order in which they first appear."""
    seen: dict[str, set[str]] = {}
    present: dict[str, int] = {}
    num_samples = 0
    for sample in samples:
        num_samples += 1
        for name, value in sample.items():
            seen.setdefault(name, set()).add(_kind(value))
            present[name] = present.get(name, 0) + 1
    types = {}
    for name, kinds in seen.items():
        nullable = "null" in kinds or present[name] < num_samples
        types[name] = _TYPES.get(frozenset(kinds - {"null"}), "json") + ("?" if nullable else "")
    return types


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= 1 << 53:
            return "small"
        return "large" if -(1 << 63) <= value < 1 << 63 else "huge"
    return {float: "float", str: "str"}.get(type(value), "tree")
