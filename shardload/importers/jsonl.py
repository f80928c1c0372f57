"""JSON Lines files as a source: one object a line is one sample.

Plain files are cut into byte ranges, compressed ones are read from end to end. The JSON is strict: UTF-8, one object a
line, no field twice, no NaN or Infinity. Blank lines are passed over, and a byte order mark at the start of a file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_schema
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.files import Root
from shardload.importers.inference import infer_types
from shardload.importers.lines import PieceLines, compression, too_long
from shardload.importers.strict_json import STRICT_JSON, RefusedJson
from shardload.importers.units import cut_units

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
INFERRED_LINES = 1000
"""Lines at the start of the source from which the types are inferred, ..."""
INFERRED_BYTES = 64 << 20
"""... or fewer, where those that have this many bytes together."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INFINITE = (float("inf"), float("-inf"))


class JsonlSource:
    """JSON Lines files, one after the other."""

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
        self._reader = JsonlReader(root, shown_root)
        self._files = files

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given are the whole schema.

        Raises:
            PackError: a file is none, such as a FIFO: unlike one bad line, a file missing altogether is never passed over.
        """
        for file in self._files:
            if file.problem:
                raise PackError(f"{self._reader.name(file)} {file.problem}")
        units = cut_units(self._files, [not compression(file.path) for file in self._files], unit_size)
        if types is not None:
            return SourcePlan(self._reader, units, dict(types), {})
        types, reject = self._infer()
        hint = f"the types were inferred from the first {INFERRED_LINES:,} lines; give others with --schema"
        return SourcePlan(self._reader, units, types, {}, hint, reject)

    def _infer(self) -> tuple[dict[str, str], Reject | None]:
        """Returns the types of the first lines that are samples, and the first that is none."""
        pieces = tuple(Piece(file, 0, file.num_bytes) for file in self._files)
        samples: list[Sample] = []
        reject, num_bytes = None, 0
        checked: set[str] = set()
        for item in itertools.islice(self._reader.read(Unit(0, pieces)), INFERRED_LINES):
            found = item if isinstance(item, Reject) else _bad_name(item, checked)
            if found is not None:
                reject = reject or found
            elif isinstance(item, Sample):
                samples.append(item)
            num_bytes += item.num_bytes
            if num_bytes >= INFERRED_BYTES:
                break
        if not samples:
            if reject is not None:
                raise PackError(reject.message)
            blank = any(file.num_bytes for file in self._files)
            raise PackError(f"{self.location} {'holds blank lines only' if blank else 'is empty'}: no sample to pack")
        types = infer_types(sample.values for sample in samples)
        try:
            parse_schema(types)
        except FormatError as error:
            raise PackError(f"{samples[0].place}: {error}") from None
        return types, reject


@dataclass(frozen=True, slots=True)
class JsonlReader:
    """Reads units of JSON Lines files."""

    root: Root
    location: str

    def name(self, file: SourceFile) -> str:
        """Returns what a file is called in messages."""
        return os.path.join(self.location, file.path)

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields a sample for each line that is not blank, or why it is none."""
        for piece in unit.pieces:
            first = piece.start == 0
            for line, place, num_bytes in PieceLines(self.root, self.location, piece):
                if line is None:
                    yield Reject(place, too_long(), num_bytes, " ")
                    first = False
                    continue
                if first:
                    line, first = line.removeprefix(_BYTE_ORDER_MARK), False
                if not line.isspace() and line:
                    yield _parse(line, place, num_bytes)


def _parse(line: bytes, place: object, num_bytes: int) -> Sample | Reject:
    try:
        # Without its end, or a line cut short would be blamed at the start of the next one.
        values = STRICT_JSON.decode(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8: byte {error.start} of the line is {line[error.start]:#04x}"
        return Reject(place, reason, num_bytes, " ")
    except RefusedJson as error:
        return Reject(place, str(error), num_bytes)
    except json.JSONDecodeError as error:
        return Reject(place, f"broken JSON: {error.msg} at column {error.colno}", num_bytes)
    except (ValueError, RecursionError) as error:
        return Reject(place, f"broken JSON: {error}", num_bytes)
    if not isinstance(values, dict):
        return Reject(place, f"expected an object, got {_JSON_NAMES.get(type(values), 'a number')}", num_bytes)
    for name, value in values.items():
        # Python reads 1e999 as infinity; the file does not say that.
        if type(value) is float and value in _INFINITE:
            return Reject(place, f"field {name!r:.80}: the number is too large for float64", num_bytes)
    return Sample(values, place, num_bytes)


_JSON_NAMES = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def _bad_name(sample: Sample, checked: set[str]) -> Reject | None:
    """Returns a reject if a field has a name that no field can have; names known to be good are kept in `checked`."""
    for name in sorted(sample.values.keys() - checked):
        try:
            parse_schema({name: "str"})
        except FormatError as error:
            return Reject(sample.place, str(error), sample.num_bytes)
        checked.add(name)
    return None
