"""Sizes, counts, times and shares in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.quantities import (
    format_bytes,
    format_decimal,
    format_seconds,
    parse_bytes,
    parse_number,
    parse_seconds,
    parse_share,
)

busy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
"""On a busy machine a test may take any time."""


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (1, 1),
        ("1", 1),
        ("512B", 512),
        ("256MiB", 256 << 20),
        ("64 kB", 64_000),
        ("1.5G", 1_500_000_000),
        ("2Ki", 2048),
        (" 1TiB ", 1 << 40),
    ],
)
def test_parse(text, num_bytes):
    assert parse_bytes(text, "size") == num_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1 apple", "0", 0, -5, True, 1.5, None, "9" * 400, "999T", 1 << 48, "1e3", "٣"]
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"^size must be"):
        parse_bytes(text, "size")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 52, "4096.0 TiB")],
)
def test_format(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("175e9", 175e9),
        ("175B", 175e9),
        ("7T", 7e12),
        ("1.5k", 1500),
        (" 350 M ", 350e6),
        ("0", 0),
        (12, 12),
        ("1E3", 1e3),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text, "params") == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "-1",
        "1e999",
        "1e308T",
        "B",
        "175 X",
        "1_000",
        "1,000",
        "٣",
        math.nan,
        math.inf,
        -1.0,
        10**400,
        True,
    ],
)
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match=r"^params must be"):
        parse_number(text, "params")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600),
        ("90 s", 90),
        ("30min", 1800),
        ("5m", 300),
        ("1.5h", 5400),
        ("1h30min", 5400),
        ("1d 2h", 93600),
        ("250ms", 0.25),
        ("40us", 4e-5),
        (0.5, 0.5),
    ],
)
def test_parse_seconds(text, seconds):
    assert parse_seconds(text, "time") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "h", "1h30", "30 1h", "1y", "-1s", "nan", "1e999s", "1 hour", math.nan, -1, True, None]
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"^time must be"):
        parse_seconds(text, "time")


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), (0.5, 0.5), ("1e-1", 0.1)])
def test_parse_share(text, share):
    assert parse_share(text, "share") == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "5", "1", "100%", "0", "0%", "-5%", "nan", "5 percent", 5, 1, math.nan, True])
def test_what_is_no_share(text):
    with pytest.raises(ValueError, match=r"^share must be"):
        parse_share(text, "share")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (2.45e12, "2.45 TB"),
        (7e12, "7 TB"),
        (13.61e9, "13.6 GB"),
        (108.9e9, "109 GB"),
        (3e21, "3,000 EB"),
        (0.25, "0.25 B"),
    ],
)
def test_format_decimal(value, text):
    assert format_decimal(value, "B") == text


@busy
@given(st.floats(1, 2.8e14))
def test_decimal_sizes_are_read_as_they_are_written(num_bytes):
    assert parse_bytes(format_decimal(num_bytes, "B").replace(",", ""), "size") == pytest.approx(
        num_bytes, rel=0.006, abs=1
    )


@busy
@given(st.floats(1e-6, 1e9))
def test_times_are_read_as_they_are_written(seconds):
    text = format_seconds(seconds)
    assert parse_seconds(text.replace("e+", "e"), "time") == pytest.approx(seconds, rel=0.006)
    assert float(text.split()[0]) < 1000 or text.endswith(" d")
