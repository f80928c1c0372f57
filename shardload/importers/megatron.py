"""Megatron pairs as a source: the documents of `name.bin`, cut by `name.idx`, are samples with a stream of tokens.

A pair is cut into ranges of bytes of `name.bin`; a document belongs to the one in which it starts. The whole index is
checked when the source is planned, and then each unit reads what it needs of both files.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.schema import Field, parse_field
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.files import Root, check_unchanged, open_file, unreadable
from shardload.importers.megatron_index import MegatronIndex, has_magic, open_index
from shardload.importers.units import cut_units

INDEX_SUFFIX, DATA_SUFFIX = ".idx", ".bin"

_READ_BYTES = 1 << 18
_READ_DOCUMENTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Pair:
    """The two files of a Megatron dataset."""

    index: SourceFile
    data: SourceFile


def index_of(path: str, root: Root = "") -> str:
    """Returns the path of the index of a pair that is named by either of its files, or by their prefix; else nothing."""
    stem, suffix = os.path.splitext(path)
    stems = [stem] if suffix in (INDEX_SUFFIX, DATA_SUFFIX) else []
    if isinstance(root, str) and not os.path.lexists(path):
        stems.append(path)
    return next((one + INDEX_SUFFIX for one in stems if has_magic(root, one + INDEX_SUFFIX)), "")


def named_by_index(paths: Sequence[str], root: Root = "") -> list[str]:
    """Returns paths with each Megatron pair once, by its index."""
    there = set(paths)
    indexes = [index_of(path, root) for path in paths]
    # A shell's `name*` gives both files.
    doubled = [path != index and index in there for path, index in zip(paths, indexes, strict=True)]
    return [index or path for path, index, double in zip(paths, indexes, doubled, strict=True) if not double]


def data_of(index: str) -> str:
    """Returns the path of the data that belong to an index."""
    return index.removesuffix(INDEX_SUFFIX) + DATA_SUFFIX


class MegatronSource:
    """Megatron pairs, one after the other."""

    def __init__(
        self,
        location: str,
        root: Root,
        shown_root: str,
        pairs: Sequence[Pair],
        skipped: dict[str, int],
        token_field: str,
    ) -> None:
        """Describes the source.

        Args:
            location: what the user called it.
            root: absolute folder that the files' paths start from.
            shown_root: the same folder in messages.
            pairs: the pairs, in order.
            skipped: what was left out: reason -> number.
            token_field: name of the field of tokens.
        """
        self.location = location
        self.skipped = skipped
        self._pairs = pairs
        self._field = token_field
        self._reader = MegatronReader(root, shown_root, {pair.data.path: pair.index for pair in pairs}, token_field, "")

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; reads and checks all indexes.

        Raises:
            PackError: a pair is not sound, or cannot be of the type given for the tokens, or of one type with the others.
        """
        kinds = {self._kind(pair): pair for pair in self._pairs}
        if types is None:
            if len(kinds) > 1:
                (one, first), (other, second) = list(kinds.items())[:2]
                raise PackError(
                    f"{self.location}: {self._reader.name(first.index)} holds {one} and {self._reader.name(second.index)} {other}: "
                    f'give a type for both, such as --schema \'{{"{self._field}": "int64[*]"}}\''
                )
            types = {self._field: f"{next(iter(kinds))}[*]"}
        reader = replace(self._reader, dtype=self._checked(types).dtype.str)
        units = cut_units([pair.data for pair in self._pairs], [True] * len(self._pairs), unit_size)
        indexes = {pair.data.path: pair.index for pair in self._pairs}
        # So that another index is another source, too.
        pieces = [[(piece, Piece(indexes[piece.file.path], 0, 0)) for piece in unit.pieces] for unit in units]
        units = [Unit(i, tuple(piece for both in these for piece in both)) for i, these in enumerate(pieces)]
        count = f"{len(self._pairs)} Megatron pair{'s' * (len(self._pairs) > 1)}"
        note = f"{' and '.join(kinds)} of {count}"
        return SourcePlan(reader, units, dict(types), {}, note=note, tokens=self._field)

    def _kind(self, pair: Pair) -> str:
        """Returns the dtype of a pair that is sound."""
        for file in (pair.index, pair.data):
            if file.problem:
                raise PackError(f"{self._reader.name(file)} {file.problem}")
        name = self._reader.name(pair.index)
        with open_file(self._reader.root, pair.index, name) as opened:
            index = open_index(opened, pair.index, name, pair.data.num_bytes)
            index.check()
        return index.dtype.name

    def _checked(self, types: Mapping[str, str]) -> Field:
        """Returns the field of the tokens, if the types are such as a pair can give."""
        if self._field not in types:
            raise PackError(
                f"{self.location}: the schema names {', '.join(types)}, but no field {self._field!r} for the tokens: add it, "
                "or name it with --token-field (token_field=)"
            )
        for name, text in types.items():
            if name != self._field and not parse_field(name, text).nullable:
                raise PackError(
                    f"{self.location}: it gives tokens only, so that field {name!r} must be {text}? or be left out"
                )
        field = parse_field(self._field, types[self._field])
        if not field.ragged or field.shape or field.dtype.kind not in "iu" or field.kind in ("bool", "bfloat16"):
            raise PackError(
                f"{self.location}: field {field.name!r} takes tokens and cannot be {field.type}, but int32[*]"
            )
        return field


@dataclass(frozen=True, slots=True)
class MegatronReader:
    """Reads units of Megatron pairs."""

    root: Root
    location: str
    indexes: Mapping[str, SourceFile]
    """Index of each `name.bin`, by its path."""
    token_field: str
    dtype: str
    """Dtype of the field."""

    def name(self, file: SourceFile) -> str:
        """Returns what a file is called in messages."""
        return os.path.join(self.location, file.path)

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields a sample a document."""
        for piece in unit.pieces:
            if piece.file.path in self.indexes:
                yield from self._read_piece(piece, self.indexes[piece.file.path])

    def _read_piece(self, piece: Piece, facts: SourceFile) -> Generator[Sample | Reject, None, None]:
        data_name, index_name = self.name(piece.file), self.name(facts)
        with (
            open_file(self.root, piece.file, data_name) as opened,
            open_file(self.root, facts, index_name) as index_file,
        ):
            index = open_index(index_file, facts, index_name, piece.file.num_bytes)
            # Held here: a buffered reader closes its file when it goes.
            data = io.BufferedReader(opened, _READ_BYTES)
            first, stop = _documents(index, piece)
            for low in range(first, stop, _READ_DOCUMENTS):
                starts = index.starts(low, min(low + _READ_DOCUMENTS, stop)).tolist()
                for number, (start, end) in enumerate(itertools.pairwise(starts), low):
                    yield self._document(data, data_name, number, start, end - start, index.dtype)
            check_unchanged(opened, piece.file, data_name)
            check_unchanged(index_file, facts, index_name)

    def _document(
        self, data: io.BufferedReader[Any], name: str, number: int, start: int, num_bytes: int, stored: np.dtype[Any]
    ) -> Sample | Reject:
        place = f"{name} document {number}"
        if num_bytes > layout.MAX_RECORD_BYTES:
            return Reject(place, f"has {num_bytes} bytes; a sample holds less than 4 GiB", num_bytes, " ")
        try:
            if data.tell() != start:
                data.seek(start)
            read = data.read(num_bytes)
        except OSError as error:
            raise unreadable(name, error) from error
        if len(read) < num_bytes:
            raise PackError(f"{name} was cut short while it was being packed: document {number} ends behind its end")
        tokens = np.frombuffer(read, dtype=stored)
        if bad := _outside(tokens, np.dtype(self.dtype)):
            return Reject(
                place, f"holds the token {bad[0]}, which the field's {np.dtype(self.dtype).name} cannot", num_bytes, " "
            )
        return Sample({self.token_field: tokens.astype(self.dtype, copy=False)}, place, num_bytes)


def _documents(index: MegatronIndex, piece: Piece) -> tuple[int, int]:
    """Returns the first document that starts in a piece and the one after the last; empty ones at the very end are the last's."""
    documents = range(index.num_documents)
    first = bisect.bisect_left(documents, piece.start, key=index.start)
    if piece.stop == piece.file.num_bytes:
        return first, index.num_documents
    return first, bisect.bisect_left(documents, piece.stop, lo=first, key=index.start)


def _outside(tokens: NDArray[Any], dtype: np.dtype[Any]) -> list[int]:
    """Returns a token that a dtype cannot hold, if there is one."""
    if tokens.size == 0 or np.can_cast(tokens.dtype, dtype, "safe"):
        return []
    limits = np.iinfo(dtype)
    low, high = int(tokens.min()), int(tokens.max())
    return [low] if low < limits.min else [high] if high > limits.max else []
