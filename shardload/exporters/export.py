"""`export`: a dataset out, as files of another project."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from shardload.errors import ExportError
from shardload.exporters.parquet import ParquetFiles
from shardload.exporters.progress import Clock, Report
from shardload.exporters.tar import TarFiles, key_field
from shardload.exporters.target import Target, exporting
from shardload.format.external import EXTERNAL_BYTES
from shardload.format.schema import Field
from shardload.order.epoch import InOrder
from shardload.quantities import parse_bytes
from shardload.reader import SampleSource, ShardDataset, open_dataset
from shardload.reader.batch import SampleBatch
from shardload.reader.engine_choice import EngineName
from shardload.reader.sizes import sample_sizes
from shardload.storage import OPERATIONS, Operations
from shardload.storage.secrets import is_url, shown

DEFAULT_FILE_SIZE = "256MiB"
FORMATS = ("webdataset", "parquet")

_SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
_BATCH_BYTES = 4 << 20
_BATCH_SAMPLES = 1024

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export has made."""

    dataset: str
    fingerprint: str
    """That of the dataset, or of the view of it."""
    target: str
    to: str
    """`webdataset` or `parquet`."""
    num_samples: int
    num_files: int
    num_bytes: int
    """Bytes of the files."""
    stored: dict[str, str]
    """Field name -> extension of its members, or type of its column."""
    key: str
    """Name of the field that gave the keys of the samples in tars, or nothing."""
    seconds: float


class Files(Protocol):
    """Files that samples are written into."""

    stored: dict[str, str]
    """How each field is stored."""

    def write(self, batch: SampleBatch) -> None:
        """Writes samples."""
        ...

    def finish(self) -> None:
        """Ends the last file."""
        ...


def export(
    dataset: Path | SampleSource,
    target: Path,
    *,
    to: str | None = None,
    fields: Sequence[str] | None = None,
    shard_size: int | str = DEFAULT_FILE_SIZE,
    key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
    operations: Operations = OPERATIONS,
) -> ExportSummary:
    """Writes a dataset as WebDataset tars or Parquet files, which appear whole when all is on the device, or not at all.

    `shardload.pack` of what it wrote gives a dataset of the same fields, types and samples.

    Args:
        dataset: path or URL of a dataset, or a dataset or view of `shardload.open`: `shardload.open("out/")[:1000]`.
        target: a folder of files, or one file if it ends in `.tar` or `.parquet`. Must not be there.
        to: `webdataset` or `parquet`; None if the target's ending says it.
        fields: names of the fields to write; None for all that the dataset reads.
        shard_size: about the most bytes of a file in a folder, as a number or text such as 256MiB.
        key: name of a field of str whose values name the samples in tars; None for `key` if there is such a field, else, or
            if it is "", they are named by their numbers.
        storage_options: for the URL of a dataset, as for `shardload.open`.
        progress: called in this thread at the start, then about ten times a second, and at the end.
        operations: the file operations at the target; tests replace them.

    Raises:
        ExportError: the target is there or cannot be written, pyarrow is missing, or a sample cannot be written so; nothing is
            left at the target.
        FormatError: the dataset is damaged.
        StorageError: it cannot be read.
        ValueError: an argument cannot be, or the dataset has no order of its own or functions of yours.
    """
    if is_url(os.fspath(target)):
        raise ExportError(f"{shown(os.fspath(target))} is a URL: export to a local path, and copy it from there")
    path = os.path.abspath(target)
    to, single = _format(path, os.fspath(target), to)
    max_bytes = parse_bytes(shard_size, "shard_size")
    source = dataset if isinstance(dataset, SampleSource) else open_to_export(dataset, None, storage_options)
    chosen = _chosen(source, fields)
    if key is not None and to != "webdataset":
        raise ValueError("key names the samples in tars; it goes with webdataset only")
    name = key_field(chosen, key, source.location) if to == "webdataset" else ""
    _check_place(source.location, path)
    place = Target(path, _SUFFIXES[to], single, operations)
    facts: Any = {name: fact for name, fact in source.metadata.items() if not name.startswith(EXTERNAL_BYTES)}
    with exporting(place, operations), contextlib.ExitStack() as stack:
        files: Files
        if to == "webdataset":
            files = TarFiles(place, chosen, facts, len(source), max_bytes, name)
        else:
            files = made = ParquetFiles(place, chosen, facts, max_bytes)
            stack.callback(made.abandon)
        clock = Clock(len(source), progress)
        done = 0
        for batch in _batches(source, chosen, min(_BATCH_BYTES, max_bytes)):
            files.write(batch)
            done += len(batch)
            clock.tell(done, place.num_bytes, place.num_files)
        files.finish()
        clock.tell(done, place.num_bytes, place.num_files, last=True)
        place.publish()
    counts = len(source), place.num_files, place.num_bytes
    return ExportSummary(
        source.location, source.fingerprint, path, to, *counts, dict(files.stored), name, clock.seconds
    )


def open_to_export(
    location: Path, version: int | None, storage_options: Mapping[str, Any] | None = None
) -> ShardDataset:
    """Opens a dataset such that reading all of it, from front to back, takes little memory: pages of a map would count."""
    engine: EngineName = "auto" if is_url(os.fspath(location)) else "pread"
    return open_dataset(location, version=version, engine=engine, storage_options=storage_options)


def _format(path: str, shown: str, to: str | None) -> tuple[str, bool]:
    """Returns what is written, and whether into one file."""
    if to is not None and to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(FORMATS)}, not {to!r}")
    ending = next((name for name, suffix in _SUFFIXES.items() if path.lower().endswith(suffix)), None)
    if path.lower().endswith((".tar.gz", ".tgz", ".tar.zst")):
        raise ValueError(f"{shown}: tars are written uncompressed: give a name that ends in .tar, or a folder")
    if ending is None and to is None:
        raise ValueError(
            f"{shown}: say what to write, webdataset or parquet, with to (--to), or by the ending .tar or .parquet"
        )
    if ending is not None and to not in (None, ending):
        raise ValueError(f"{shown}: its ending says {ending}, but it should become {to}")
    return to or str(ending), ending is not None


def _chosen(source: SampleSource, names: Sequence[str] | None) -> tuple[Field, ...]:
    """Returns the fields to write, after a look at whether the source can be written at all."""
    if source.transform is not None or source.decode:
        raise ValueError(
            f"{source.location}: an export writes samples as they are stored: open the dataset without transform and decode"
        )
    if not isinstance(source.orders(False), InOrder):
        raise ValueError(
            f"{source.location}: {type(source).__name__} has no order of its own with each sample once: export its sources"
        )
    if names is None:
        return source.field_list
    if isinstance(names, str):
        raise ValueError(f"fields must be a list of names, not the text {names!r}")
    known = {field.name: field for field in source.field_list}
    for name in names:
        if name not in known:
            raise ValueError(f"{source.location}: there is no field {name!r}; the fields are {', '.join(known):.500}")
    if not names:
        raise ValueError("fields must name at least one field")
    return tuple(field for field in source.field_list if field.name in names)


def _check_place(location: str, path: str) -> None:
    if is_url(location):
        return
    here, there = os.path.realpath(location), os.path.realpath(path)
    if os.path.isdir(here) and os.path.commonpath([here, there]) == here:
        raise ExportError(f"{path} lies inside the dataset {location}: choose another target", dataset=location)


def _batches(source: SampleSource, fields: Sequence[Field], max_bytes: int) -> Iterator[SampleBatch]:
    """Yields all samples in order, so many bytes at a time, or one sample that has more."""
    for start in range(0, len(source), _BATCH_SAMPLES):
        ids = np.arange(start, min(start + _BATCH_SAMPLES, len(source)), dtype=np.int64)
        ends = np.cumsum(sample_sizes(source, ids))
        edges = [0]
        while edges[-1] < len(ids):
            before = int(ends[edges[-1] - 1]) if edges[-1] else 0
            edges.append(max(edges[-1] + 1, int(np.searchsorted(ends, before + max_bytes, side="right"))))
        parts = [ids[first:stop] for first, stop in pairwise(edges)]
        for part, later in zip(parts, [*parts[1:], None], strict=True):
            if later is not None:
                source.will_need(later, fields)
            yield source.read_batch(part, fields=fields)
