"""External records: fields that lie in existing files beside the shards (FORMAT.md section 10)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.record import RecordLayout
from shardload.format.schema import canonical_json

EXTERNAL = "external"
"""Name of the feature in `required`."""

MAX_NAME_BYTES = 255

_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


class ExternalFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An existing file that records lie in."""

    name: str
    """One plain component: it lies in the directory of the dataset."""
    num_bytes: int
    sha256: str
    """Of the whole file, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class ExternalPlaces:
    """Where the fields of external records lie: arrays of shape (records, fields) unless said otherwise."""

    files: NDArray[np.int64]
    """Numbers of their files in the list of their shard: shape (records,)."""
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    """First byte in the file, or in the record where it stands there."""
    outside: NDArray[np.bool_]
    """Which fields lie in the file."""


EXTERNAL_BYTES = "external_bytes_"
"""How the metadata facts start that are about where a dataset's own bytes lie."""


def external_bytes_fact(generation: int) -> str:
    """Returns the name of the metadata fact that tells the length of a generation's external files."""
    return f"{EXTERNAL_BYTES}{generation}"


def name_fault(name: str) -> str:
    """Returns why a name cannot be that of an external file, or nothing."""
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not 1 <= num_bytes <= MAX_NAME_BYTES or name in (".", ".."):
        return f"it is not a name of 1 to {MAX_NAME_BYTES} bytes"
    if "/" in name or "\\" in name or _DRIVE_OR_SCHEME.match(name):
        return "it holds a slash, a backslash, or what may be a drive or a scheme before a colon"
    return "it holds control characters" if _CONTROL.search(name) else ""


def encode_external(files: Sequence[ExternalFile]) -> bytes:
    """Returns the content of the section that names files."""
    return canonical_json([msgspec.to_builtins(file) for file in files])


def decode_external(data: bytes) -> list[ExternalFile]:
    """Returns the files that a section names.

    Raises:
        FormatError: it breaks a rule of the format.
    """
    try:
        files = msgspec.json.decode(data, type=list[ExternalFile])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"the list of external files is none: {error}") from None
    for file in files:
        if fault := name_fault(file.name):
            raise FormatError(f"{file.name[:100]!r} cannot be the name of an external file: {fault}")
        if not 1 <= file.num_bytes <= layout.MAX_SHARD_BYTES or _HEX_DIGEST.fullmatch(file.sha256) is None:
            raise FormatError(f"the external file {file.name!r} has no length below 2^48 or no SHA-256")
    if not files or len({file.name for file in files}) < len(files) or encode_external(files) != data:
        raise FormatError("the list of external files is empty, names one twice, or is not in its canonical form")
    return files


def external_places(
    data: NDArray[np.uint8], records: RecordLayout, stored: NDArray[np.int64], raw: NDArray[np.int64]
) -> ExternalPlaces:
    """Returns where the fields of external records lie, checked against the records' lengths.

    Args:
        data: what comes first in each record, up to its fields: uint8 of shape (records, `records.external_bytes`), C-contiguous.
        records: the layout of the records.
        stored: bytes of each record in the heap.
        raw: bytes of each with all fields.

    Raises:
        FormatError: lengths, places and record do not agree; `sample_id` is the record's place among the given ones.
    """
    size, num_fields = records.header.size, len(records.fields)
    lengths = data[:, 4:size].copy().view("<u4").astype(np.int64)
    files = data[:, size : size + 4].copy().view("<u4")[:, 0].astype(np.int64)
    places = data[:, size + 4 :].copy().view("<u8")
    outside = places != np.uint64(layout.STANDS_HERE)
    order = list(records.order)
    here = np.where(outside, 0, lengths)[:, order]
    starts = np.empty((len(data), num_fields), dtype=np.int64)
    starts[:, order] = np.cumsum(here, axis=1) - here + records.external_bytes
    # No sum can wrap: lengths have 32 bits, and places that are not below 2^48 are refused.
    good = np.where(outside, (places <= np.uint64(layout.MAX_SHARD_BYTES)) & (lengths > 0), True).all(axis=1)
    good &= outside.any(axis=1) & (size + lengths.sum(axis=1) == raw)
    good &= records.external_bytes + here.sum(axis=1) == stored
    if not good.all():
        bad = int(np.argmin(good))
        raise FormatError(
            f"the field lengths {tuple(lengths[bad, :8].tolist())} do not fit an external record of {raw[bad]} bytes, "
            f"{stored[bad]} of them in the heap",
            sample_id=bad,
        )
    starts = np.where(outside, places.astype(np.int64), starts)
    return ExternalPlaces(files, lengths, starts, outside)


def encode_places(file: int, places: Sequence[int]) -> bytes:
    """Returns what stands in an external record between its lengths and its fields."""
    head: Any = np.array([file], dtype="<u4").tobytes()
    return bytes(head + np.array(places, dtype="<u8").tobytes())
