"""What a pack was asked for, on disk: so that it can be continued with nothing changed, or told to be complete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from shardload.codecs.zstd import library_version
from shardload.errors import FormatError, PackError
from shardload.format.schema import canonical_json
from shardload.importers import SourcePlan, Unit
from shardload.storage import LocalStorage
from shardload.version import VERSION
from shardload.writer.target import JOB, PACKED_NAME, WORK

_MAX_BYTES = 1 << 30


class JobRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`.work/job.json`: everything that decides the bytes of a pack. The same words give the same bytes."""

    options: dict[str, Any]
    """What was asked for, by name."""
    units: list[str]
    """SHA-256 of what each unit was when the source was scanned."""
    versions: dict[str, str]
    """Versions of what decides the bytes beside the options."""
    generation: int = 0
    version: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 that tells whether another pack was asked for the same."""
        return hashlib.sha256(canonical_json({"options": self.options, "units": self.units})).hexdigest()


class PackedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`packed.json`: which pack made the newest generation, so that a repeated command is not carried out twice."""

    generation: int
    job: str
    """Digest of its job."""
    num_rejects: int
    version: int


def make_record(options: Mapping[str, Any], plan: SourcePlan) -> JobRecord:
    """Returns the record of a pack that is to be begun, without generation and version."""
    versions = {"numpy": np.__version__, "shardload": VERSION, "zstd": library_version(), **plan.versions}
    return JobRecord(dict(options), [_unit_digest(unit) for unit in plan.units], versions)


def write_record(storage: LocalStorage, record: JobRecord) -> None:
    """Brings the record of a pack to the device, before anything of it is packed."""
    storage.write(f"{WORK}/job", canonical_json(msgspec.to_builtins(record)) + b"\n")
    storage.operations.replace(storage.path(f"{WORK}/job"), storage.path(JOB))
    storage.sync_directory(WORK)


def read_record(storage: LocalStorage) -> JobRecord:
    """Returns the record of the pack that can be continued.

    Raises:
        PackError: it is damaged.
    """
    try:
        return msgspec.json.decode(storage.read_small(JOB, _MAX_BYTES), type=JobRecord)
    except (msgspec.MsgspecError, FormatError, UnicodeError) as error:
        raise PackError(
            f"{storage.root}: {JOB} is damaged, so that the unfinished pack cannot be continued ({error}); {_again(storage)}"
        ) from None


def read_packed(storage: LocalStorage) -> PackedRecord | None:
    """Returns which pack made the newest generation, or None where nothing readable says so."""
    if not storage.exists(PACKED_NAME):
        return None
    try:
        return msgspec.json.decode(storage.read_small(PACKED_NAME, _MAX_BYTES), type=PackedRecord)
    except (msgspec.MsgspecError, FormatError, UnicodeError):
        return None


def check_same(storage: LocalStorage, before: JobRecord, now: JobRecord, units: list[Unit]) -> None:
    """Refuses to continue a pack that would not end as it was begun.

    Raises:
        PackError: another version, option or source; says which.
    """
    # A package that only one of them needs is no cause: an option is.
    shared = before.versions.keys() & now.versions.keys()
    versions = ({name: record.versions[name] for name in shared} for record in (before, now))
    difference = (
        _difference("version of", *versions)
        # The schema may have been inferred: it differs because the source does.
        or _difference("option", _without_schema(before.options), _without_schema(now.options))
        or _source_difference(before.units, now.units, units)
        or _difference("option", before.options, now.options)
    )
    if difference:
        raise PackError(
            f"{storage.root}: the unfinished pack there cannot be continued: {difference}. Continue it as it was begun, "
            f"or {_again(storage)}",
            dataset=storage.root,
        )


def _again(storage: LocalStorage) -> str:
    return f"begin again with --replace (replace=True), or remove {storage.root}/{WORK} to give it up"


def _without_schema(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "schema"}


def _difference(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            old, new = (_shown(values.get(name)) for values in (before, now))
            return f"{kind} {name} was {old} when it was begun and is {new} now"
    return ""


def _shown(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 200 else text[:200] + "..."


def _source_difference(before: list[str], now: list[str], units: list[Unit]) -> str:
    for unit, old, new in zip(units, before, now, strict=False):
        if old != new:
            return f"the source has changed since it was begun, at first in {unit}"
    if len(before) != len(now):
        return f"the source has changed since it was begun: it had {len(before)} units and has {len(now)} now"
    return ""


def _unit_digest(unit: Unit) -> str:
    digest = hashlib.sha256()
    for piece in unit.pieces:
        file = piece.file
        path = file.path.encode("utf-8", "surrogateescape").hex()
        facts = [path, file.num_bytes, file.modified_ns, file.problem, piece.start, piece.stop]
        digest.update(canonical_json(facts) + b"\n")
    return digest.hexdigest()
