"""What an unfinished job at a target was asked for, on disk: so that it can be continued with nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from shardload.codecs.zstd import library_version
from shardload.errors import FormatError, PackError
from shardload.format.schema import canonical_json
from shardload.storage import LocalStorage, Storage
from shardload.version import VERSION
from shardload.writer.target import JOB, PACKED_NAME, WORK

_MAX_BYTES = 1 << 30


class JobRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`.work/job.json`: everything that decides the bytes of a dataset. The same words give the same bytes."""

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
        """SHA-256 that tells whether another job was asked for the same."""
        return hashlib.sha256(canonical_json({"options": self.options, "units": self.units})).hexdigest()

    def encode(self) -> bytes:
        """Returns the bytes of its file."""
        return canonical_json(msgspec.to_builtins(self)) + b"\n"


class PackedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`packed.json`: which job made the newest generation, so that a repeated command is not carried out twice."""

    generation: int
    job: str
    """Digest of its job."""
    num_rejects: int
    version: int
    counts: dict[str, int] = {}
    """What else became of samples of the source, by name, where it is not 0."""

    def encode(self) -> bytes:
        """Returns the bytes of its file."""
        return canonical_json(msgspec.to_builtins(self)) + b"\n"


def current_versions() -> dict[str, str]:
    """Returns the versions of what decides the bytes of shards."""
    return {"numpy": np.__version__, "shardload": VERSION, "zstd": library_version()}


def write_record(storage: LocalStorage, record: JobRecord) -> None:
    """Brings the record of a job to the device, before anything of it is done."""
    storage.write(f"{WORK}/job", record.encode())
    storage.operations.replace(storage.path(f"{WORK}/job"), storage.path(JOB))
    storage.sync_directory(WORK)


def read_record(storage: LocalStorage) -> JobRecord:
    """Returns the record of the job that can be continued.

    Raises:
        PackError: it is damaged.
    """
    try:
        return msgspec.json.decode(storage.read_small(JOB, _MAX_BYTES), type=JobRecord)
    except (msgspec.MsgspecError, FormatError, UnicodeError) as error:
        raise PackError(
            f"{storage.root}: {JOB} is damaged, so that the unfinished pack cannot be continued ({error}); {again(storage)}"
        ) from None


def read_packed(storage: Storage) -> PackedRecord | None:
    """Returns which job made the newest generation, or None where nothing readable says so."""
    if not storage.exists(PACKED_NAME):
        return None
    try:
        return msgspec.json.decode(storage.read_small(PACKED_NAME, _MAX_BYTES), type=PackedRecord)
    except (msgspec.MsgspecError, FormatError, UnicodeError):
        return None


def again(storage: LocalStorage) -> str:
    """Says how to begin anew."""
    return f"begin again with --replace (replace=True), or remove {storage.root}/{WORK} to give it up"


def difference(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns words for the first thing that has changed since a job was begun, or nothing.

    Args:
        kind: what the things are, such as `option`.
        before: values by name when it was begun.
        now: the same now.
    """
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            old, new = (_shown(values.get(name)) for values in (before, now))
            return f"{kind} {name} was {old} when it was begun and is {new} now"
    return ""


def _shown(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 200 else text[:200] + "..."
