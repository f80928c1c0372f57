"""Sizes as people write and read them."""

from __future__ import annotations

import operator
import re
from typing import Any

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kKMGT]?)(i?)B?")
_MAX_BYTES = (1 << 48) - 1
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def as_integer(value: Any, name: str, minimum: int | None = 0) -> int:
    """Returns an integer of Python, numpy or torch as Python's own.

    Raises:
        ValueError: not an integer (bool is none here), or below the minimum.
    """
    wanted = "an integer" if minimum is None else f"an integer from {minimum}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {wanted}, not {value!r}"[:120]) from None
    if isinstance(value, bool) or (minimum is not None and number < minimum):
        raise ValueError(f"{name} must be {wanted}, not {value!r}"[:120])
    return number


def parse_bytes(size: int | str, name: str) -> int:
    """Returns a number of bytes from 268435456, "256MiB", "64 kB" or "1.5G".

    Args:
        size: the size; iB means powers of 1024, others powers of 1000.
        name: name of the option, for messages.

    Raises:
        ValueError: not such a size, below 1, or 256 TiB and more.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        num_bytes = size
    elif isinstance(size, str) and (match := _SIZE.fullmatch(size.strip())) is not None:
        num_bytes = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]])
    else:
        raise ValueError(f"{name} must be a number of bytes or text such as 256MiB, not {size!r}"[:120])
    if not 1 <= num_bytes <= _MAX_BYTES:
        raise ValueError(f"{name} must be at least 1 byte and less than 256 TiB, not {size!r}"[:120])
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Returns a size for people: 512 B, 4.0 KiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1024 or unit == "TiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
