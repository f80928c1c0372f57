"""One file read whole, as it is or unpacked."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any

from shardload.format import layout
from shardload.importers.base import SourceFile
from shardload.importers.compressed import DamageError, ZstdStream
from shardload.importers.files import LostFileError, Root, check_unchanged, open_file, unreadable
from shardload.importers.lines import compression

_READ_BYTES = 1 << 20


def read_whole(root: Root, file: SourceFile, name: str) -> bytes:
    """Returns the bytes of a file.

    Args:
        root: absolute path of the source's folder.
        file: the file as it was scanned.
        name: what to call it in messages.

    Raises:
        LostFileError: it cannot be read, has changed, or is longer than a sample can be.
    """
    if file.num_bytes > layout.MAX_RECORD_BYTES:
        raise LostFileError(f"{name} has {file.num_bytes} bytes; a sample holds less than 4 GiB")
    with open_file(root, file, name) as opened:
        try:
            # One byte more than there was, so that a file that grows meanwhile is noticed.
            parts, missing = [], file.num_bytes + 1
            while missing and (part := opened.read(missing)):
                parts.append(part)
                missing -= len(part)
            if missing == 1:
                check_unchanged(opened, file, name)
        except OSError as error:
            raise unreadable(name, error) from error
    if missing != 1:
        now = file.num_bytes + 1 - missing if missing else "more"
        raise LostFileError(
            f"{name} changed while it was being packed: it had {file.num_bytes} bytes and now has {now}"
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_unpacked(root: Root, file: SourceFile, name: str) -> bytes:
    """Returns the content of a file that is compressed if its suffix says so; arguments as of `read_whole`.

    Raises:
        LostFileError: as of `read_whole`, or it is damaged or cut short, or its content is longer than a sample can be.
    """
    kind = compression(name)
    if not kind:
        return read_whole(root, file, name)
    with open_file(root, file, name) as opened:
        try:
            if file.num_bytes == 0:
                raise EOFError("it is empty")
            packed = io.BufferedReader(opened, _READ_BYTES)
            stream: Any = gzip.GzipFile(fileobj=packed) if kind == "gz" else ZstdStream(packed)
            data = _bounded(io.BufferedReader(stream, _READ_BYTES), name)
            check_unchanged(opened, file, name)
        except (EOFError, gzip.BadGzipFile, zlib.error, DamageError) as error:
            raise LostFileError(f"{name} is damaged or was cut short: {error}") from None
        except OSError as error:
            raise unreadable(name, error) from error
    return data


def _bounded(content: io.BufferedReader[Any], name: str) -> bytes:
    """Reads to the end, which may not be further than a sample goes: a few kilobytes can unpack to anything."""
    parts, num_bytes = [], 0
    while part := content.read(_READ_BYTES):
        parts.append(part)
        num_bytes += len(part)
        if num_bytes > layout.MAX_RECORD_BYTES:
            raise LostFileError(
                f"{name} has more than {layout.MAX_RECORD_BYTES} bytes when it is unpacked; a sample holds less"
            )
    return b"".join(parts)
