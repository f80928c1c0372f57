"""A pack tried on a few samples: its schema, what the samples become, and what all of them would take."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardload.codecs import make_codec
from shardload.errors import PackError
from shardload.format.rows import row_layout
from shardload.format.schema import Schema
from shardload.importers import Item, Outcome, Reject, Sample, SourcePlan, preparing
from shardload.preparation.digest import ContentDigest
from shardload.storage import LocalStorage, is_far, storage_of
from shardload.writer.encode import SampleEncoder
from shardload.writer.pack import RecordPacker
from shardload.writer.target import Mode
from shardload.writer.versions import read_current

NUM_UNITS = 4
"""Units that are looked into, spread over the source."""
ITEMS_A_UNIT = 256
"""Samples of the source that are taken of each, ..."""
SECONDS_A_UNIT = 2.0
"""... or fewer, where those take longer."""
SHOWN_SAMPLES = 3


@dataclass(slots=True)
class Trial:
    """What a few samples have come to."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    """The first ones, as they would be packed."""
    num_samples: int = 0
    num_dropped: int = 0
    num_split: int = 0
    num_duplicates: int = 0
    """Of what was tried: one whose like was not tried is missing."""
    source_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    rejects: list[str] = field(default_factory=list)

    def scaled(self, total_bytes: int, number: float) -> float:
        """Returns what a number would be for the whole source."""
        return number * total_bytes / self.source_bytes if self.source_bytes else 0.0


def base_schema(root: str, mode: Mode, options: Mapping[str, Any] | None = None) -> Schema | None:
    """Returns the schema of the dataset that would be added to, or None where there is none. Changes nothing.

    Args:
        root: the target.
        mode: what may be there.
        options: storage options, if it is a URL.

    Raises:
        PackError: the pack could not write there.
    """
    if is_far(root):
        return _far_schema(root, mode, options)
    if os.path.lexists(root) and not os.path.isdir(root):
        raise PackError(f"{root} exists and is not a directory", dataset=root)
    if mode == "create" and os.path.isdir(root) and os.listdir(root):
        raise PackError(
            f"{root} is not empty: choose another target, or replace it (--replace, replace=True)", dataset=root
        )
    if mode != "append":
        return None
    current = read_current(LocalStorage(os.path.abspath(root))) if os.path.isdir(root) else None
    if current is None:
        raise PackError(f"{root} holds no dataset to append to: pack without --append (append=True)", dataset=root)
    return current.parsed_schema


def _far_schema(url: str, mode: Mode, options: Mapping[str, Any] | None) -> Schema | None:
    storage = storage_of(url, options)
    current = read_current(storage) if mode != "replace" else None
    if mode == "create" and current is not None:
        raise PackError(f"{storage.root} exists and holds a dataset: choose another target, or replace it (--replace)")
    if mode == "append" and current is None:
        raise PackError(f"{storage.root} holds no dataset to append to: pack without --append (append=True)")
    return current.parsed_schema if mode == "append" and current is not None else None


def try_source(
    plan: SourcePlan, schema: Schema, compression: str, num_workers: int, dedup: Sequence[str] | None = None
) -> Trial:
    """Does to a few samples of the source what one worker of a pack would, but writes nothing.

    Args:
        plan: the source.
        schema: of the dataset.
        compression: of the pack.
        num_workers: how many workers it would have.
        dedup: fields whose content tells duplicates, none of them for all fields; None where duplicates stay.

    Raises:
        PackError: the source cannot be read.
    """
    trial, tools = Trial(), _Tools(schema, compression, dedup)
    count = len(plan.units)
    for reader in preparing(plan.reader):
        # Starting takes time once only, and is no part of the estimate.
        reader.share(num_workers)
        reader.start()
    for number in sorted({count * i // NUM_UNITS for i in range(NUM_UNITS)} if count else ()):
        started = time.monotonic()
        with contextlib.closing(plan.reader.read(plan.units[number])) as items:
            for item in itertools.islice(items, ITEMS_A_UNIT):
                for one in _parts(trial, item):
                    _try(trial, one, tools)
                if time.monotonic() - started > SECONDS_A_UNIT:
                    break
            trial.seconds += time.monotonic() - started
    return trial


def _parts(trial: Trial, item: Item) -> Iterator[Sample | Reject]:
    if not isinstance(item, Outcome):
        yield item
        return
    if not item.items:
        trial.num_dropped += 1
        trial.source_bytes += item.num_bytes
    trial.num_split += len(item.items) > 1
    yield from item.items


class _Tools:
    """What samples are tried with."""

    def __init__(self, schema: Schema, compression: str, dedup: Sequence[str] | None) -> None:
        self.encoder = SampleEncoder(schema)
        self.packer = RecordPacker(make_codec(compression))
        self.row_bytes = row_layout(schema).dtype.itemsize
        fields = [schema[name] for name in dedup or ()] or schema.fields
        self._digest = None if dedup is None else ContentDigest(fields)
        self._seen: set[bytes] = set()

    def is_duplicate(self, values: Mapping[str, Any]) -> bool:
        """Tells whether duplicates are to go and a sample is one of an earlier one."""
        if self._digest is None:
            return False
        num_seen = len(self._seen)
        self._seen.add(self._digest.of(dict(values)).tobytes())
        return len(self._seen) == num_seen


def _try(trial: Trial, item: Sample | Reject, tools: _Tools) -> None:
    trial.source_bytes += item.num_bytes
    if isinstance(item, Reject):
        trial.rejects.append(item.message)
        return
    try:
        encoded = tools.encoder.encode(item.values, item.place)
    except PackError as error:
        trial.rejects.append(str(error))
        return
    if tools.is_duplicate(item.values):
        trial.num_duplicates += 1
        return
    record, _ = tools.packer.pack(encoded)
    trial.num_samples += 1
    trial.stored_bytes += tools.row_bytes + len(record) + (4 if record else 0) + sum(map(len, encoded.values))
    if len(trial.samples) < SHOWN_SAMPLES:
        trial.samples.append(dict(item.values))
