"""Samples whose fields stay where they are, in existing files beside the shards."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from shardload.format import layout
from shardload.format.external import ExternalFile, encode_external, encode_places
from shardload.format.record import RecordLayout
from shardload.writer.encode import EncodedSample


@dataclass(frozen=True, slots=True)
class Outside:
    """Where values of a sample lie in a file that stays as it is."""

    file: ExternalFile
    spans: Mapping[str, tuple[int, bytes]]
    """Field name -> its first byte in the file, and the bytes there: they are what is stored for its value."""


class ExternalFiles:
    """The files that the records of one shard lie in, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[ExternalFile, int] = {}
        self._num_bytes = 0

    def num_bytes_with(self, file: ExternalFile | None) -> int:
        """Returns the length of the list if a file is in it; 0 for an empty one."""
        if file is None or file in self._numbers:
            return self._num_bytes
        # The brackets of the first and the comma of another.
        return self._num_bytes + len(encode_external([file])) - (1 if self._numbers else 0)

    def number(self, file: ExternalFile) -> int:
        """Returns the number of a file, which is in the list from then on."""
        if file not in self._numbers:
            self._num_bytes = self.num_bytes_with(file)
            self._numbers[file] = len(self._numbers)
        return self._numbers[file]

    def encode(self) -> bytes:
        """Returns the section that names them; nothing if there are none."""
        return encode_external(list(self._numbers)) if self._numbers else b""


def leave_outside(sample: EncodedSample, records: RecordLayout, outside: Outside) -> None:
    """Takes what lies in a file out of an encoded sample, in whose record the places stand from then on.

    Args:
        sample: the sample, encoded as if it were to be copied.
        records: the layout of its record.
        outside: where values of it lie; fields that are not stored in the record are passed over.
    """
    lengths = list(struct.unpack(f"<{len(records.fields)}I", sample.header)) if records.fields else []
    places, found = [layout.STANDS_HERE] * len(lengths), {}
    body, at, here = sample.plain + sample.packed, 0, []
    for i in records.order:
        value = body[at : at + lengths[i]]
        at += lengths[i]
        start, data = outside.spans.get(records.fields[i].name, (0, b""))
        # Nothing is stored of a missing value, be it null in JSON.
        if value and data:
            places[i], lengths[i], found[start] = start, len(data), data
        else:
            here.append(value)
    if not found:
        return
    sample.header = struct.pack(f"<{len(lengths)}I", *lengths)
    # The number of the file comes when it is known which shard this goes to.
    sample.plain, sample.packed = b"".join([encode_places(0, places), *here]), b""
    sample.raw_bytes = 4 + len(sample.header) + sum(lengths)
    sample.file, sample.outside = outside.file, [found[start] for start in sorted(found)]


def numbered(record: bytes, header_bytes: int, number: int) -> bytes:
    """Returns an external record, given as it is stored after its checksum, with the number of its file."""
    return b"".join([record[:header_bytes], number.to_bytes(4, "little"), record[header_bytes + 4 :]])
