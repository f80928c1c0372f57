"""Sizes in words."""

from __future__ import annotations

import pytest

from shardload.quantities import format_bytes, parse_bytes


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
