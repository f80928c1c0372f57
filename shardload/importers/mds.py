"""Datasets of MosaicML's streaming (MDS) as a source: `index.json` and the shards that it names, plain, zstd or gzip.

Types given are the whole schema, and choose columns. A shard is read from its start to its end, so each is indivisible;
memory holds one sample, and 4 bytes for each sample of a shard.
https://docs.mosaicml.com/projects/streaming/en/stable/preparing_datasets/dataset_format.html
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_field, parse_schema
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.compressed import DamageError, ZstdStream
from shardload.importers.files import Root, check_unchanged, examine_file, is_there, open_file, read_small, unreadable
from shardload.importers.mds_values import BadValue, array_encoding, decoder, encoding_type
from shardload.importers.units import cut_units

INDEX = "index.json"
LOOKED_AT_SAMPLES = 100
"""Samples from which the shape of arrays is told whose encoding does not say it."""

_MAX_INDEX_BYTES = 1 << 30
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Shard:
    """What the index says of a shard."""

    num_samples: int
    num_bytes: int
    """Bytes when decompressed."""
    compression: str
    """`zstd`, `gz`, or nothing."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the index says of the columns, which all shards share."""

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of a value; 0 where they differ."""


def is_mds(root: Root) -> bool:
    """Tells whether a folder is a dataset of MosaicML's streaming, by its index."""
    try:
        found = json.loads(read_small(root, INDEX, _MAX_INDEX_BYTES) or b"{}")
        return bool(found["shards"][0]["format"] == "mds")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return False


class MdsSource:
    """A folder with an index and its shards."""

    def __init__(self, root: Root, location: str) -> None:
        """Reads the index.

        Args:
            root: the folder.
            location: what the user called it.

        Raises:
            PackError: the index is not sound, its shards differ in their columns, or one is not there.
        """
        self.location = location
        self.skipped: dict[str, int] = {}
        self._index = examine_file(root, INDEX, location)
        name = os.path.join(location, INDEX)
        with open_file(root, self._index, name) as opened:
            found = json.loads(opened.readall() or b"{}")
        shards: dict[str, Shard] = {}
        self._files: list[SourceFile] = []
        columns: Columns | None = None
        for number, entry in enumerate(found["shards"]):
            try:
                path, shard, its_columns = _entry(root, entry)
            except (KeyError, TypeError, ValueError) as error:
                text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                raise PackError(f"{name}: its shard {number} cannot be read: {text}") from None
            if path in shards:
                raise PackError(f"{name} names {path} twice")
            if columns is not None and its_columns != columns:
                raise PackError(f"{name}: {path} is of other columns than {self._files[0].path}: pack them apart")
            columns = its_columns
            shards[path] = shard
            self._files.append(examine_file(root, path, location))
        self._reader = MdsReader(root, location, shards, columns or Columns((), (), ()), {})

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given choose columns.

        Raises:
            PackError: a column becomes no field, or not the one given.
        """
        columns, hint = self._reader.columns, ""
        if types is None:
            types = self._types()
            hint = "the types are those of the encodings; give others with --schema"
        for name, text in types.items():
            field = parse_field(name, text)
            if name not in columns.names:
                if field.nullable:
                    continue
                raise PackError(f"{self.location} has no column {name!r}, but {', '.join(columns.names):.500}")
            self._checked(name, lambda encoding, field=field: decoder(encoding, field))
        units = cut_units(self._files, [False] * len(self._files), unit_size)
        # So that another index is another source, too.
        units = [Unit(unit.number, (*unit.pieces, Piece(self._index, 0, 0))) for unit in units]
        return SourcePlan(replace(self._reader, types=dict(types)), units, dict(types), {}, hint)

    def _checked(self, name: str, check: Any) -> Any:
        columns = self._reader.columns
        try:
            return check(columns.encodings[columns.names.index(name)])
        except BadValue as error:
            raise PackError(f"{self.location}: its column {name!r} {error}") from None

    def _types(self) -> dict[str, str]:
        types: dict[str, str] = {}
        for name in self._reader.columns.names:
            types[name] = self._checked(name, encoding_type)
            try:
                parse_schema({name: "str"})
            except FormatError as error:
                raise PackError(f"{self.location}: {error}; leave it out with --schema") from None
        if not any(shard.num_samples for shard in self._reader.shards.values()):
            raise PackError(f"{self.location} holds no sample")
        arrays = [name for name, text in types.items() if text == "array"]
        return types | (self._array_types(arrays) if arrays else {})

    def _array_types(self, names: Sequence[str]) -> dict[str, str]:
        """Returns the types of arrays whose encoding does not say them, from the first samples."""
        reader = replace(self._reader, types=dict.fromkeys(names, "bytes"))
        unit = Unit(0, tuple(Piece(file, 0, file.num_bytes) for file in self._files))
        found: dict[str, set[tuple[str, tuple[int, ...]]]] = {name: set() for name in names}
        for item in itertools.islice(reader.read(unit), LOOKED_AT_SAMPLES):
            if isinstance(item, Reject):
                continue
            for name in names:
                encoding = array_encoding(self._reader.columns.encodings[self._reader.columns.names.index(name)])
                assert encoding is not None
                try:
                    array = encoding.decode(item.values[name])
                except BadValue as error:
                    raise PackError(f"{item.place}: field {name!r} {error}") from None
                found[name].add((array.dtype.name, array.shape[1:]))
        types = {}
        for name, kinds in found.items():
            if len(kinds) != 1:
                raise PackError(
                    f"{self.location}: the arrays of column {name!r} differ in dtype or in more than their first dimension: take "
                    "them as they are with the type bytes, or leave them out, with --schema"
                )
            [(dtype, shape)] = kinds
            types[name] = f"{dtype}[{','.join(('*', *map(str, shape)))}]"
        return types


def _entry(root: Root, entry: Any) -> tuple[str, Shard, Columns]:
    """Returns path, facts and columns of an entry of the index."""
    if entry["version"] != 2 or entry["format"] != "mds":
        raise ValueError(f"it is of format {entry['format']!r}, version {entry['version']!r}, not mds, version 2")
    raw, packed = entry["raw_data"], entry.get("zip_data")
    compression = str(entry.get("compression") or "").partition(":")[0]
    # A reader of streaming leaves decompressed shards beside, or in place of, the compressed ones.
    unpacked = not packed or not is_there(root, packed["basename"])
    path = (raw if unpacked else packed)["basename"]
    if not isinstance(path, str) or path != os.path.basename(path) or path in ("", ".", "..", INDEX):
        raise ValueError(f"it names the file {path!r}, which cannot be its own")
    if not unpacked and compression not in ("zstd", "gz"):
        raise ValueError(f"it is compressed by {compression!r}; zstd and gz are read: decompress the shards first")
    columns = Columns(
        tuple(map(str, entry["column_names"])),
        tuple(map(str, entry["column_encodings"])),
        tuple(int(size or 0) for size in entry["column_sizes"]),
    )
    if len({len(columns.names), len(columns.encodings), len(columns.sizes), len(set(columns.names))}) > 1:
        raise ValueError("its columns have not one name, encoding and size each")
    shard = Shard(int(entry["samples"]), int(raw["bytes"]), "" if unpacked else compression)
    return path, shard, columns


@dataclass(frozen=True, slots=True)
class MdsReader:
    """Reads units of shards."""

    root: Root
    location: str
    shards: Mapping[str, Shard]
    """Facts by the path of the file."""
    columns: Columns
    types: Mapping[str, str]
    """Field name -> type."""

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields the samples of the unit's shards, or why they are none."""
        fields = [parse_field(name, text) for name, text in self.types.items() if name in self.columns.names]
        numbers = [self.columns.names.index(field.name) for field in fields]
        decoders = [
            (field.name, number, decoder(self.columns.encodings[number], field))
            for field, number in zip(fields, numbers, strict=True)
        ]
        for piece in unit.pieces:
            if piece.file.path not in self.shards:
                continue
            for number, (data, num_bytes) in enumerate(self._records(piece.file)):
                place = f"{os.path.join(self.location, piece.file.path)} sample {number}"
                yield self._sample(data, place, num_bytes, decoders)

    def _sample(self, data: bytes, place: str, num_bytes: int, decoders: Sequence[Any]) -> Sample | Reject:
        name, values = "", {}
        parts = self._parts(data)
        if parts is None:
            return Reject(place, "the sizes of its values are not those of the sample", num_bytes)
        try:
            for name, number, decode in decoders:
                values[name] = decode(parts[number])
        except BadValue as error:
            return Reject(place, f"field {name!r} {error}", num_bytes)
        return Sample(values, place, num_bytes)

    def _parts(self, data: bytes) -> list[bytes] | None:
        """Returns the bytes of each column's value."""
        at = 4 * self.columns.sizes.count(0)
        if len(data) < at:
            return None
        given = iter(np.frombuffer(data, "<u4", at // 4).tolist())
        parts = []
        for fixed in self.columns.sizes:
            size = fixed or next(given)
            parts.append(data[at : at + size])
            at += size
        return parts if at == len(data) else None

    def _records(self, file: SourceFile) -> Generator[tuple[bytes, int], None, None]:
        """Yields the bytes of each sample of a shard, and how many bytes of the file it took.

        Raises:
            PackError: the shard cannot be read, is not sound, or has changed.
        """
        name, shard = os.path.join(self.location, file.path), self.shards[file.path]
        with open_file(self.root, file, name) as opened:
            # Both are held here: a buffered reader closes its file when it goes.
            stored = io.BufferedReader(opened, _READ_BYTES)
            content = _content(stored, shard.compression)
            try:
                yield from _walk(content, shard, stored)
                check_unchanged(opened, file, name)
            except (DamageError, EOFError, gzip.BadGzipFile, zlib.error) as error:
                check_unchanged(opened, file, name)
                raise PackError(f"{name} is damaged, cut short, or not what the index says: {error}") from None
            except OSError as error:
                raise unreadable(name, error) from error


def _content(stored: io.BufferedReader[Any], compression: str) -> io.BufferedReader[Any]:
    if not compression:
        return stored
    stream: Any = gzip.GzipFile(fileobj=stored) if compression == "gz" else ZstdStream(stored)
    return io.BufferedReader(stream, _READ_BYTES)


def _walk(
    content: io.BufferedReader[Any], shard: Shard, stored: io.BufferedReader[Any]
) -> Generator[tuple[bytes, int], None, None]:
    """Yields what `MdsReader._records` yields: the bytes of each sample, and of the file that it took."""
    head = _exactly(content, 4, shard)
    if int.from_bytes(head, "little") != shard.num_samples:
        raise DamageError(f"it holds {int.from_bytes(head, 'little')} samples, and the index says {shard.num_samples}")
    table = np.frombuffer(_exactly(content, 4 * (shard.num_samples + 1), shard), "<u4").astype(np.int64)
    at = 4 + table.nbytes // 2
    if table[0] < at or (np.diff(table) < 0).any() or table[-1] != shard.num_bytes:
        raise DamageError("the places of its samples cannot be")
    # What lies between is the configuration, which the index has too.
    _exactly(content, int(table[0]) - at, shard)
    before = 0
    for start, stop in itertools.pairwise(table.tolist()):
        data = _exactly(content, stop - start, shard)
        yield data, stored.tell() - before
        before = stored.tell()
    if content.read(1):
        raise DamageError(f"it is longer than the {shard.num_bytes} bytes that the index says")


def _exactly(content: io.BufferedReader[Any], num_bytes: int, shard: Shard) -> bytes:
    if num_bytes > shard.num_bytes:
        raise DamageError("it says that a part of it is longer than the whole")
    data: bytes = content.read(num_bytes)
    if len(data) < num_bytes:
        raise DamageError("it ends early")
    return data
