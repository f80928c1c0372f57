"""WebDataset tars as a source: members `key.extension` that stand together are one sample, with a field an extension.

A sample has `key: str` and then a field for every extension, in the order of the extensions' text; `tar_values` says
which types they have, `tar_samples` what a sample is. A member that is missing is None. Keys are data, and unique
within a tar only: several tars often number their samples alike.

Types given are the whole schema, as with JSON Lines. They also choose: members of extensions that are not named are
passed over unread, and `key` is left out if it is not named. Without types given, nothing is passed over: an extension
that the samples looked at did not have is an error when it comes.

Tars that `shardload export` wrote say in their first member which fields they hold, and of which types: those they have then.

A tar is read from its start to its end, so each is indivisible; memory holds one sample, and 8 bytes a key.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.errors import FormatError, PackError
from shardload.format.note import KEY, MAX_NOTE_BYTES, NOTE_NAME, Note, decode_note
from shardload.importers.base import Piece, Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.compressed import DamageError, ZstdStream
from shardload.importers.files import Root, check_unchanged, open_file, unreadable
from shardload.importers.tar_archive import Archive, TarDamage
from shardload.importers.tar_samples import KEY_FIELD, RawSample, Wanted, raw_samples
from shardload.importers.tar_types import TypeInference, has_content_type
from shardload.importers.tar_values import BadValue, Decode, decoder
from shardload.importers.units import cut_units

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
INFERRED_SAMPLES = 10_000
"""Samples from which types are inferred, the same number from each of the tars looked at, ..."""
INFERRED_BYTES = 256 << 20
"""... or fewer, where so many bytes had to be read for them, ..."""
INFERRED_TARS = 64
"""... in at most so many tars, evenly spread over all, the first among them."""

_READ_BYTES = 1 << 18
# Where most of a tar is passed over, reading ahead is reading for nothing.
_LOOK_BYTES = 1 << 13


class TarSource:
    """WebDataset tars, one after the other."""

    def __init__(
        self, location: str, root: Root, shown_root: str, files: Sequence[SourceFile], skipped: dict[str, int]
    ) -> None:
        """Describes the source.

        Args:
            location: what the user called it.
            root: absolute folder that the files' paths start from.
            shown_root: the same folder in messages.
            files: the tars, in order.
            skipped: what was left out: reason -> number.
        """
        self.location = location
        self.skipped = skipped
        self._root = root
        self._shown_root = shown_root
        self._files = files

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given are the whole schema, and choose the members that are packed."""
        units = cut_units(self._files, [False] * len(self._files), unit_size)
        root = self._root, self._shown_root
        note = self._note()
        if note is not None and (types is None or types.keys() <= note.types.keys()):
            noted = dict(note.types if types is None else types)
            names = {field.stored: field.name for field in note.fields if field.name in noted}
            self._check_given(noted, names)
            return SourcePlan(TarReader(*root, noted, True, names), units, noted, note.metadata)
        if types is None:
            inferred, hint = self._infer()
            return SourcePlan(TarReader(*root, inferred, False, _plain(inferred)), units, inferred, {}, hint)
        given, names = dict(types), _plain(types)
        self._check_given(given, names)
        for extension in names:
            if extension != extension.lower():
                raise PackError(
                    f"{self.location}: field {extension!r} would stay empty: extensions are taken in lower case, so give "
                    f"{extension.lower()!r}"
                )
        return SourcePlan(TarReader(*root, given, True, names), units, given, {})

    def _note(self) -> Note | None:
        """Returns what an export noted in the tars, if that is the same in all."""
        reader = TarReader(self._root, self._shown_root, {}, True, {})
        first: Note | None = None
        for file in self._files:
            note = reader.note(file)
            if note is None or (first is not None and note != first):
                return None
            first = note
        return first

    def _check_given(self, types: Mapping[str, str], names: Mapping[str, str]) -> None:
        for extension, name in names.items():
            type_text = types[name]
            if extension != KEY:
                try:
                    decoder(extension, type_text)
                except PackError as error:
                    raise PackError(f"{self.location}: {error}") from None
            elif type_text.strip().rstrip("?") != "str":
                raise PackError(
                    f"{self.location}: field {name!r} is the key of a sample and cannot be {type_text}: give it str"
                )

    def _infer(self) -> tuple[dict[str, str], str]:
        """Returns the types that the first samples have, and what to say of them."""
        files = _spread(self._files, INFERRED_TARS)
        inference = TypeInference()
        reader = TarReader(self._root, self._shown_root, {}, False, {})
        first: Reject | None = None
        for file in files:
            wanted, left = Wanted(None, has_content_type), -(-INFERRED_SAMPLES // len(files))
            looked = reader.raw(Piece(file, 0, file.num_bytes), wanted, _LOOK_BYTES)
            with contextlib.closing(looked):
                for raw, bytes_read in looked:
                    if isinstance(raw, Reject):
                        first = first or raw
                    else:
                        inference.add(raw.members)
                        left -= 1
                    if not left or bytes_read >= INFERRED_BYTES // len(files):
                        break
        if not inference.num_samples:
            detail = f"; the first thing in them that is none: {first.place}: {first.reason}" if first else ""
            raise PackError(f"{self.location} holds no sample of a WebDataset tar{detail}")
        of = f" of {len(files)} tars" if len(files) > 1 else ""
        hint = (
            f"the types were inferred from the first samples{of}, {inference.num_samples:,} together; give others with "
            "--schema, with a ? after the types of members that some samples lack"
        )
        return {KEY_FIELD: "str"} | inference.types(), hint


def _plain(types: Mapping[str, str]) -> dict[str, str]:
    """Returns the fields of tars whose extensions are their fields: extension, or `KEY` for the key, -> field name."""
    return {KEY if name == KEY_FIELD else name: name for name in types}


def _spread(files: Sequence[SourceFile], count: int) -> list[SourceFile]:
    count = min(count, len(files))
    return [files[len(files) * i // count] for i in range(count)]


@dataclass(frozen=True, slots=True)
class TarReader:
    """Reads units of tars."""

    root: Root
    location: str
    types: Mapping[str, str]
    """Field name -> type."""
    chosen: bool
    """Whether members of other fields are passed over, rather than given for the schema to refuse."""
    names: Mapping[str, str]
    """Extension, or `KEY` for the key, -> field name."""

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields the samples of the unit's tars, and what is none."""
        decoders = self.decoders()
        for piece in unit.pieces:
            for raw in self.samples(piece, decoders):
                yield raw if isinstance(raw, Reject) else self.decoded(raw, decoders)

    def decoders(self) -> dict[str, Decode]:
        """Returns what makes a value of the content of a member, by its extension; the key has none."""
        fields = ((extension, self.types[name]) for extension, name in self.names.items() if extension != KEY)
        return {extension: decoder(extension, text) for extension, text in fields}

    def samples(self, piece: Piece, decoders: Mapping[str, Decode]) -> Generator[RawSample | Reject, None, None]:
        """Yields the samples of a tar as they stand there, and what is none; raises as `raw`."""
        wanted = Wanted(decoders if self.chosen else None, _always)
        for raw, _ in self.raw(piece, wanted, _READ_BYTES):
            yield raw

    def raw(
        self, piece: Piece, wanted: Wanted, buffer_bytes: int
    ) -> Generator[tuple[RawSample | Reject, int], None, None]:
        """Yields what a tar holds as it stands there, each with the bytes that were read of the tar so far.

        Raises:
            PackError: the tar cannot be read, is damaged or cut short, or has changed.
        """
        with self._archive(piece.file, buffer_bytes) as (archive, name, stored):
            for raw in raw_samples(archive, name, wanted, stored):
                yield raw, archive.bytes_read

    def note(self, file: SourceFile) -> Note | None:
        """Returns what an export noted at the beginning of a tar.

        Raises:
            PackError: the tar cannot be read, or what is noted there is broken.
        """
        with self._archive(file, _LOOK_BYTES) as (archive, name, _):
            first = next(iter(archive), None)
            if first is None or first.kind or first.name != NOTE_NAME:
                return None
            if first.num_bytes > MAX_NOTE_BYTES:
                raise PackError(f"{name}: its member {NOTE_NAME} has {first.num_bytes} bytes, more than can be right")
            try:
                return decode_note(archive.read())
            except FormatError as error:
                raise PackError(f"{name}: {error}") from None

    @contextlib.contextmanager
    def _archive(self, file: SourceFile, buffer_bytes: int) -> Iterator[tuple[Archive, str, Callable[[], int]]]:
        """Opens a tar; also gives its name, and what tells the bytes of the file that were read."""
        name = os.path.join(self.location, file.path)
        packed = _compression(name)
        with open_file(self.root, file, name) as opened:
            # Both are held here: a buffered reader closes its file when it goes.
            buffered = io.BufferedReader(opened, buffer_bytes)
            content = _decompressed(buffered, packed) if packed else buffered
            archive = Archive(content, None if packed else file.num_bytes)
            try:
                yield archive, name, buffered.tell if packed else archive.tell
                check_unchanged(opened, file, name)
            except (TarDamage, DamageError, EOFError, gzip.BadGzipFile, zlib.error) as error:
                # What was read may be part old, part new: then that is what is wrong.
                check_unchanged(opened, file, name)
                after = f", after member {archive.last!r}" if archive.last else ""
                at = "" if isinstance(error, TarDamage) else f" at byte {archive.tell()}"
                of = " (bytes of the decompressed tar)" if packed else ""
                raise PackError(f"{name} is damaged or was cut short{at}{after}: {error}{of}") from None
            except OSError as error:
                raise unreadable(name, error) from error

    def decoded(self, raw: RawSample, decoders: Mapping[str, Decode]) -> Sample | Reject:
        """Returns a sample with its values, or why it is none."""
        key = self.names.get(KEY)
        values: dict[str, Any] = {} if key is None else {key: raw.place.key}
        for extension, data in raw.members.items():
            decode = decoders.get(extension)
            try:
                values[self.names.get(extension, extension)] = decode(data) if decode else data
            except BadValue as error:
                return Reject(raw.place, f"its member {extension!r} {error}", raw.stored_bytes)
        return Sample(values, raw.place, raw.stored_bytes)


def _always(extension: str) -> bool:
    return True


def _compression(path: str) -> str:
    """Returns `gz`, `zst` or nothing, by the suffix of a tar."""
    suffix = path.lower().rpartition(".")[2]
    return {"tgz": "gz", "gz": "gz", "zst": "zst"}.get(suffix, "")


def _decompressed(file: io.BufferedReader[Any], compression: str) -> io.BufferedReader[Any]:
    stream: Any = gzip.GzipFile(fileobj=file) if compression == "gz" else ZstdStream(file)
    return io.BufferedReader(stream, _READ_BYTES)
