"""What an image's header says: a few bytes are enough, and nothing is decoded."""

from __future__ import annotations

_PNG_START = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers; C4, C8 and CC in their midst are something else.
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ENDS = {0xD9, 0xDA}
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}


def image_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height of a PNG or JPEG image, or None if its header does not tell."""
    if data.startswith(_PNG_START) and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return _jpeg_size(data) if data.startswith(b"\xff\xd8") else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_FRAMES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker in _JPEG_ENDS:
            return None
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None
