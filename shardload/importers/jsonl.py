"""JSON Lines files as a source: one object a line is one sample.

Plain files are cut into byte ranges, compressed ones are read from end to end. The JSON is strict: UTF-8, one object a
line, no field twice, no NaN or Infinity. Blank lines are passed over, and a byte order mark at the start of a file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_schema
from shardload.importers.base import Piece, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.inference import infer_types
from shardload.importers.lines import PieceLines, compression
from shardload.importers.units import cut_units

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
INFERRED_LINES = 1000
"""Lines at the start of the source from which the types are inferred, ..."""
INFERRED_BYTES = 64 << 20
"""... or fewer, where those that have this many bytes together."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INFINITE = (float("inf"), float("-inf"))


def is_jsonl(path: str) -> bool:
    """Tells whether a file is taken for JSON Lines, by its suffix."""
    return path.lower().endswith(JSONL_SUFFIXES)


class JsonlSource:
    """JSON Lines files, one after the other."""

    def __init__(
        self, location: str, root: str, shown_root: str, files: Sequence[SourceFile], skipped: dict[str, int]
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
        self._reader = JsonlReader(root, shown_root)
        self._files = files

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given are the whole schema."""
        units = cut_units(self._files, [not compression(file.path) for file in self._files], unit_size)
        if types is not None:
            return SourcePlan(self._reader, units, dict(types), {})
        inferred = self._infer()
        hint = f"the types were inferred from the first {INFERRED_LINES:,} lines; give others with --schema"
        return SourcePlan(self._reader, units, inferred, {}, hint)

    def _infer(self) -> dict[str, str]:
        pieces = tuple(Piece(file, 0, file.num_bytes) for file in self._files)
        samples, num_bytes = [], 0
        for sample in itertools.islice(self._reader.read(Unit(0, pieces)), INFERRED_LINES):
            samples.append(sample)
            num_bytes += sample.num_bytes
            if num_bytes >= INFERRED_BYTES:
                break
        if not samples:
            blank = any(file.num_bytes for file in self._files)
            raise PackError(f"{self.location} {'holds blank lines only' if blank else 'is empty'}: no sample to pack")
        _check_names(samples)
        types = infer_types(sample.values for sample in samples)
        try:
            parse_schema(types)
        except FormatError as error:
            raise PackError(f"{samples[0].place}: {error}") from None
        return types


@dataclass(frozen=True, slots=True)
class JsonlReader:
    """Reads units of JSON Lines files."""

    root: str
    location: str

    def read(self, unit: Unit) -> Generator[Sample, None, None]:
        """Yields one sample a line that is not blank."""
        for piece in unit.pieces:
            first = piece.start == 0
            for line, place, num_bytes in PieceLines(self.root, self.location, piece):
                if first:
                    line, first = line.removeprefix(_BYTE_ORDER_MARK), False
                if not line.isspace() and line:
                    yield Sample(_parse(line, place), place, num_bytes)


class _RefusedError(ValueError):
    """The line is JSON that is not taken; the text says why."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"field {twice!r} stands in an object twice")
    return values


def _constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _parse(line: bytes, place: object) -> dict[str, Any]:
    try:
        # Without its end, or a line cut short would be blamed at the start of the next one.
        values = _DECODER.decode(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise PackError(f"{place} is not UTF-8: byte {error.start} of the line is {line[error.start]:#04x}") from None
    except _RefusedError as error:
        raise PackError(f"{place}: {error}") from None
    except json.JSONDecodeError as error:
        raise PackError(f"{place}: broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{place}: broken JSON: {error}") from None
    if not isinstance(values, dict):
        raise PackError(f"{place}: expected an object, got {_JSON_NAMES.get(type(values), 'a number')}")
    for name, value in values.items():
        # Python reads 1e999 as infinity; the file does not say that.
        if type(value) is float and value in _INFINITE:
            raise PackError(f"{place}: field {name!r}: the number is too large for float64")
    return values


_JSON_NAMES = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def _check_names(samples: Sequence[Sample]) -> None:
    checked: set[str] = set()
    for sample in samples:
        for name in sample.values.keys() - checked:
            try:
                parse_schema({name: "str"})
            except FormatError as error:
                raise PackError(f"{sample.place}: {error}") from None
        checked |= sample.values.keys()
