"""Tars made byte by byte, sound and otherwise."""

from __future__ import annotations

import gzip
import tarfile

import zstandard

END = bytes(1024)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(name: str | bytes, size: int = 0, kind: bytes = b"0", form: int = tarfile.USTAR_FORMAT, **fields) -> bytes:
    """One header block with the given fields, whatever they are, and a checksum that fits."""
    info = tarfile.TarInfo("x" if isinstance(name, bytes) else name)
    info.size, info.type = max(size, 0), kind
    for field, value in fields.items():
        setattr(info, field, value)
    block = bytearray(info.tobuf(form, "utf-8"))[-512:]
    if isinstance(name, bytes):
        block[:100] = name.ljust(100, b"\0")
    if size < 0:
        block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
    return summed(block)


def summed(block: bytes | bytearray) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str | bytes, data: bytes = b"", **fields) -> bytes:
    return header(name, len(data), **fields) + padded(data)


def pax(kind: bytes = b"x", raw: bytes | None = None, **facts: str | bytes) -> bytes:
    """A PAX header; `__` in a keyword stands for a dot."""
    records = b""
    for keyword, value in facts.items():
        text = (
            keyword.replace("__", ".").encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
        )
        size = len(text) + 2
        while size != len(text) + len(str(size)) + 1:
            size = len(text) + len(str(size)) + 1
        records += b"%d %s" % (size, text)
    return member("././@PaxHeader", records if raw is None else raw, kind=kind)


def long_name(name: bytes) -> bytes:
    return member("././@LongLink", name + b"\0", kind=b"L", form=tarfile.GNU_FORMAT)


def packed(data: bytes, suffix: str) -> bytes:
    """The bytes of a tar file of this suffix."""
    if suffix.endswith("gz"):
        return gzip.compress(data, 1)
    return zstandard.ZstdCompressor(level=1).compress(data) if suffix.endswith("zst") else data
