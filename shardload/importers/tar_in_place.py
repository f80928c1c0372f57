"""WebDataset tars that are indexed where they lie: samples whose values stay in the tar.

The samples are those that `tar` gives. What is stored of a member as it stands in the tar (bytes, media, str and json) stays
there; all else, such as the key, integers of `cls` and arrays of `npy`, is stored in the shard.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Container, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.errors import PackError
from shardload.format.external import ExternalFile, name_fault
from shardload.format.schema import MEDIA_TYPES
from shardload.importers.base import Reject, Sample, SourceFile, SourcePlan, Unit
from shardload.importers.files import examine_file, open_file, scan_folder, shown, unreadable
from shardload.importers.patterns import Selection, is_hidden
from shardload.importers.tar import TAR_SUFFIXES, TarReader, TarSource
from shardload.importers.tar_samples import RawSample
from shardload.writer.external import Outside

_READ_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STAY = {"bytes", "str", "json", *MEDIA_TYPES}


@dataclass(frozen=True, slots=True)
class InPlaceReader:
    """Reads units of tars as samples that stay in them."""

    tars: TarReader

    def read(self, unit: Unit) -> Generator[Sample | Reject, None, None]:
        """Yields the samples of the unit's tars with their places, and what is none.

        Raises:
            PackError: a tar cannot be read, is damaged or cut short, or has changed.
        """
        decoders = self.tars.decoders()
        names = self.tars.names
        types = {extension: self.tars.types[names[extension]].strip().rstrip("?") for extension in decoders}
        stay = {extension: kind for extension, kind in types.items() if kind in _STAY}
        for piece in unit.pieces:
            # The digest of the whole goes into every shard that names the tar, also one that is finished in its midst.
            file = self._described(piece.file)
            for raw in self.tars.samples(piece, decoders):
                if isinstance(raw, Reject):
                    yield raw
                    continue
                sample = self.tars.decoded(raw, decoders)
                if isinstance(sample, Sample):
                    spans = {names[one]: _span(raw, one, kind) for one, kind in stay.items() if one in raw.members}
                    sample = sample._replace(outside=Outside(file, spans))
                yield sample

    def _described(self, file: SourceFile) -> ExternalFile:
        name = os.path.join(self.tars.location, file.path)
        digest = hashlib.sha256()
        with open_file(self.tars.root, file, name) as opened:
            try:
                while data := opened.read(_READ_BYTES):
                    digest.update(data)
            except OSError as error:
                raise unreadable(name, error) from error
        return ExternalFile(file.path, file.num_bytes, digest.hexdigest())


def _span(raw: RawSample, extension: str, kind: str) -> tuple[int, bytes]:
    """Returns where a value lies in its tar, and its bytes there."""
    start, data = raw.starts[extension], raw.members[extension]
    # That of JSON is no part of the value; in a text it is a character like others.
    if kind == "json" and data.startswith(_BYTE_ORDER_MARK):
        return start + len(_BYTE_ORDER_MARK), data[len(_BYTE_ORDER_MARK) :]
    return start, data


def tars_in_place(
    location: str,
    include: Sequence[str],
    exclude: Sequence[str],
    own: Container[str],
    known: Mapping[str, int],
    at_least: int = 1,
) -> InPlaceTars:
    """Returns the tars in a folder as a source whose samples stay in them.

    Args:
        location: the folder.
        include: patterns that select tars; all if there are none.
        exclude: patterns of tars and sub-folders that are left out.
        own: names in the folder that belong to its dataset.
        known: name -> length of tars that are indexed already; they are left out.
        at_least: how many others there must be.

    Raises:
        PackError: there are not as many that can be indexed where they are, or one that is known has changed.
    """
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    selection = Selection(include or [f"*{suffix}" for suffix in TAR_SUFFIXES], exclude)
    for name in sorted(_names(location), key=os.fsencode):
        if name in own:
            continue
        if os.path.isdir(os.path.join(location, name)):
            _check_folder(location, name, selection)
        elif not selection.selects(name):
            skipped["hidden" if is_hidden(name) else "not a tar" if not include else "not included"] += 1
        elif selection.excludes(name):
            skipped["excluded"] += 1
        elif name in known:
            skipped["indexed before"] += 1
        else:
            files.append(_examined(location, name))
    for name, num_bytes in known.items():
        _check_known(location, name, num_bytes)
    if len(files) < at_least:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise PackError(f"{location} holds no tar to index" + (f"; left out: {left_out}" if left_out else ""))
    return InPlaceTars(location, files, dict(sorted(skipped.items())))


def _names(location: str) -> list[str]:
    try:
        return os.listdir(location)
    except OSError as error:
        raise PackError(f"{shown(location)} is not a folder that can be read: {error.strerror}") from None


def _check_folder(location: str, name: str, selection: Selection) -> None:
    """Refuses tars in a sub-folder: in a dataset, the name of a file is one plain component."""
    if is_hidden(name) or selection.excludes(name):
        return
    found = scan_folder(os.path.join(location, name), selection).files
    if found:
        raise PackError(
            f"{shown(os.path.join(location, name, found[0].path))} lies in a sub-folder, and only the tars beside an index can "
            "be indexed: index each folder by itself (shardload.concat reads several as one), gather the tars in one folder (links "
            f"will do), or leave the sub-folder out with --exclude {name}"
        )


def _examined(location: str, name: str) -> SourceFile:
    """Returns the facts of a tar that can be indexed."""
    path = shown(os.path.join(location, name))
    if fault := name_fault(name):
        raise PackError(f"{path} cannot be indexed under this name: {fault}; rename it")
    if name.lower().endswith(tuple(suffix for suffix in TAR_SUFFIXES if suffix != ".tar")):
        raise PackError(
            f"{path} is compressed, so that its samples cannot be read where they lie: decompress it, pack it (shardload pack), or "
            "leave it out with --exclude"
        )
    return examine_file(location, name)


def _check_known(location: str, name: str, num_bytes: int) -> None:
    """Refuses to add to an index of which a tar is not what it was."""
    try:
        now = os.stat(os.path.join(location, name)).st_size
    except OSError:
        now = -1
    if now != num_bytes:
        what = "is missing" if now < 0 else f"has {now} bytes instead of {num_bytes}"
        raise PackError(
            f"{shown(os.path.join(location, name))} {what}: it has changed since it was indexed; index all tars again "
            "with --replace (replace=True)"
        )


class InPlaceTars:
    """The tars in a folder, to be indexed where they are."""

    def __init__(self, location: str, files: Sequence[SourceFile], skipped: dict[str, int]) -> None:
        self.location = location
        self.skipped = skipped
        self._files = files

    @property
    def num_files(self) -> int:
        """How many tars there are."""
        return len(self._files)

    def plan(self, types: Mapping[str, str] | None, unit_size: int | None) -> SourcePlan:
        """Returns units and types; types given are the whole schema, and choose the members that are indexed."""
        tars = TarSource(self.location, os.path.abspath(self.location), self.location, self._files, self.skipped)
        plan = tars.plan(types, unit_size)
        reader: Any = plan.reader
        options = {"in_place": True}
        return SourcePlan(
            InPlaceReader(reader), plan.units, plan.types, plan.metadata, plan.hint, options=options, in_place=True
        )
