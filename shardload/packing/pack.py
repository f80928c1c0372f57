"""`pack`: a source in, a dataset out."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardload.codecs import make_codec
from shardload.errors import PackError
from shardload.format.manifest import Manifest
from shardload.format.schema import parse_schema
from shardload.format.table import ShardEntry
from shardload.importers import SourcePlan, Unit, open_source
from shardload.packing.processes import pack_in_processes
from shardload.packing.progress import Count, Progress, Report, Tally
from shardload.packing.signals import signals_held
from shardload.packing.unit import Job, pack_unit
from shardload.quantities import parse_bytes
from shardload.writer.target import Target
from shardload.writer.writer import DEFAULT_SHARD_SIZE

DEFAULT_COMPRESSION = "zstd:3"

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What a pack has made."""

    target: str
    version: int
    fingerprint: str
    types: dict[str, str]
    """Field name -> type."""
    num_samples: int
    num_shards: int
    num_units: int
    num_workers: int
    source_bytes: int
    """Bytes of the source, as stored there."""
    stored_bytes: int
    """Bytes of all shards."""
    seconds: float
    """Time from the first unit to the commit."""
    skipped: dict[str, int]
    """What was left out of the source: reason -> number."""

    @property
    def ratio(self) -> float:
        """Bytes of the source a byte stored."""
        return self.source_bytes / self.stored_bytes


@dataclass(frozen=True, slots=True)
class _Settings:
    """How to pack, checked."""

    types: dict[str, str] | None
    compression: str
    shard_size: int
    unit_size: int | None
    num_workers: int | None


def pack(
    source: Path | Sequence[Path],
    target: Path,
    *,
    schema: Mapping[str, str] | None = None,
    compression: str = DEFAULT_COMPRESSION,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    unit_size: int | str | None = None,
    replace: bool = False,
    progress: Report | None = None,
) -> PackSummary:
    """Packs a source into a dataset, which appears whole when all is on the device, or not at all.

    The bytes of all files are the same for any number of workers.

    Args:
        source: a folder of images, texts or other files; or JSON Lines files, plain, `.gz` or `.zst`, one, several or
            a folder of them. Links to files are followed, links to directories are not.
        target: directory of the dataset; created if it is not there.
        schema: field name -> type: for a folder in place of inferred ones, for JSON Lines the whole schema.
        compression: `none` or `zstd:<level>`, for fields of bytes, str and json.
        shard_size: most bytes of a shard file, as a number or text such as 256MiB.
        workers: processes; None for one a core, at most one a unit. With one, this process does the work; None is one in
            a daemonic process, which may start no others.
        include: patterns that select files of a folder, such as `*.py` or `train/**/*.jpg`.
        exclude: patterns of files and folders of a folder that are left out, such as `tests` or `*_old.py`.
        unit_size: bytes of the source in a unit; None for a 64th of it, between 16 MiB and 1 GiB.
        replace: write the next version of a dataset that is there.
        progress: called in this thread at the start, then about ten times a second, and at the end.

    Raises:
        PackError: source or target are not as they must be, or something failed; nothing was published.
        FormatError: schema or compression are not of the format.
        ValueError: another argument cannot be.
    """
    settings = _checked(None if schema is None else dict(schema), compression, shard_size, unit_size, workers)
    patterns = _listed(include), _listed(exclude)
    paths = [os.fspath(path) for path in ([source] if isinstance(source, str | os.PathLike) else source)]
    root = os.fspath(target)
    _check_places(paths, root)
    place: Target | None = None
    try:
        with signals_held():
            place = Target(root, replace)
        return _pack_into(place, paths, patterns, settings, progress)
    except BaseException:
        with signals_held():
            if place is not None:
                place.abandon()
        raise


def _listed(patterns: Sequence[str] | str) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _checked(
    types: dict[str, str] | None,
    compression: str,
    shard_size: int | str,
    unit_size: int | str | None,
    workers: int | None,
) -> _Settings:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    make_codec(compression)
    if types is not None:
        parse_schema(types)
    return _Settings(
        types=types,
        compression=compression,
        shard_size=parse_bytes(shard_size, "shard_size"),
        unit_size=None if unit_size is None else parse_bytes(unit_size, "unit_size"),
        num_workers=workers,
    )


def _check_places(paths: Sequence[str], target: str) -> None:
    there = os.path.realpath(target)
    for path in paths:
        if not os.path.lexists(path):
            raise PackError(f"{path} does not exist")
        here = os.path.realpath(path)
        if here == there:
            raise PackError(f"{target} is the source itself: choose another target")
        shared = os.path.commonpath([here, there])
        if shared in (here, there):
            inner, outer = ("target", "source") if shared == here else ("source", "target")
            raise PackError(f"the {inner} lies inside the {outer} ({path} and {target}): choose another target")


def _pack_into(
    place: Target,
    paths: Sequence[str],
    patterns: tuple[Sequence[str], Sequence[str]],
    settings: _Settings,
    progress: Report | None,
) -> PackSummary:
    source = open_source(paths, *patterns)
    plan = source.plan(settings.types, settings.unit_size)
    schema = parse_schema(plan.types, settings.compression.partition(":")[0])
    num_workers = _num_workers(settings, plan)
    job = Job(
        plan.reader, place.storage, schema, place.generation, settings.shard_size, settings.compression, plan.hint
    )
    blank = Progress(Count(), plan.num_bytes, 0.0, dict(plan.types), len(plan.units), num_workers)
    tally = Tally(blank, progress)
    if num_workers == 1:
        entries = _pack_here(job, plan.units, tally)
    else:
        entries = pack_in_processes(job, plan.units, num_workers, tally)
    if not entries:
        raise PackError(f"{source.location} holds no sample to pack")
    with signals_held():
        manifest = place.commit(schema, entries, settings.shard_size, settings.compression, plan.metadata)
    tally.tell(last=True)
    return _summary(place.root, manifest, plan, tally, num_workers, source.skipped)


def _num_workers(settings: _Settings, plan: SourcePlan) -> int:
    daemonic = multiprocessing.current_process().daemon
    wanted = settings.num_workers or (1 if daemonic else len(os.sched_getaffinity(0)))
    num_workers = max(1, min(wanted, len(plan.units)))
    if daemonic and num_workers > 1:
        raise PackError(
            f"{num_workers} workers cannot be started: this is a daemonic process, such as a worker of a "
            "multiprocessing.Pool or a DataLoader, and may start no others: pack with workers=1",
        )
    return num_workers


def _pack_here(job: Job, units: Sequence[Unit], tally: Tally) -> list[ShardEntry]:
    entries: list[ShardEntry] = []
    for unit in units:
        number = unit.number
        shards, count = pack_unit(job, unit, lambda count, number=number: tally.update(number, count))  # type: ignore[misc]
        tally.update(number, count, finished=True)
        entries += shards
    return entries


def _summary(
    root: str, manifest: Manifest, plan: SourcePlan, tally: Tally, num_workers: int, skipped: dict[str, int]
) -> PackSummary:
    return PackSummary(
        target=root,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        types={field.name: field.type for field in manifest.parsed_schema.fields},
        num_samples=manifest.num_samples,
        num_shards=manifest.num_shards,
        num_units=len(plan.units),
        num_workers=num_workers,
        source_bytes=plan.num_bytes,
        stored_bytes=manifest.num_bytes,
        seconds=tally.seconds,
        skipped=dict(skipped),
    )
