"""Changes to bytes that find more than noise does: numbers at boundaries, pieces moved, tokens of JSON exchanged."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
WORDS = [
    b"null", b"true", b"false", b"NaN", b"Infinity", b"-0", b"1.0", b"1e999", b"[", b"]", b"{", b"}", b",", b":", b'""',
    b'"\\ud800"', b'"\\u0000"', b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"[" * 300, b'{"a":' * 300, b"9" * 400,
    b"9" * 5000, b'"../x"', b" ", b"\n", b"-1", b"[" * 2000, b"zstd:23", b"int8[*]?", b"float32[1,2]", b"bytes[*]", b"json",
]  # fmt: skip
TOKEN = re.compile(rb'-?[0-9]+|"(?:[^"\\]|\\.)*"|[][{},:]')
MAX_BYTES = 1 << 17

Change = Callable[[bytearray, random.Random], None]


def _flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _byte(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))


def _number(data: bytearray, draw: random.Random) -> None:
    size = draw.choice((2, 4, 4, 8, 8))
    at = draw.randrange(len(data))
    at -= at % draw.choice((1, 4, 8))
    value = draw.choice(NUMBERS) + draw.choice((-1, 0, 0, 1))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _step(data: bytearray, draw: random.Random) -> None:
    """A number that is there becomes a little more or less."""
    at = draw.randrange(len(data)) & ~3
    value = int.from_bytes(data[at : at + 4], "little") + draw.choice((-64, -4, -1, 1, 4, 64))
    data[at : at + 4] = (value % (1 << 32)).to_bytes(4, "little")


def _cut(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.choice((1, 4, 8, 64, draw.randrange(1, len(data) + 1)))]


def _double(data: bytearray, draw: random.Random) -> None:
    at, size = draw.randrange(len(data)), draw.choice((1, 4, 8, 16, 64, 88))
    data[at:at] = data[at : at + size]


def _move(data: bytearray, draw: random.Random) -> None:
    size = draw.choice((4, 8, 16, 20, 32, 64, 128))
    source, target = draw.randrange(len(data)), draw.randrange(len(data))
    part = data[source : source + size]
    data[target : target + len(part)] = part


def _zero(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    size = min(draw.choice((4, 16, 64, 4096)), len(data) - at)
    data[at : at + size] = bytes(size)


def _insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.randbytes(draw.choice((1, 2, 4, 8)))


def _token(data: bytearray, draw: random.Random) -> None:
    tokens = list(TOKEN.finditer(data))
    if not tokens:
        return _byte(data, draw)
    one, other = draw.choice(tokens), draw.choice(tokens)
    new = draw.choice((bytes(other[0]), draw.choice(WORDS), str(draw.choice(NUMBERS) * draw.choice((1, -1))).encode()))
    start, stop = one.span()
    # A match keeps the buffer from changing its size.
    del tokens, one, other
    data[start:stop] = new


BINARY: list[Change] = [_flip, _byte, _number, _number, _step, _step, _cut, _double, _move, _zero, _insert]
TEXT: list[Change] = [_token, _token, _token, _token, _flip, _byte, _cut, _double, _insert, _move]


def mutate(data: bytes, draw: random.Random, text: bool = False) -> bytes:
    """Returns the bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not changed:
            changed += b"\0"
        draw.choice(TEXT if text else BINARY)(changed, draw)
    return bytes(changed[:MAX_BYTES])
