"""Parquet files, and Arrow IPC files and streams, as sources: one row is one sample, one column a field.

`arrow_types` says what columns become; what Hugging Face's datasets note of them (Array2D, ClassLabel) is heeded. Types
given are the whole schema, and choose: other columns are not read. A column is nullable where one of the files says that
it has nulls, or does not say. What pandas adds to keep its index
(`__index_level_0__`) is left out. Files that `shardload export` wrote note the types that their fields had: those they have.

A file is cut into ranges of bytes; a row group or record batch belongs to the one in which it starts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shardload.errors import FormatError, PackError
from shardload.format.manifest import Metadata
from shardload.format.note import NOTE_NAME, Note, decode_note
from shardload.format.schema import Field, parse_field, parse_schema
from shardload.importers.arrow_ipc import ArrowTable
from shardload.importers.arrow_messages import MessageDamage
from shardload.importers.arrow_types import UnsupportedTypeError, field_type, media_type, pyarrow
from shardload.importers.arrow_values import BadValue, Convert, converter, parsed_json
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.files import Opened, Root, check_unchanged, open_file, unreadable
from shardload.importers.hugging_face import array_type, class_names, features_of
from shardload.importers.parquet import ParquetTable
from shardload.importers.units import cut_units

PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
LOOKED_AT_VALUES = 100
"""Values from which it is told whether a column holds images, audio or video."""

_INDEX_OF_PANDAS = re.compile(r"__index_level_\d+__")


class Table(Protocol):
    """An open file of columns."""

    schema: Any
    num_rows: int

    def has_nulls(self, number: int) -> bool:
        """Tells whether a column may hold nulls."""
        ...

    def batches(self, start: int, stop: int, columns: Sequence[int]) -> Iterator[tuple[int, Any, int]]:
        """Yields what starts in a range of bytes: first row, batch of these columns, bytes of the file."""
        ...


class ColumnarSource:
    """Parquet or Arrow files, one after the other."""

    def __init__(
        self, location: str, root: Root, shown_root: str, files: Sequence[SourceFile], skipped: dict[str, int]
    ) -> None:
        """Describes the source.

        Args:
            location: what the user called it.
            root: absolute folder that the files' paths start from.
            shown_root: the same folder in messages.
            files: the files, in order.
            skipped: what was left out: reason -> number.
        """
        self.location = location
        self.skipped = skipped
        self._files = files
        self._reader = ColumnarReader(root, shown_root, {})

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types, after a look at what all files say of their columns; types given choose columns.

        Raises:
            PackError: pyarrow is missing; a file is not sound; the files differ; a column has no type, or not the one given.
        """
        versions = {"pyarrow": pyarrow(self.location).__version__}
        for file in self._files:
            if file.problem:
                raise PackError(f"{self._reader.name(file)} {file.problem}")
        hint, note = "", self._note()
        if types is None and note is not None:
            types = note.types
        elif types is None:
            types = self._types()
            hint = "the types are those of the files' columns; give others with --schema"
        fields = {name: parse_field(name, text) for name, text in types.items()}
        classes: dict[str, list[str]] = {}
        for file in self._files:
            with self._reader.open(file) as (table, _):
                choose_columns(self._reader.name(file), table, fields)
            for column, names in class_names(table.schema).items():
                if column in fields and classes.setdefault(column, names) != names:
                    raise PackError(f"{self._reader.name(file)} has other classes in {column!r} than those before it")
        units = cut_units(self._files, [True] * len(self._files), unit_size)
        reader = ColumnarReader(self._reader.root, self._reader.location, dict(types))
        # Of several nobody could tell whose the classes are.
        metadata: Metadata = {"classes": list(*classes.values())} if len(classes) == 1 else {}
        if note is not None:
            metadata = note.metadata
        return SourcePlan(reader, units, dict(types), metadata, hint, versions=versions)

    def _note(self) -> Note | None:
        """Returns what an export noted in the files, if that is the same in all."""
        first: Note | None = None
        for file in self._files:
            with self._reader.open(file) as (table, _):
                note = noted(self._reader.name(file), table)
            if note is None or (first is not None and note != first):
                return None
            first = note
        return first

    def _types(self) -> dict[str, str]:
        """Returns the types that the files' columns have."""
        first, types, nullable = "", {}, set()
        num_rows = 0
        for file in self._files:
            name = self._reader.name(file)
            with self._reader.open(file) as (table, _):
                found, with_nulls = _described(name, table)
            if not first:
                first, types = name, found
            elif found != types:
                raise _differing(first, types, name, found)
            nullable |= with_nulls
            num_rows += table.num_rows
        if not num_rows:
            raise PackError(f"{self.location} holds no row: no sample to pack")
        media = [name for name, text in types.items() if text == "media"]
        types = {name: self._media(name) if name in media else text for name, text in types.items()}
        if not types:
            raise PackError(f"{self.location} has no column: no sample to pack")
        return {name: text + "?" * (name in nullable and not text.endswith("?")) for name, text in types.items()}

    def _media(self, name: str) -> str:
        """Returns what the first values of a column of files are."""
        kinds: set[str] = set()
        left = LOOKED_AT_VALUES
        for file in self._files:
            with self._reader.open(file) as (table, guard), guard:
                number = table.schema.get_field_index(name)
                for _, batch, _ in table.batches(0, file.num_bytes, [number]):
                    rows = batch.column(0).slice(0, left).to_pylist()
                    found = [row["bytes"] for row in rows if row is not None and row["bytes"] is not None]
                    kinds |= set(map(media_type, found))
                    left -= len(found)
                    if left <= 0 or len(kinds) > 1:
                        return next(iter(kinds)) if len(kinds) == 1 else "bytes"
        return next(iter(kinds)) if len(kinds) == 1 else "bytes"


def _described(name: str, table: Table) -> tuple[dict[str, str], set[str]]:
    """Returns the types of a file's columns, and which of them have nulls."""
    types: dict[str, str] = {}
    nullable, features = set(), features_of(table.schema)
    for number, column in enumerate(table.schema):
        if _INDEX_OF_PANDAS.fullmatch(column.name):
            continue
        if column.name in types:
            raise PackError(f"{name} has two columns {column.name!r}")
        try:
            types[column.name] = array_type(features.get(column.name)) or field_type(column.type)
            parse_schema({column.name: "str"})
        except UnsupportedTypeError as error:
            others = ", ".join(other.name for other in table.schema if other.name != column.name)
            raise PackError(
                f"{name}: its column {column.name!r} {error}: leave it out, with --schema for those that are wanted"
                + (f" ({others:.200})" if others else "")
            ) from None
        except FormatError as error:
            raise PackError(f"{name}: {error}; leave it out, with --schema for the columns that are wanted") from None
        if table.has_nulls(number) or str(column.type) == "null":
            nullable.add(column.name)
    return types, nullable


def _differing(first: str, types: Mapping[str, str], name: str, found: Mapping[str, str]) -> PackError:
    for column in dict.fromkeys([*types, *found]):
        one, other = types.get(column), found.get(column)
        if one != other:
            says = [f"has it as {text}" if text else "does not have it" for text in (one, other)]
            return PackError(
                f"{name} is of another schema than {first}: column {column!r}: the former {says[1]}, the latter {says[0]}; give "
                "types for both with --schema (a ? after those that a file lacks), or pack them apart"
            )
    # Only their order differs.
    return PackError(f"{name} has its columns in another order than {first}: give the types with --schema")


def noted(name: str, table: Table) -> Note | None:
    """Returns what an export noted in a file.

    Raises:
        PackError: it is broken.
    """
    data = (table.schema.metadata or {}).get(NOTE_NAME.encode())
    try:
        return None if data is None else decode_note(data)
    except FormatError as error:
        raise PackError(f"{name}: {error}") from None


def choose_columns(name: str, table: Table, fields: Mapping[str, Field]) -> dict[int, tuple[str, Convert]]:
    """Returns the columns of a file that become fields: number -> field name, conversion.

    Raises:
        PackError: a field has no column and must have one, or its column cannot become it.
    """
    chosen: dict[int, tuple[str, Convert]] = {}
    names = [column.name for column in table.schema]
    note = noted(name, table)
    for field in fields.values():
        if names.count(field.name) > 1:
            raise PackError(f"{name} has two columns {field.name!r}")
        if field.name not in names:
            if field.nullable:
                continue
            raise PackError(
                f"{name} has no column {field.name!r}, but {', '.join(names):.500}; if it may be missing, make its type "
                f"{field.type}?"
            )
        number = names.index(field.name)
        try:
            kind = table.schema.field(number).type
            of_json = field.kind == "json" and note is not None and note.types.get(field.name, "").startswith("json")
            chosen[number] = (field.name, parsed_json(kind) if of_json else converter(field, kind))
        except UnsupportedTypeError as error:
            raise PackError(f"{name}: its column {field.name!r} {error}") from None
    if fields and not chosen:
        raise PackError(f"{name} has none of the columns {', '.join(fields):.500}, but {', '.join(names):.500}")
    return chosen


@dataclass(frozen=True, slots=True)
class ColumnarReader:
    """Reads units of Parquet or Arrow files."""

    root: Root
    location: str
    types: Mapping[str, str]
    """Field name -> type."""

    def name(self, file: SourceFile) -> str:
        """Returns what a file is called in messages."""
        return os.path.join(self.location, file.path)

    @contextlib.contextmanager
    def open(self, file: SourceFile) -> Generator[tuple[Table, contextlib.AbstractContextManager[None]], None, None]:
        """Opens a file, and checks at the end that it has not changed; also returns what names the file in errors.

        Raises:
            PackError: it cannot be read, is not sound, or has changed.
        """
        name = self.name(file)
        make = ParquetTable if file.path.lower().endswith(PARQUET_SUFFIXES) else ArrowTable
        with open_file(self.root, file, name) as opened:
            if not file.num_bytes:
                raise PackError(f"{name} is empty: no sample to pack")
            with self._guard(file, opened):
                table = make(opened)
            yield table, self._guard(file, opened)
            check_unchanged(opened, file, name)

    @contextlib.contextmanager
    def _guard(self, file: SourceFile, opened: Opened) -> Generator[None, None, None]:
        name = self.name(file)
        try:
            yield
        except (MessageDamage, pyarrow(name).ArrowException, UnicodeDecodeError) as error:
            if isinstance(error, MemoryError):
                raise
            # What was read may be part old, part new: then that is what is wrong.
            check_unchanged(opened, file, name)
            text = " ".join(str(error).split())
            raise PackError(f"{name} is damaged, cut short, or not what its suffix says: {text:.300}") from None
        except OSError as error:
            check_unchanged(opened, file, name)
            if error.errno is not None:
                raise unreadable(name, error) from error
            raise PackError(f"{name} is damaged or was cut short: {' '.join(str(error).split()):.300}") from None

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields a sample a row, or why it is none."""
        for piece in unit.pieces:
            with self.open(piece.file) as (table, guard):
                yield from self._read_piece(piece, table, guard)

    def _read_piece(
        self, piece: Piece, table: Table, guard: contextlib.AbstractContextManager[None]
    ) -> Generator[Sample | Reject, None, None]:
        name = self.name(piece.file)
        fields = {field: parse_field(field, text) for field, text in self.types.items()}
        chosen = choose_columns(name, table, fields)
        with guard:
            for first, batch, num_bytes in table.batches(piece.start, piece.stop, sorted(chosen)):
                places = [table.schema.get_field_index(column) for column in batch.schema.names]
                # Parquet gives `a.b` too where `a` is asked for.
                wanted = [(i, *chosen[place]) for i, place in enumerate(places) if place in chosen]
                names = [field for _, field, _ in wanted]
                columns = [convert(batch.column(i)) for i, _, convert in wanted]
                count = batch.num_rows
                for i, row in enumerate(zip(*columns, strict=True)):
                    size = num_bytes * (i + 1) // count - num_bytes * i // count
                    yield _sample(names, row, f"{name} row {first + i}", size)


def _sample(names: Sequence[str], row: Sequence[Any], place: str, num_bytes: int) -> Sample | Reject:
    for name, value in zip(names, row, strict=True):
        if type(value) is BadValue:
            return Reject(place, f"field {name!r} {value.reason}", num_bytes)
    return Sample(dict(zip(names, row, strict=True)), place, num_bytes)
