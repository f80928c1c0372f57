"""Every byte of a dataset compared with what was written, and what is damaged told by name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError, ShardloadError
from shardload.format import layout
from shardload.format.external import ExternalFile
from shardload.format.manifest import MANIFEST_NAME, Description, Manifest
from shardload.format.schema import Field
from shardload.format.shard import ShardHead, check_header
from shardload.format.table import ShardEntry
from shardload.reader.access import Access
from shardload.reader.shard import ShardReader
from shardload.reader.snapshot import Snapshot, read_manifest, read_snapshot
from shardload.storage import LocalStorage, Storage, StoredFile, storage_of

_READ_BYTES = 4 << 20
_ROWS = 1 << 14
_DECODED = 256
_FAR_WORKERS = 16


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    file: str
    """Name of the file inside the dataset."""
    message: str
    """One sentence."""
    section: str | None = None
    """Where in the file, as far as known: header, rows, heap, a wide field, ..."""
    sample_ids: Sequence[int] = ()
    """Samples that cannot be read as they were written."""


def verify_dataset(
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    samples: bool = False,
    workers: int | None = None,
    on_shard: Callable[[ShardEntry], None] | None = None,
    on_file: Callable[[ExternalFile], None] | None = None,
) -> list[Damage]:
    """Compares all files of a dataset's current version with their digests, and what shards say with itself.

    Args:
        path: directory of the dataset, or its URL.
        storage_options: as for `open_dataset`.
        samples: also read and decode every sample. What passes its digest and still cannot be decoded was not written by
            a sound writer.
        workers: threads; None for one a core, and 16 where what they read is a request away. Hashing does not hold the
            interpreter lock.
        on_shard: called after each shard, from any thread.
        on_file: called after each existing file that records lie in, likewise.

    Returns:
        What is damaged, in the order of the files; empty if every byte is as it was written.

    Raises:
        StorageError: there is no dataset.
    """
    storage = storage_of(path, storage_options)
    damages = list(_check_manifests(storage))
    if damages:
        return damages
    try:
        snapshot = read_snapshot(storage, None, None)
    except FormatError as error:
        return [Damage(error.shard or MANIFEST_NAME, error.message)]
    except ShardloadError as error:
        return [Damage(error.shard or "tables", error.message)]

    newer = list(_check_newer(storage, snapshot.manifest))
    access = Access(storage, snapshot, "off")

    def check(shard_id: int) -> list[Damage]:
        found = list(_check_shard(storage, snapshot, access, shard_id, samples))
        if on_shard is not None:
            on_shard(snapshot.table[shard_id])
        return found

    if workers is None:
        workers = os.cpu_count() or 1 if isinstance(storage, LocalStorage) else _FAR_WORKERS
    with ThreadPoolExecutor(workers) as pool:
        damages = [damage for found in pool.map(check, range(len(snapshot.table))) for damage in found]
        return newer + damages + list(_check_external(storage, snapshot, pool, on_file))


def _check_manifests(storage: Storage) -> Iterator[Damage]:
    """Yields what is wrong with the current manifest and its committed original."""
    try:
        manifest = read_manifest(storage, None)
    except FormatError as error:
        yield Damage(error.shard or MANIFEST_NAME, error.message)
        return
    name = f"manifests/{manifest.version}"
    try:
        original = storage.read_small(name, layout.MAX_MANIFEST_BYTES)
    except ShardloadError as error:
        yield Damage(name, error.message)
        return
    if original != manifest.encode():
        yield Damage(name, f"{storage.root}: {name} is not the manifest that {MANIFEST_NAME} is a copy of")


def _check_newer(storage: Storage, manifest: Manifest) -> Iterator[Damage]:
    """Yields that a later version was committed, or begun, than the one that opens: its writer ended in between."""
    newest = max((int(name) for name in storage.list("manifests") if name.isdecimal()), default=0)
    # Another look: a writer that is just done has made the copy by now.
    if newest <= max(manifest.version, read_manifest(storage, None).version):
        return
    name = f"manifests/{newest}"
    try:
        read_manifest(storage, newest)
    except ShardloadError as error:
        yield Damage(
            name,
            f"{error.message}; {MANIFEST_NAME} is version {manifest.version}, so this one was not finished, or damaged "
            "since; a writer that replaces the dataset removes it",
        )
    else:
        yield Damage(
            MANIFEST_NAME,
            f"{storage.root}: {MANIFEST_NAME} is version {manifest.version}, but version {newest} was committed after it: "
            f"version {manifest.version} opens until {name} is copied to {MANIFEST_NAME} or the next version is written",
        )


def _check_shard(
    storage: Storage, snapshot: Snapshot, access: Access, shard_id: int, samples: bool
) -> Iterator[Damage]:
    entry = snapshot.table[shard_id]
    try:
        file = storage.open(entry.name, entry.num_bytes)
        intact = _digest(file) == entry.file_digest
        if not intact and file.discard(0, file.num_bytes):
            intact = _digest(file) == entry.file_digest
    except ShardloadError as error:
        first = int(snapshot.table.first_sample_ids[shard_id])
        yield Damage(entry.name, error.message, None, range(first, first + entry.num_samples))
        return
    if intact:
        unsound = list(_check_structure(snapshot, access, shard_id))
        yield from unsound
        if samples and not unsound:
            yield from _check_samples(snapshot, access, shard_id)
        return
    found = list(_locate(storage, snapshot, shard_id))
    yield from found or [
        Damage(
            entry.name, f"{storage.root}: {entry.name} is damaged, but outside of all samples: in padding", "padding"
        )
    ]


def _check_external(
    storage: Storage, snapshot: Snapshot, pool: ThreadPoolExecutor, on_file: Callable[[ExternalFile], None] | None
) -> Iterator[Damage]:
    """Yields which existing files that records lie in are not what they were, with the samples that are lost."""
    if not snapshot.manifest.external:
        return
    shards: dict[ExternalFile, list[int]] = {}
    access = Access(storage, snapshot, "always")
    for shard_id in range(len(snapshot.table)):
        # What is wrong with a shard itself is told already.
        with contextlib.suppress(ShardloadError):
            for file in access.shard(shard_id).sections.external():
                shards.setdefault(file, []).append(shard_id)

    def check(file: ExternalFile) -> str:
        try:
            intact = _digest(storage.open(file.name, file.num_bytes)).hex() == file.sha256
            return "" if intact else f"{storage.root}: {file.name} does not have the SHA-256 that it had"
        except ShardloadError as error:
            return error.message
        finally:
            if on_file is not None:
                on_file(file)

    for file, message in zip(shards, pool.map(check, shards), strict=True):
        if message:
            lost = [one for shard_id in shards[file] for one in _lost_in(access, snapshot, shard_id, file.name)]
            message += ": it has changed since it was indexed; put it back, or run `shardload index --replace` again"
            yield Damage(file.name, message, None, lost)


def _lost_in(access: Access, snapshot: Snapshot, shard_id: int, name: str) -> list[int]:
    """Returns the samples of a shard that lie in an existing file and cannot be read as they were."""
    first, last = (int(n) for n in snapshot.table.first_sample_ids[shard_id : shard_id + 2])
    fields = snapshot.manifest.parsed_schema.record_fields
    lost = []
    for start in range(first, last, _DECODED):
        with contextlib.suppress(ShardloadError):
            for samples, _, outside in access.outside(np.arange(start, min(start + _DECODED, last))):
                files = [number for number, one in outside.names.items() if one == name]
                mine = samples.sample_ids[np.unique(outside.slots[np.isin(outside.ranges.shard_ids, files)])]
                lost += _unreadable(access, mine, fields)[0]
    return lost


def _unreadable(access: Access, sample_ids: NDArray[np.int64], fields: Sequence[Field]) -> tuple[list[int], str]:
    """Returns which samples cannot be read, and what is said of the first: all are tried at once, then each alone."""
    bad: list[int] = []
    message = ""
    try:
        list(access.read_batch(sample_ids, {}, fields))
    except ShardloadError:
        for sample_id in sample_ids.tolist():
            try:
                list(access.read_batch(np.array([sample_id]), {}, fields))
            except ShardloadError as error:
                bad.append(sample_id)
                message = message or error.message
    return bad, message


def _check_structure(snapshot: Snapshot, access: Access, shard_id: int) -> Iterator[Damage]:
    """Yields what a shard says that cannot be, though it has its digest: the work of no writer of ours."""
    entry, manifest = snapshot.table[shard_id], snapshot.manifest
    try:
        shard = access.shard(shard_id)
        _check_header(shard)
        shard.sections.external()
        for start in range(0, entry.num_samples, _ROWS):
            access.check_rows(shard_id, start, min(start + _ROWS, entry.num_samples))
        _check_padding(shard.file(), shard.head)
        shard.sections.statistics()
        shard.sections.dictionary()
        if manifest.key:
            shard.sections.keys()
        if not _describes(shard.sections.description(), manifest, entry):
            raise FormatError(f"{access.location}: {entry.name} describes another dataset than the manifest does")
    except ShardloadError as error:
        ids = [] if error.sample_id is None else [error.sample_id]
        yield Damage(entry.name, error.message, "structure", ids)


def _check_samples(snapshot: Snapshot, access: Access, shard_id: int) -> Iterator[Damage]:
    """Yields the samples of a shard that cannot be decoded."""
    first, last = (int(n) for n in snapshot.table.first_sample_ids[shard_id : shard_id + 2])
    fields = snapshot.manifest.parsed_schema.fields
    bad: list[int] = []
    message = ""
    for start in range(first, last, _DECODED):
        some, first_message = _unreadable(access, np.arange(start, min(start + _DECODED, last)), fields)
        bad, message = bad + some, message or first_message
    if bad:
        yield Damage(snapshot.table[shard_id].name, message, "samples", bad)


def _describes(description: Description, manifest: Manifest, entry: ShardEntry) -> bool:
    """Tells whether a shard's description fits the manifest, which may be of a later version."""
    *_, own = description.generations
    expected = msgspec.structs.replace(manifest.generation(entry.generation), num_samples=0)
    earlier = [g for g in manifest.generations if g.generation < entry.generation]
    same = own == expected and description.generations[:-1] == earlier and description.key == manifest.key
    newest = entry.generation == manifest.generations[-1].generation
    if newest and (description.metadata, description.version) != (manifest.metadata, manifest.version):
        return False
    return same and description.schema == manifest.schema[: own.num_fields]


def _check_header(shard: ShardReader) -> None:
    """Checks a shard's first bytes, which reading does not look at where they would cost a request."""
    file = shard.file()
    place = f"{file.dataset}: {file.name}"
    check_header(file.read(0, layout.HEADER_BYTES), shard.head, shard.schema, shard.identity, place)


def _check_padding(file: StoredFile, head: ShardHead) -> None:
    """Checks that what lies between sections is zero; between records only the file's digest tells."""
    stop = layout.HEADER_BYTES
    for section in head.sections:
        if any(file.read(stop, section.start)):
            raise FormatError(f"{file.dataset}: {file.name} has padding that is not zero before byte {section.start}")
        stop = section.stop


def _digest(file: StoredFile) -> bytes:
    digest = hashlib.sha256()
    buffer = np.empty(min(_READ_BYTES, file.num_bytes), dtype=np.uint8)
    for start in range(0, file.num_bytes, _READ_BYTES):
        part = buffer[: min(_READ_BYTES, file.num_bytes - start)]
        file.read_into(part.data, start)
        digest.update(part.data)
    return digest.digest()


def _locate(storage: Storage, snapshot: Snapshot, shard_id: int) -> Iterator[Damage]:
    """Yields which parts of a shard, whose digest is wrong, do not pass their own checks.

    Samples are read a block at a time, and the samples of a block that fails one by one.
    """
    entry, schema = snapshot.table[shard_id], snapshot.manifest.parsed_schema
    first = int(snapshot.table.first_sample_ids[shard_id])
    all_ids = range(first, first + entry.num_samples)
    access = Access(storage, snapshot, "always")
    try:
        access.shard(shard_id)
    except ShardloadError as error:
        yield Damage(entry.name, error.message, "head", all_ids)
        return
    yield from _locate_digested(access, shard_id, all_ids)
    columns = [f for f in schema.fields if f.wide or f.streamed]
    for schema_field in [None, *columns, *schema.record_fields[:1]]:
        bad: list[int] = []
        message = ""
        wanted = [] if schema_field is None else [schema_field]
        if schema_field is not None and schema_field.in_record:
            wanted = list(schema.record_fields)
        for start in range(0, entry.num_samples, 256):
            ids = np.arange(start, min(start + 256, entry.num_samples)) + first
            try:
                access.read_batch(ids, {}, wanted)
            except ShardloadError:
                for sample_id in ids:
                    try:
                        access.read_batch(np.array([sample_id]), {}, wanted)
                    except ShardloadError as error:
                        bad.append(int(sample_id))
                        message = message or error.message
        if bad:
            yield Damage(entry.name, message, _section_name(schema_field), bad)
        if bad and schema_field is None:
            return


def _section_name(field: Field | None) -> str:
    if field is None:
        return "rows"
    return "heap" if field.in_record else f"{'stream' if field.streamed else 'wide'} {field.name}"


_NAMES = {
    layout.SECTION_DICTIONARY: "dictionary",
    layout.SECTION_KEYS: "keys",
    layout.SECTION_STATISTICS: "statistics",
    layout.SECTION_EXTERNAL: "external",
    layout.SECTION_DESCRIPTION: "description",
}


def _locate_digested(access: Access, shard_id: int, all_ids: Sequence[int]) -> Iterator[Damage]:
    """Yields which of the small sections do not have their SHA-256; no sample is lost with them but for the dictionary."""
    shard = access.shard(shard_id)
    for section in shard.head.sections:
        if section.kind in _NAMES:
            try:
                shard.sections.read(section.kind, section.field)
            except ShardloadError as error:
                needed = section.kind in (layout.SECTION_DICTIONARY, layout.SECTION_EXTERNAL)
                lost = all_ids if needed else ()
                yield Damage(shard.entry.name, error.message, _NAMES[section.kind], lost)
