"""What an export notes beside its files: fields and types that those cannot say, so that a pack gives the same dataset.

It is JSON: a member of each tar, and an entry of the metadata of each Parquet file, both named `NOTE_NAME`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shardload.errors import FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.manifest import Metadata, check_metadata
from shardload.format.schema import Field, parse_schema

NOTE_NAME = "__shardload__"
"""webdataset passes over members of such a name."""
MAX_NOTE_BYTES = layout.MAX_MANIFEST_BYTES
KEY = ""
"""How a field is stored whose values are the keys of a tar's samples."""

_VERSION = 1


class NotedField(msgspec.Struct, frozen=True):
    """One field of the dataset that was exported."""

    name: str
    type: str
    stored: str
    """Extension of its members, or name of its column."""


class Note(msgspec.Struct, frozen=True):
    """The fields that were exported, in order, and the facts that the dataset was written with."""

    fields: list[NotedField]
    metadata: Metadata = {}
    version: int = _VERSION

    @property
    def types(self) -> dict[str, str]:
        """Field name -> type."""
        return {field.name: field.type for field in self.fields}

    def encode(self) -> bytes:
        """Returns it as JSON."""
        return msgspec.json.encode(self)


def make_note(fields: Sequence[Field], stored: Sequence[str], metadata: Metadata) -> Note:
    """Returns the note of fields and how each is stored."""
    noted = [NotedField(field.name, field.type, place) for field, place in zip(fields, stored, strict=True)]
    return Note(noted, check_metadata(metadata))


def decode_note(data: bytes) -> Note:
    """Returns a note, checked.

    Raises:
        FormatError: it is none.
        UnsupportedVersionError: it is that of a later version.
    """
    try:
        note = msgspec.json.decode(data, type=Note)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"what shardload noted of the export is broken: {error}") from None
    if note.version != _VERSION:
        raise UnsupportedVersionError(f"it was exported by another version of shardload (note {note.version})")
    parse_schema({field.name: field.type for field in note.fields})
    if len({field.name for field in note.fields}) < len(note.fields) or len(
        {field.stored for field in note.fields}
    ) < len(note.fields):
        raise FormatError("what shardload noted of the export names a field twice")
    check_metadata(note.metadata)
    return note
