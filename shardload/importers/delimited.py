"""CSV and TSV files as a source: one row is one sample, and the first row names the fields.

Quoted as by RFC 4180: a field in double quotes may hold the delimiter, line ends, and a quote as two. UTF-8, with or
without a byte order mark. As line ends may stand within quotes, a file is read from its start to its end, so each is
indivisible. Blank lines are passed over. Text becomes values by `delimited_values`.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_field, parse_schema
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.delimited_values import BadText, column_type, text_decoder
from shardload.importers.files import Root
from shardload.importers.lines import MAX_LINE_BYTES, PieceLines, too_long
from shardload.importers.units import cut_units
from shardload.quantities import format_bytes

CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
INFERRED_ROWS = 1000
"""Rows at the start of the source from which the types are inferred, ..."""
INFERRED_BYTES = 64 << 20
"""... or fewer, where those that have this many bytes together."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DelimitedSource:
    """CSV or TSV files, one after the other."""

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
        self._reader = DelimitedReader(root, shown_root, {})

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given are the whole schema, and choose columns.

        Raises:
            PackError: a file is none, or has no header, or one that does not fit the others or the types.
        """
        headers = {}
        for file in self._files:
            if file.problem:
                raise PackError(f"{self._reader.name(file)} {file.problem}")
            headers[self._reader.name(file)] = self._reader.header(file)
        hint, reject = "", None
        if types is None:
            (first, header), *others = headers.items()
            for name, other in others:
                if sorted(header) != sorted(other):
                    raise _differing(first, header, name, other)
            types, reject = self._infer(header)
            hint = f"the types were inferred from the first {INFERRED_ROWS:,} rows; give others with --schema"
        for name, found in headers.items():
            _check(name, found, types)
        units = cut_units(self._files, [False] * len(self._files), unit_size)
        reader = DelimitedReader(self._reader.root, self._reader.location, dict(types))
        return SourcePlan(reader, units, dict(types), {}, hint, reject)

    def _infer(self, header: Sequence[str]) -> tuple[dict[str, str], Reject | None]:
        """Returns the types of the first rows that are samples, and the first that is none."""
        reader = DelimitedReader(self._reader.root, self._reader.location, dict.fromkeys(header, "str"))
        values: dict[str, list[str]] = {name: [] for name in header}
        reject, num_bytes, count = None, 0, 0
        pieces = tuple(Piece(file, 0, file.num_bytes) for file in self._files)
        for item in itertools.islice(reader.read(Unit(0, pieces)), INFERRED_ROWS):
            if isinstance(item, Reject):
                reject = reject or item
            else:
                count += 1
                for name, text in item.values.items():
                    values[name].append(text)
            num_bytes += item.num_bytes
            if num_bytes >= INFERRED_BYTES:
                break
        if not count:
            raise PackError(
                reject.message if reject else f"{self.location} has no row below its header: no sample to pack"
            )
        return {name: column_type(texts) for name, texts in values.items()}, reject


def _differing(first: str, header: Sequence[str], name: str, other: Sequence[str]) -> PackError:
    odd = sorted(set(header) ^ set(other))[0]
    has = name if odd in other else first
    return PackError(
        f"{name} has other columns than {first}: only {has} has {odd!r}; give the types of those that are wanted with --schema "
        "(a ? after those that a file lacks), or pack them apart"
    )


def _check(name: str, header: Sequence[str], types: Mapping[str, str]) -> None:
    """Refuses types that a file has no column for, or that text does not become."""
    for field_name, text in types.items():
        field = parse_field(field_name, text)
        try:
            text_decoder(field)
        except BadText as error:
            raise PackError(f"{name}: {error}") from None
        if field_name not in header and not field.nullable:
            raise PackError(
                f"{name} has no column {field_name!r}, but {', '.join(header):.500}; if it may be missing, make its type {text}?"
            )
    if types and not set(types) & set(header):
        raise PackError(f"{name} has none of the columns {', '.join(types):.500}, but {', '.join(header):.500}")


@dataclass(frozen=True, slots=True)
class DelimitedReader:
    """Reads units of CSV or TSV files."""

    root: Root
    location: str
    types: Mapping[str, str]
    """Field name -> type."""

    def name(self, file: SourceFile) -> str:
        """Returns what a file is called in messages."""
        return os.path.join(self.location, file.path)

    def header(self, file: SourceFile) -> list[str]:
        """Returns the names in the first row of a file.

        Raises:
            PackError: there is none, or its names cannot be those of fields.
        """
        name = self.name(file)
        rows = _Rows(self.root, self.location, file)
        header, place, _ = rows.read() or ([], name, 0)
        if isinstance(header, str):
            raise PackError(f"{place}: {header}")
        if not header:
            raise PackError(f"{name} is empty: the first row must name the columns")
        if len(header) == 1 and (other := next((one for one in ";\t|," if one in header[0]), "")):
            raise PackError(
                f"{place} names the single column {header[0]!r:.100}, which holds {other!r}: .csv files are delimited by commas, "
                ".tsv files by tabs"
            )
        for number, column in enumerate(header, 1):
            try:
                parse_schema({column: "str"})
            except FormatError as error:
                raise PackError(f"{place}: the header's column {number} cannot name a field: {error}") from None
            if header.count(column) > 1:
                raise PackError(f"{place}: the header names the column {column!r} twice")
        return header

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields a sample for each row below the header, or why it is none."""
        for piece in unit.pieces:
            yield from self._read_file(piece.file)

    def _read_file(self, file: SourceFile) -> Generator[Sample | Reject, None, None]:
        header = self.header(file)
        rows = _Rows(self.root, self.location, file)
        first = rows.read()
        before = first[2] if first else 0
        fields = [parse_field(name, text) for name, text in self.types.items() if name in header]
        decoders = [(field.name, header.index(field.name), text_decoder(field)) for field in fields]
        while (row := rows.read()) is not None:
            texts, place, num_bytes = row
            num_bytes, before = num_bytes + before, 0
            if isinstance(texts, str):
                yield Reject(place, texts, num_bytes)
                continue
            if len(texts) != len(header):
                reason = f"has {len(texts)} values, but the header names {len(header)} columns"
                yield Reject(place, reason, num_bytes, " ")
                continue
            try:
                values = {}
                for name, number, decode in decoders:
                    values[name] = decode(texts[number])
            except BadText as error:
                yield Reject(place, f"field {name!r} {error}", num_bytes)
            else:
                yield Sample(values, place, num_bytes)


class _Rows:
    """The rows of a file, each with the place of its first line."""

    def __init__(self, root: Root, location: str, file: SourceFile) -> None:
        self._lines = iter(PieceLines(root, location, Piece(file, 0, file.num_bytes)))
        tabs = ".tsv" in os.path.basename(file.path).lower()[-8:]
        self._parser = csv.reader(iter(self._line, None), delimiter="\t" if tabs else ",", strict=True)
        self._first = True
        self._begin()

    def _begin(self) -> None:
        self._place: object = None
        self._num_bytes = 0
        self._problem = ""

    def read(self) -> tuple[list[str] | str, object, int] | None:
        """Returns the next row that is not blank, or what is wrong with it; its place; its bytes. None at the end.

        Raises:
            PackError: what follows cannot be read either.
        """
        blank_bytes = 0
        while True:
            self._begin()
            # A setting of the whole process, so that it is put back at once.
            limit = csv.field_size_limit(MAX_LINE_BYTES)
            try:
                row: list[str] | str | None = next(self._parser, None)
            except csv.Error as error:
                row = f"broken CSV: {error}"
            finally:
                csv.field_size_limit(limit)
            if row is None:
                return None
            if row:
                return self._problem or row, self._place, self._num_bytes + blank_bytes
            blank_bytes += self._num_bytes

    def _line(self) -> str | None:
        """Returns the next line for the parser, None at the end."""
        found = next(self._lines, None)
        if found is None:
            return None
        line, place, num_bytes = found
        self._place = self._place or place
        self._num_bytes += num_bytes
        if line is None:
            raise PackError(f"{place} {too_long()}")
        if self._num_bytes > MAX_LINE_BYTES:
            raise PackError(
                f"{self._place}: its row does not end within {format_bytes(MAX_LINE_BYTES)}: a quote may be missing"
            )
        if self._first:
            line, self._first = line.removeprefix(_BYTE_ORDER_MARK), False
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            # The row goes on to its end, or what is left of it would be taken for other rows.
            self._problem = self._problem or f"is not UTF-8: byte {error.start} of {place} is {line[error.start]:#04x}"
            return line.decode(errors="replace")
