"""Takes a sound dataset apart and writes it anew with any part changed and everything above that part made right again.

Only such datasets test what is behind the checksums: record sums, sums of wide values and stream blocks, page digests,
section digests, header digest, head and file digest, shard table, sums in the manifest and fingerprint are repaired, in
this order, and after each step an edit may lie on purpose.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shardload.format import layout
from shardload.format.checksum import block_sum, identity_sum
from shardload.format.manifest import decode_manifest
from shardload.format.record import record_layout
from shardload.format.rows import PLACE, RAW, STORED, row_layout, sum_column
from shardload.format.schema import Schema
from shardload.format.table import decode_table

Edit = Callable[[Any], Any]


def keep(value: Any) -> None:
    """The edit that changes nothing."""


def canonical(value: Any) -> bytes:
    """The form of JSON in the format, also of what the format does not allow."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def manifest_text(inner: bytes) -> bytes:
    """The file of a manifest's JSON, whatever that is, with the fingerprint of its bytes."""
    return b'{"fingerprint":"%s","manifest":%s}\n' % (hashlib.sha256(inner).hexdigest().encode(), inner)


@dataclass
class Section:
    """One section, of any length."""

    kind: int
    field: int
    item_bytes: int
    data: bytearray
    hole: int = 0
    """Bytes left free before it, beyond its padding."""


@dataclass
class Shard:
    """One shard in pieces."""

    schema: Schema
    identity: tuple[int, int, int]
    header: bytearray
    sections: list[Section]
    footer: list[Any]
    """Values of `layout.FOOTER`."""
    edit_directory: Edit = keep
    """Changes the list of directory entries, each a list of six values, in place."""
    edit_footer: Edit = keep
    """Changes the list of the footer's values in place."""
    edit_file: Callable[[bytearray], Any] = keep
    """Changes the file in place; directory and footer stand behind it and are still right."""
    repaired: bool = True
    """Whether sums and page digests inside the shard are made right."""
    edit_rows: Edit = keep
    """Changes the rows in place after the sums of wide values were put in."""

    @classmethod
    def parse(cls, data: bytes, schema: Schema, identity: tuple[int, int, int]) -> Shard:
        footer = list(layout.FOOTER.unpack(data[-layout.FOOTER_BYTES :]))
        start = len(data) - layout.FOOTER_BYTES - layout.DIRECTORY_ENTRY_BYTES * footer[2]
        sections = []
        for kind, number, at, size, item, _ in layout.DIRECTORY_ENTRY.iter_unpack(data[start : -layout.FOOTER_BYTES]):
            sections.append(Section(kind, number, item, bytearray(data[at : at + size])))
        return cls(schema, identity, bytearray(data[: layout.HEADER_BYTES]), sections, footer)

    def section(self, kind: int, name: str = "") -> Section:
        """The section of a kind, and of a field."""
        number = self.schema.number(name) if name else layout.NO_FIELD
        return next(s for s in self.sections if (s.kind, s.field) == (kind, number))

    def has(self, kind: int) -> bool:
        return any(s.kind == kind for s in self.sections)

    @property
    def rows(self) -> np.ndarray:
        """The packed rows; they may be changed."""
        return np.frombuffer(self.section(layout.SECTION_ROWS).data, dtype=row_layout(self.schema).dtype)

    @property
    def num_samples(self) -> int:
        return len(self.rows)

    def record_at(self, local_id: int) -> tuple[int, int]:
        """The half-open range of a sample's record in the heap."""
        start = int(self.rows[PLACE][local_id]) & layout.OFFSET_MASK
        return start - layout.HEADER_BYTES, start - layout.HEADER_BYTES + int(self.rows[STORED][local_id])

    def set_last_record(self, body: bytes, raw: int | None = None, framed: bool = False) -> None:
        """Gives the last sample a record: all that follows its checksum."""
        heap = self.section(layout.SECTION_HEAP).data
        start = self.record_at(-1)[0]
        # The alignment of a long record also does for a short one.
        start = layout.align(start, layout.LARGE_RECORD_ALIGNMENT)
        del heap[start:]
        heap += bytes(start - len(heap)) + bytes(4) + body
        rows = self.rows
        rows[PLACE][-1] = (start + layout.HEADER_BYTES) | int(framed) << layout.OFFSET_BITS
        rows[STORED][-1] = 4 + len(body)
        rows[RAW][-1] = 4 + len(body) if raw is None else raw
        del rows

    def encode(self) -> bytes:
        """The file, with everything made right that is not lied about on purpose."""
        if self.repaired:
            self._repair_records()
            self._repair_wide()
        rows = self.rows
        self.edit_rows(rows)
        del rows
        if self.repaired:
            self._repair_streams()
            self._repair_pages()
        directory, file = [], bytearray(self.header)
        for section in self.sections:
            file += bytes(-len(file) % layout.section_alignment(section.kind) + section.hole)
            digested = section.kind in layout.DIGESTED_SECTIONS
            digest = hashlib.sha256(section.data).digest() if digested else bytes(32)
            directory.append([section.kind, section.field, len(file), len(section.data), section.item_bytes, digest])
            file += section.data
        file += bytes(-len(file) % layout.SMALL_SECTION_ALIGNMENT)
        self.edit_directory(directory)
        self.edit_file(file)
        footer = list(self.footer)
        footer[2], footer[3] = len(directory), self.num_samples
        footer[4] = len(file) + len(directory) * layout.DIRECTORY_ENTRY_BYTES + layout.FOOTER_BYTES
        footer[5] = hashlib.sha256(file[: layout.HEADER_BYTES]).digest()
        self.edit_footer(footer)
        self.tail = b"".join(layout.DIRECTORY_ENTRY.pack(*entry) for entry in directory) + layout.FOOTER.pack(*footer)
        return bytes(file) + self.tail

    def _repair_records(self) -> None:
        if not self.has(layout.SECTION_HEAP):
            return
        heap = self.section(layout.SECTION_HEAP).data
        least = record_layout(self.schema).header.size
        for local_id in range(self.num_samples - 1, -1, -1):
            start, stop = self.record_at(local_id)
            if start >= 0 and least <= stop - start and stop <= len(heap):
                identity = identity_sum(*self.identity, layout.NO_FIELD, local_id)
                heap[start : start + 4] = block_sum(bytes(heap[start + 4 : stop]), identity).to_bytes(4, "little")

    def _repair_wide(self) -> None:
        for one in self.schema.wide_fields:
            number = self.schema.number(one.name)
            data = self.section(layout.SECTION_WIDE, one.name).data
            for local_id in range(self.num_samples):
                value = bytes(data[local_id * one.num_bytes : (local_id + 1) * one.num_bytes])
                self.rows[sum_column(one)][local_id] = block_sum(value, identity_sum(*self.identity, number, local_id))

    def _repair_streams(self) -> None:
        for one in self.schema.stream_fields:
            number = self.schema.number(one.name)
            data = self.section(layout.SECTION_STREAM, one.name).data
            sums = self.section(layout.SECTION_SUMS, one.name)
            sums.data = bytearray()
            for block in range(layout.num_blocks(len(data))):
                part = bytes(data[block * layout.BLOCK_BYTES : (block + 1) * layout.BLOCK_BYTES])
                sums.data += block_sum(part, identity_sum(*self.identity, number, block)).to_bytes(4, "little")

    def _repair_pages(self) -> None:
        rows, data = row_layout(self.schema), self.section(layout.SECTION_ROWS).data
        count = len(data) // rows.dtype.itemsize
        bounds = [rows.page_bounds(page, count) for page in range(rows.num_pages(count))]
        digests = b"".join(hashlib.sha256(data[start:stop]).digest() for start, stop in bounds)
        self.section(layout.SECTION_PAGES).data = bytearray(digests)


@dataclass
class Forge:
    """A copy of a dataset in pieces; `save` writes them over the copy."""

    path: Path
    manifest: dict[str, Any] = field(init=False)
    entries: np.ndarray = field(init=False)
    """The shard table: structured array."""
    shards: list[Shard] = field(init=False)
    edit_entries: Edit = keep
    """Changes the structured array of the table in place, or returns another."""
    edit_table: Edit = keep
    """Changes the list of the table header's values in place: magic, format number, entry size, entries, zero."""
    edit_manifest: Edit = keep
    """Changes the inner manifest, a dict, in place."""
    edit_text: Edit = keep
    """Returns another text for the canonical JSON of the inner manifest; its fingerprint is then right all the same."""

    def __post_init__(self) -> None:
        data = (self.path / "manifest.json").read_bytes()
        self.sound = decode_manifest(data, "manifest.json")
        self.manifest = json.loads(data)["manifest"]
        table = decode_table((self.path / "tables" / self.sound.table).read_bytes(), self.sound, "table")
        self.entries = table.entries.copy()
        self.names = [entry.name for entry in table]
        self.shards = []
        for entry in table:
            identity, schema = (entry.generation, entry.unit, entry.part), self.sound.schema_of(entry.generation)
            self.shards.append(Shard.parse((self.path / entry.name).read_bytes(), schema, identity))

    @classmethod
    def copy(cls, source: Path, target: Path) -> Forge:
        shutil.copytree(source, target)
        return cls(target)

    def save(self) -> Path:
        """Writes everything anew, and returns the dataset's path."""
        for name, entry, shard in zip(self.names, self.entries, self.shards, strict=True):
            data = shard.encode()
            (self.path / name).write_bytes(data)
            entry["num_samples"], entry["num_bytes"] = shard.num_samples, len(data)
            entry["head_digest"] = np.void(hashlib.sha256(shard.tail).digest())
            entry["file_digest"] = np.void(hashlib.sha256(data).digest())
            for slot, one in enumerate(shard.schema.stream_fields):
                size = len(shard.section(layout.SECTION_STREAM, one.name).data)
                entry["num_items"][slot] = size // one.num_bytes
        return self.save_above()

    def save_above(self) -> Path:
        """Writes table and manifest anew, over the shards as they are."""
        changed = self.edit_entries(self.entries)
        entries = self.entries if changed is None else changed
        header = [layout.TABLE_MAGIC, layout.FORMAT_NUMBER, entries.dtype.itemsize, len(entries), 0]
        self.edit_table(header)
        table = _TABLE_HEADER.pack(*header) + entries.tobytes()
        digest = hashlib.sha256(table).hexdigest()
        (self.path / "tables" / digest).write_bytes(table)
        manifest = self.manifest
        manifest["table"], manifest["num_shards"] = digest, len(entries)
        for total in ("num_samples", "num_bytes"):
            manifest[total] = sum(entries[total].tolist())
        for generation in manifest["generations"]:
            mine = [i for i, entry in enumerate(entries) if entry["generation"] == generation["generation"]]
            generation["num_samples"] = sum(int(entries[i]["num_samples"]) for i in mine)
            shards = [shard for shard in self.shards if shard.identity[0] == generation["generation"]]
            if shards and shards[0].has(layout.SECTION_DICTIONARY):
                dictionary = shards[0].section(layout.SECTION_DICTIONARY).data
                generation["dictionary"] = hashlib.sha256(dictionary).hexdigest()
        self.edit_manifest(manifest)
        text = self.edit_text(canonical(manifest)) or canonical(manifest)
        self.write_manifest(manifest_text(text))
        return self.path

    def write_manifest(self, data: bytes) -> None:
        """Writes the file of the manifest and its committed original."""
        for name in ("manifest.json", f"manifests/{self.sound.version}"):
            (self.path / name).write_bytes(data)


_TABLE_HEADER = struct.Struct("<8sIIQQ")
