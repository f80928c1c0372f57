"""A folder of files as a source: one file is one sample.

| the selected files are | field |
| --- | --- |
| all `.jpg`, `.jpeg` | `image: jpeg` |
| all `.png` | `image: png` |
| all of `TEXT_SUFFIXES` | `text: str`, UTF-8 |
| all others | `data: bytes` |

A mixture is refused, unless the types given name the field, which then takes every file. Each sample also has
`path: str`, relative to the folder. If every file lies in a sub-folder, the first sub-folder of its path gives
`label: int64`, a number into the sorted names of those sub-folders, which stand as `classes` in the manifest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.schema import canonical_json, parse_field
from shardload.importers.base import Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.files import LostFileError, Root
from shardload.importers.units import cut_units
from shardload.importers.whole import read_unpacked, read_whole

_TEXT_SUFFIX_LINES = """
    .bat .bib .c .cc .cfg .clj .cmake .conf .cpp .cs .css .csv .cu .cuh .cxx .el .erl .ex .exs .f90 .go .h .hh .hpp .hs
    .htm .html .hxx .ini .ipynb .java .jl .js .json .jsx .kt .lisp .log .lua .markdown .md .mjs .ml .php .pl .po .proto
    .ps1 .py .pyi .pyx .r .rb .rs .rst .scala .scss .sh .sql .srt .svg .swift .tcl .tex .text .toml .ts .tsv .tsx .txt
    .vtt .vue .xhtml .xml .yaml .yml .zig
"""
TEXT_SUFFIXES = frozenset(_TEXT_SUFFIX_LINES.split())
"""Suffixes of files that are taken for text, whatever their case."""

_CONTENT_FIELDS = {"jpeg": "image", "png": "image", "text": "text", "data": "data"}
_TYPES = {"jpeg": "jpeg", "png": "png", "text": "str", "data": "bytes"}
_LABEL_KINDS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_CONTENT_KINDS = ("bytes", "str", "jpeg", "png", "audio", "video")
# What is left of a manifest's 1 MiB for everything but the class names.
_MAX_CLASSES_BYTES = layout.MAX_MANIFEST_BYTES - (16 << 10)
_SHOWN_SUFFIXES = 6


class FolderSource:
    """The files of a folder, one sample each."""

    def __init__(
        self,
        location: str,
        root: Root,
        shown_root: str,
        files: Sequence[SourceFile],
        skipped: dict[str, int],
        documents: bool = False,
    ) -> None:
        """Describes the source.

        Args:
            location: what the user called it.
            root: absolute folder that the files' paths start from.
            shown_root: the same folder in messages; empty where the files were named one by one.
            files: the files, in order.
            skipped: what was left out: reason -> number.
            documents: whether all files are taken for text, and unpacked if they are compressed.
        """
        self.location = location
        self.skipped = skipped
        self._root = root
        self._shown_root = shown_root
        self._documents = documents
        self._files = files
        # What cannot be packed says nothing about the rest.
        self._sound = [file for file in files if not file.problem]

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given replace those of their fields."""
        given = dict(types or {})
        content, content_type = self._content(given)
        classes = self._classes()
        fields = {content: content_type, **({"label": "int64"} if classes else {}), "path": "str"}
        self._check(given, fields)
        # The order is that of the folder's fields, whatever the order of those given.
        fields |= given
        kind = parse_field(content, fields[content]).kind
        reader = FolderReader(self._root, self._shown_root, content, kind == "str", classes, self._documents)
        units = cut_units(self._files, [False] * len(self._files), unit_size)
        rejects = (reader.problem(file) for file in self._files)
        reject = next((reject for reject in rejects if reject is not None), None)
        return SourcePlan(reader, units, fields, {"classes": list(classes)} if classes else {}, reject=reject)

    def _content(self, given: Mapping[str, str]) -> tuple[str, str]:
        """Returns the field that takes the files' content, and its type."""
        named = [name for name in dict.fromkeys(_CONTENT_FIELDS.values()) if name in given]
        if len(named) > 1:
            raise PackError(
                f"{self.location}: the schema names {' and '.join(named)}, but a file's content goes into one field"
            )
        if named:
            return named[0], given[named[0]]
        if self._documents:
            return "text", "str"
        kinds = Counter(_kind(file.path) for file in self._sound)
        if not kinds:
            raise PackError(f"{os.path.join(self._shown_root, self._files[0].path)} {self._files[0].problem}")
        if len(kinds) == 1:
            kind = next(iter(kinds))
            return _CONTENT_FIELDS[kind], _TYPES[kind]
        field = "image" if set(kinds) == {"jpeg", "png"} else "data"
        commonest = Counter(filter(None, (_suffix(file.path) for file in self._sound))).most_common(1)[0][0]
        raise PackError(
            f"{self.location} holds files of several kinds ({self._suffix_counts()}): choose some with include "
            f"patterns, such as --include '*{commonest}', or take all as they are with "
            f'--schema \'{{"{field}": "bytes"}}\''
        )

    def _suffix_counts(self) -> str:
        counts = Counter(_suffix(file.path) or "no suffix" for file in self._sound).most_common()
        text = ", ".join(f"{count} {suffix}" for suffix, count in counts[:_SHOWN_SUFFIXES])
        rest = sum(count for _, count in counts[_SHOWN_SUFFIXES:])
        return f"{text}, {rest} others" if rest else text

    def _classes(self) -> dict[str, int]:
        """Returns the labels by name, or none if a file lies outside of any sub-folder."""
        if not self._shown_root or not all("/" in file.path for file in self._sound):
            return {}
        names = sorted({file.path.partition("/")[0] for file in self._sound}, key=str.encode)
        num_bytes = len(canonical_json(names))
        if num_bytes > _MAX_CLASSES_BYTES:
            name = os.path.basename(os.path.abspath(self.location))
            raise PackError(
                f"{self.location}: the names of its {len(names)} sub-folders, which would be the labels' classes, "
                f"are {num_bytes} bytes together; a manifest holds 1 MiB: pack the folder above it with "
                f"--include '{name}/**', which makes it one class"
            )
        return {name: label for label, name in enumerate(names)}

    def _check(self, given: Mapping[str, str], fields: Mapping[str, str]) -> None:
        """Refuses types that a folder has no value for."""
        for name, text in given.items():
            field = parse_field(name, text)
            if name not in fields:
                raise PackError(
                    f"{self.location}: field {name!r} is in the schema, but this folder gives {', '.join(fields)}"
                )
            takes = {"path": ("str",), "label": _LABEL_KINDS}.get(name, _CONTENT_KINDS)
            if field.kind not in takes or field.shape:
                raise PackError(
                    f"{self.location}: field {name!r} cannot be {text}; of a folder it is one of {', '.join(takes)}"
                )


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads units of a folder."""

    root: Root
    location: str
    content: str
    """Field that takes the content of a file."""
    as_text: bool
    classes: Mapping[str, int]
    """Labels by the name of the first sub-folder; empty if there are none."""
    documents: bool = False
    """Whether compressed files are unpacked."""

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields one sample a file, or why it is none."""
        for piece in unit.pieces:
            yield self.problem(piece.file) or self._read_file(piece.file)

    def problem(self, file: SourceFile) -> Reject | None:
        """Returns what the scan found wrong with a file, or None."""
        return Reject(os.path.join(self.location, file.path), file.problem, 0, " ") if file.problem else None

    def _read_file(self, file: SourceFile) -> Sample | Reject:
        name = os.path.join(self.location, file.path)
        try:
            data = (read_unpacked if self.documents else read_whole)(self.root, file, name)
            values: dict[str, object] = {self.content: self._decode(data, name) if self.as_text else data}
        except LostFileError as error:
            return Reject(name, error.message.removeprefix(f"{name} "), file.num_bytes, " ")
        if self.classes:
            values["label"] = self.classes[file.path.partition("/")[0]]
        values["path"] = file.path
        return Sample(values, name, file.num_bytes)

    def _decode(self, data: bytes, name: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            way_out = f'to keep the bytes as they are, give --schema \'{{"{self.content}": "bytes"}}\''
            if self.documents:
                way_out = "if it is no text, leave it out with include or exclude patterns"
            raise LostFileError(
                f"{name} is not UTF-8: byte {error.start} is {data[error.start]:#04x}; {way_out}"
            ) from None


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _kind(path: str) -> str:
    suffix = _suffix(path)
    if suffix in (".jpg", ".jpeg"):
        return "jpeg"
    if suffix == ".png":
        return "png"
    return "text" if suffix in TEXT_SUFFIXES else "data"
