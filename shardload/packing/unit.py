"""One unit of a source packed into its shards: what a worker does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardload.codecs import make_codec
from shardload.errors import PackError
from shardload.format.schema import Schema
from shardload.format.table import ShardEntry
from shardload.importers import Unit, UnitReader
from shardload.packing.progress import REPORT_SECONDS, Count
from shardload.storage import LocalStorage
from shardload.writer.encode import SampleEncoder
from shardload.writer.shard import UnitWriter, write_unit
from shardload.writer.target import write_error


@dataclass(frozen=True, slots=True)
class Job:
    """All that is needed to pack any unit. Small and picklable."""

    reader: UnitReader
    storage: LocalStorage
    schema: Schema
    generation: int
    shard_size: int
    compression: str
    hint: str
    """Added to the error of a sample that does not fit the schema."""


def pack_unit(job: Job, unit: Unit, tell: Callable[[Count], None]) -> tuple[list[ShardEntry], Count]:
    """Packs a unit.

    Args:
        job: what it is a part of.
        unit: the unit.
        tell: called now and then with what has been packed of this unit.

    Returns:
        The unit's shards and the final count.

    Raises:
        PackError: the source or a sample is not as it should be, or the storage failed. Shards of this unit that were
            finished stay; who claimed the target removes them.
    """
    encoder = SampleEncoder(job.schema, make_codec(job.compression))
    num_samples = source_bytes = 0

    def fill(writer: UnitWriter) -> None:
        nonlocal num_samples, source_bytes
        due = time.monotonic() + REPORT_SECONDS
        with contextlib.closing(job.reader.read(unit)) as samples:
            for sample in samples:
                try:
                    encoded = encoder.encode(sample.values, sample.place)
                except PackError as error:
                    if not job.hint:
                        raise
                    raise PackError(f"{error}; {job.hint}") from None
                writer.add(encoded)
                num_samples += 1
                source_bytes += sample.num_bytes
                if time.monotonic() >= due:
                    tell(Count(num_samples, source_bytes, writer.num_bytes))
                    due = time.monotonic() + REPORT_SECONDS

    try:
        entries = write_unit(job.storage, job.schema, job.generation, unit.number, job.shard_size, fill)
    except PackError:
        raise
    except OSError as error:
        raise write_error(job.storage.root, error) from error
    except MemoryError:
        raise PackError(f"{unit}: there is not enough memory for its samples") from None
    return entries, Count(num_samples, source_bytes, sum(entry.num_bytes for entry in entries))
