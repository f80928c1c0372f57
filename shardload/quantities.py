"""Sizes, counts, times and shares as people write and read them."""

from __future__ import annotations

import math
import operator
import re
from typing import Any

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kKMGT]?)(i?)B?")
_MAX_BYTES = (1 << 48) - 1
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_DIGITS = r"[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?"
_NUMBER = re.compile(rf"({_DIGITS})\s*([kKMBGT]?)")
_SHARE = re.compile(rf"({_DIGITS})\s*(%?)")
_TIME = re.compile(rf"({_DIGITS})\s*(d|h|min|ms|m|us|s)?\s*")
_TIMES = re.compile(rf"(?:{_TIME.pattern})+")
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


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
    # A bool tensor of one item passes for an integer, where numpy's does not.
    is_bool = type(value) is not int and str(getattr(value, "dtype", type(value).__name__)).endswith("bool")
    if is_bool or (minimum is not None and number < minimum):
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


def parse_number(number: float | str, name: str) -> float:
    """Returns a number from 175000000000, "175e9", "175B", "7T" or "350M"; B is a billion, all letters are powers of 1000.

    Raises:
        ValueError: not such a number, negative, infinite or NaN.
    """
    value = math.nan
    if isinstance(number, int | float) and not isinstance(number, bool):
        value = float(number) if abs(number) < 1e308 else math.inf
    elif isinstance(number, str) and (match := _NUMBER.fullmatch(number.strip())) is not None:
        value = float(match[1]) * _SCALES[match[2]]
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a positive number such as 1000, 175e9, 175B or 7T, not {number!r}"[:120])
    return value


def parse_seconds(duration: float | str, name: str) -> float:
    """Returns seconds from 3600, "3600", "90 s", "30min", "1.5h", "1h30min" or "2d".

    Raises:
        ValueError: not such a time, negative, infinite or NaN.
    """
    value = math.nan
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration) if abs(duration) < 1e308 else math.inf
    elif isinstance(duration, str) and _TIMES.fullmatch(duration.strip()) is not None:
        parts = _TIME.findall(duration.strip())
        # Without a unit it is seconds, and then the only part: in "1h30" nobody can tell what 30 is.
        if len(parts) == 1 or all(unit for _, unit in parts):
            value = sum(float(digits) * _SECONDS[unit or "s"] for digits, unit in parts)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a positive time such as 3600, 90s, 30min, 1h or 2d, not {duration!r}"[:120])
    return value


def parse_share(share: float | str, name: str) -> float:
    """Returns a part of a whole from 0.05, "0.05" or "5%".

    Raises:
        ValueError: not such a share; one from 1 (100 %) on is none.
    """
    value = math.nan
    if isinstance(share, int | float) and not isinstance(share, bool):
        value = float(share) if abs(share) < 1e308 else math.inf
    elif isinstance(share, str) and (match := _SHARE.fullmatch(share.strip())) is not None:
        value = float(match[1]) / (100 if match[2] else 1)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a share between 0 and 100 %, such as 0.05 or 5%, not {share!r}"[:120])
    return value


def format_decimal(value: float, unit: str) -> str:
    """Returns a quantity in decimal units, three digits of it: 2.45 TB, 13.6 GB/s, 109 GB/s."""
    value = float(f"{value:.3g}")
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000 or prefix == "E":
            break
        value /= 1000
    return f"{value:,.0f} {prefix}{unit}" if value >= 1000 else f"{value:.3g} {prefix}{unit}"


def format_seconds(seconds: float) -> str:
    """Returns a time for people, three digits of it: 250 ms, 3 min, 1.5 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size * 0.9995:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
