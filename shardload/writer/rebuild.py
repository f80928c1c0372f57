"""Manifest and shard table made anew from the shards alone, byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from shardload.errors import FormatError, PackError, ShardloadError
from shardload.format import layout
from shardload.format.manifest import (
    MANIFEST_NAME,
    Description,
    Manifest,
    complete,
    decode_description,
    decode_manifest,
)
from shardload.format.shard import (
    TAIL_READ_BYTES,
    Expected,
    ShardHead,
    check_header,
    contents_of,
    decode_head,
    parse_tail,
    tail_bytes,
)
from shardload.format.table import ShardEntry, make_table, table_name
from shardload.storage import OPERATIONS, FileReader, LocalStorage, Operations, local_path
from shardload.writer.maintenance import locked, shard_identity
from shardload.writer.target import WORK

_READ_BYTES = 4 << 20
_REBUILT = "rebuilt"
"""File in `.work` that is being written; one of a rebuild that was cut off is in nobody's way."""

Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Rebuilt:
    """What was made anew."""

    manifest: Manifest
    empty_units: list[tuple[int, int]]
    """Generation and unit of those that have no shard: they held no sample, or all of their shards are lost."""


def rebuild_index(
    path: str | os.PathLike[str],
    *,
    workers: int | None = None,
    on_shard: Callable[[str], None] | None = None,
    operations: Operations = OPERATIONS,
) -> Rebuilt:
    """Writes the shard table and the manifest of the newest version again, from what the shards say of themselves.

    All bytes of all shards are read. Nothing sound is changed: a manifest that is there is compared.

    Args:
        path: directory of the dataset.
        workers: threads; None for one a core.
        on_shard: called with the name of each shard that was read, from any thread.
        operations: the file operations.

    Raises:
        PackError: shards are missing, contradict each other or the manifest that is there, or a pack is unfinished.
        FormatError: a shard is damaged.
        StorageError: a file cannot be read.
    """
    storage = LocalStorage(local_path(path), operations)
    with locked(storage):
        if set(storage.list(WORK)) - {_REBUILT}:
            raise PackError(
                f"{storage.root} holds an unfinished pack: finish it with the same command and --continue, or remove it with "
                "`shardload prune --unfinished`",
                dataset=storage.root,
            )
        newest = _newest_sound(storage)
        identities = sorted(filter(None, map(shard_identity, storage.list("shards"))))
        if newest is not None:
            # Shards of a later generation than was ever committed are what an unfinished pack left.
            identities = [identity for identity in identities if identity[0] <= newest.generations[-1].generation]
        if not identities:
            raise PackError(f"{storage.root} holds no shard to rebuild a dataset from", dataset=storage.root)
        description = _describe(storage, identities[-1])
        named = {generation.generation for generation in description.generations}
        wanted = [identity for identity in identities if identity[0] in named]

        def read(identity: Identity) -> tuple[ShardEntry, bool]:
            found = _read_shard(storage, identity, description)
            if on_shard is not None:
                on_shard(layout.shard_name(*identity))
            return found

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            entries = list(pool.map(read, wanted))
        empty = _check_complete(storage.root, description, entries)
        manifest = _publish(storage, description, [entry for entry, _ in entries], newest)
    return Rebuilt(manifest, empty)


def _tail(file: FileReader) -> bytes:
    end = file.read(max(0, file.num_bytes - TAIL_READ_BYTES), file.num_bytes)
    size = tail_bytes(end, f"{file.dataset}: {file.name}")
    return end[-size:] if size <= len(end) else file.read(max(0, file.num_bytes - size), file.num_bytes)


def _describe(storage: LocalStorage, identity: Identity) -> Description:
    """Returns what a shard says of its dataset."""
    file = storage.open(layout.shard_name(*identity))
    place = f"{file.dataset}: {file.name}"
    sections, _ = parse_tail(_tail(file))
    section = next((s for s in sections if s.kind == layout.SECTION_DESCRIPTION), None)
    if section is None or section.num_bytes > layout.MAX_DESCRIPTION_BYTES or section.stop > file.num_bytes:
        raise FormatError(f"{place} is damaged: it has no description", dataset=file.dataset, shard=file.name)
    data = file.read(section.start, section.stop)
    if hashlib.sha256(data).digest() != section.digest:
        raise FormatError(
            f"{place} is damaged: its description has not its SHA-256", dataset=file.dataset, shard=file.name
        )
    return decode_description(data, place)


def _read_shard(storage: LocalStorage, identity: Identity, newest: Description) -> tuple[ShardEntry, bool]:
    """Returns a shard's entry in the table, and whether it is the last part of its unit."""
    file = storage.open(layout.shard_name(*identity))
    place, tail = f"{file.dataset}: {file.name}", _tail(file)
    schema = newest.schema_of(identity[0])
    sections, (num_samples, *_) = parse_tail(tail)
    num_items = contents_of(sections, schema, num_samples).num_items
    head_digest = hashlib.sha256(tail).digest()
    dictionary = newest.generation(identity[0]).dictionary
    if not 1 <= num_samples <= layout.MAX_SHARD_SAMPLES:
        raise FormatError(f"{place} is damaged: {num_samples} samples", dataset=file.dataset, shard=file.name)
    expected = Expected(schema, num_samples, file.num_bytes, head_digest, num_items, dictionary, newest.external)
    head = decode_head(tail, expected, place)
    check_header(file.read(0, layout.HEADER_BYTES), head, schema, identity, place)
    _check_description(_describe(storage, identity), newest, identity[0], place)
    digest = _file_digest(file, head, place)
    return ShardEntry(*identity, num_samples, file.num_bytes, head_digest, digest, num_items), head.last


def _check_description(own: Description, newest: Description, generation: int, place: str) -> None:
    """Checks that a shard is of the dataset that the newest describes."""
    earlier = [g for g in newest.generations if g.generation < generation]
    facts = own.generations[-1]
    known = newest.generation(generation)
    same = (facts.codec, facts.dictionary, facts.num_fields, facts.num_units, facts.shard_size, facts.writer) == (
        known.codec, known.dictionary, known.num_fields, known.num_units, known.shard_size, known.writer
    )  # fmt: skip
    whole = own == newest if generation == newest.generations[-1].generation else own.generations[:-1] == earlier
    if not same or not whole or own.key != newest.key or own.schema != newest.schema[: known.num_fields]:
        raise PackError(f"{place} is of another dataset than the newest shard: they describe different ones")


def _file_digest(file: FileReader, head: ShardHead, place: str) -> bytes:
    digest = hashlib.sha256()
    sections = {section: hashlib.sha256() for section in head.sections if section.kind in layout.DIGESTED_SECTIONS}
    for start in range(0, file.num_bytes, _READ_BYTES):
        data = file.read(start, min(start + _READ_BYTES, file.num_bytes))
        digest.update(data)
        for section, own in sections.items():
            own.update(data[max(0, section.start - start) : max(0, section.stop - start)])
    for section, own in sections.items():
        if own.digest() != section.digest:
            raise FormatError(
                f"{place} is damaged at bytes {section.start} to {section.stop}: a section has not its SHA-256",
                dataset=file.dataset,
                shard=file.name,
                start=section.start,
                stop=section.stop,
            )
    return digest.digest()


def _check_complete(
    root: str, description: Description, entries: Sequence[tuple[ShardEntry, bool]]
) -> list[tuple[int, int]]:
    """Checks that no part is missing as far as the shards tell; returns the units of which there is none."""
    seen = set()
    for (generation, unit), group in groupby(entries, key=lambda pair: (pair[0].generation, pair[0].unit)):
        parts = list(group)
        numbers, last = [entry.part for entry, _ in parts], [flag for _, flag in parts]
        if numbers != list(range(len(parts))) or last != [False] * (len(parts) - 1) + [True]:
            gap = next((i for i, number in enumerate(numbers) if i != number), len(numbers))
            missing = layout.shard_name(generation, unit, gap)
            raise PackError(f"{root}: {missing} is missing: the samples in it are lost", dataset=root)
        seen.add((generation, unit))
    for facts in description.generations[:-1]:
        num_samples = sum(entry.num_samples for entry, _ in entries if entry.generation == facts.generation)
        if num_samples != facts.num_samples:
            raise PackError(
                f"{root}: generation {facts.generation} had {facts.num_samples} samples, its shards have {num_samples}: "
                "some are missing",
                dataset=root,
            )
    units = ((facts.generation, unit) for facts in description.generations for unit in range(facts.num_units))
    return [unit for unit in units if unit not in seen]


def _publish(
    storage: LocalStorage, description: Description, entries: Sequence[ShardEntry], there: Manifest | None
) -> Manifest:
    newest = description.generations[-1].generation
    table = make_table(entries, len(description.parsed_schema.stream_fields)).encode()
    manifest = complete(
        description,
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_shards=len(entries),
        num_added=sum(entry.num_samples for entry in entries if entry.generation == newest),
        table=hashlib.sha256(table).hexdigest(),
    )
    encoded = manifest.encode()
    if there is not None and there != manifest:
        raise PackError(
            f"{storage.root}: the manifest that is there is sound and names other content (version {there.version}) than "
            f"the shards (version {manifest.version}), so shards are missing; nothing was changed",
            dataset=storage.root,
        )
    for directory in ("tables", "manifests", WORK):
        storage.make_directory(directory)
    prepared = f"{WORK}/{_REBUILT}"
    if storage.exists(prepared):
        storage.operations.unlink(storage.path(prepared))
    for name, data in (
        (table_name(manifest.table), table),
        (f"manifests/{manifest.version}", encoded),
        (MANIFEST_NAME, encoded),
    ):
        if not storage.exists(name) or storage.read_small(name, max(len(data), layout.MAX_MANIFEST_BYTES)) != data:
            storage.write(prepared, data)
            storage.operations.replace(storage.path(prepared), storage.path(name))
            storage.sync_directory(os.path.dirname(name))
    storage.operations.rmdir(storage.path(WORK))
    storage.sync_directory("")
    return manifest


def _newest_sound(storage: LocalStorage) -> Manifest | None:
    """Returns the newest manifest that is there and sound, if one is."""
    names = [f"manifests/{name}" for name in storage.list("manifests") if name.isdecimal()]
    found = []
    for name in [*names, MANIFEST_NAME]:
        with contextlib.suppress(ShardloadError):
            found.append(decode_manifest(storage.read_small(name, layout.MAX_MANIFEST_BYTES), name))
    return max(found, key=lambda manifest: manifest.version, default=None)
