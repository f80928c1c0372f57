"""What a shard holds beside its samples: keys, statistics, names of external files, dictionary and description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.external import ExternalFile, decode_external
from shardload.format.keys import decode_keys
from shardload.format.manifest import Description, Manifest, decode_description
from shardload.format.shard import ShardHead
from shardload.format.statistics import FieldStatistics, decode_statistics
from shardload.format.table import ShardEntry
from shardload.reader.rows import RowCache
from shardload.storage import StoredFile

T = TypeVar("T")


class ShardSections:
    """Reads sections whose SHA-256 stands in the directory. Safe for several threads."""

    def __init__(
        self, entry: ShardEntry, head: ShardHead, manifest: Manifest, file: Callable[[], StoredFile], cache: RowCache
    ) -> None:
        """Describes them.

        Args:
            entry: the shard as the table knows it.
            head: where its sections lie.
            manifest: the dataset's.
            file: returns the open file.
            cache: where keys are kept.
        """
        self._entry = entry
        self._head = head
        self._whole_schema = manifest.parsed_schema
        self._schema = manifest.schema_of(entry.generation)
        self._has_dictionary = bool(manifest.generation(entry.generation).dictionary)
        self._file = file
        self._cache = cache

    def keys(self) -> NDArray[Any]:
        """Returns the sorted keys of the shard's samples: structured array of dtype `KEY_ENTRY`."""
        entry, number = self._entry, self._schema.number(self._schema.key)
        place = (entry.generation, entry.unit, entry.part, number)
        keys = self._cache.get(place)
        if keys is None:
            data = self.read(layout.SECTION_KEYS, number)
            keys = self._decoded(lambda: decode_keys(data))
            self._cache.put(place, keys)
        return keys

    def statistics(self) -> list[FieldStatistics]:
        """Returns the statistics of the fields of the dataset's schema; what the generation has not is missing."""
        data = self.read(layout.SECTION_STATISTICS)
        found = self._decoded(lambda: decode_statistics(data, self._schema.fields, self._entry.num_samples))
        return found + [FieldStatistics(self._entry.num_samples)] * (len(self._whole_schema) - len(found))

    def description(self) -> Description:
        """Returns what the shard says of its dataset."""
        data = self.read(layout.SECTION_DESCRIPTION)
        return decode_description(data, f"{self._file().dataset}: {self._entry.name}")

    def dictionary(self) -> bytes:
        """Returns the dictionary of the shard's generation, or nothing."""
        return self.read(layout.SECTION_DICTIONARY) if self._has_dictionary else b""

    def external(self) -> list[ExternalFile]:
        """Returns the existing files that records of the shard lie in."""
        if not any(section.kind == layout.SECTION_EXTERNAL for section in self._head.sections):
            return []
        data = self.read(layout.SECTION_EXTERNAL)
        return self._decoded(lambda: decode_external(data))

    def read(self, kind: int, field: int = layout.NO_FIELD) -> bytes:
        """Returns the content of a section, checked.

        Raises:
            ChecksumError: it does not have its SHA-256.
        """
        section, file = self._head.section(kind, field), self._file()
        data = file.read(section.start, section.stop)
        if hashlib.sha256(data).digest() != section.digest:
            raise ChecksumError(
                f"{file.dataset}: {file.name} is damaged at bytes {section.start} to {section.stop}: the section does not "
                "have its SHA-256",
                dataset=file.dataset,
                shard=file.name,
                start=section.start,
                stop=section.stop,
            )
        return data

    def _decoded(self, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except FormatError as error:
            file = self._file()
            message = f"{file.dataset}: {file.name} is damaged: {error.message}"
            raise FormatError(message, dataset=file.dataset, shard=file.name) from None
