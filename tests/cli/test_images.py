from __future__ import annotations

import struct

import pytest

from shardload.cli.images import image_size

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 640, 70000, 8, 2, 0, 0, 0)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def frame(marker: int) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, 480, 640, 3) + bytes(9))


JFIF = segment(0xE0, b"JFIF\0" + bytes(9))
# A thumbnail in the EXIF segment has a frame of its own, which must not be taken for the image's.
EXIF = segment(0xE1, b"Exif\0\0\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 12, 16, 3) + bytes(9)))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (PNG, (640, 70000)),
        (b"\xff\xd8" + JFIF + frame(0xC0), (640, 480)),
        (b"\xff\xd8" + EXIF + segment(0xC4, bytes(20)) + b"\xff" + frame(0xC2), (640, 480)),
        (b"\xff\xd8" + b"\xff\x01" + frame(0xC1), (640, 480)),
        (PNG[:23], None),
        (b"\xff\xd8", None),
        (b"\xff\xd8" + JFIF, None),
        (b"\xff\xd8" + JFIF + b"\xff\xda\0\x0c" + frame(0xC0), None),
        (b"\xff\xd8" + b"\xff\xe0\0\0" * 50, None),
        (b"\xff\xd8" + JFIF + frame(0xC0)[:8], None),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_size_in_the_header(data: bytes, size: tuple[int, int] | None) -> None:
    assert image_size(data) == size
