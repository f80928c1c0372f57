"""What a pack has made, or would make."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardload.format.manifest import Manifest
from shardload.format.schema import Schema
from shardload.format.table import ShardEntry
from shardload.importers import SourcePlan
from shardload.packing.call import Call
from shardload.packing.passes import Published
from shardload.packing.preview import Trial
from shardload.packing.progress import STAGES
from shardload.writer.target import Target

_SHOWN_REJECTS = 10


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What a pack has made."""

    target: str
    version: int
    fingerprint: str
    types: dict[str, str]
    """Field name -> type."""
    num_samples: int
    """Samples packed; those that a dataset had before an append do not count."""
    num_shards: int
    num_units: int
    num_workers: int
    """Processes that packed; 0 where all was packed before."""
    source_bytes: int
    """Bytes of the source, as stored there."""
    stored_bytes: int
    """Bytes of the shards packed."""
    seconds: float
    """Time from the first unit to the commit; of a continued pack that of the last call."""
    skipped: dict[str, int]
    """What was left out of the source: reason -> number."""
    num_rejects: int = 0
    """What was no sample or did not fit the schema: the lines of `rejects.jsonl` for this pack."""
    num_tokens: int = 0
    """Tokens packed, where the source gives tokens and they are not compressed."""
    note: str = ""
    """How texts became tokens, if they did."""
    num_dropped: int = 0
    """Samples of the source that maps and filters left out."""
    num_split: int = 0
    """Samples of the source that a map made several of."""
    num_duplicates: int = 0
    """Samples left out since an earlier one has the same content; a dry run looks among those that it tries."""
    cpu_seconds: float = field(default=0.0, compare=False)
    """CPU time of all workers in the last call."""
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Time that all workers together took to `read`, `map`, `encode` and `write`, in the last call: the highest is what holds
    up the others."""

    read_bytes: int = field(default=0, compare=False)
    """Bytes of the source that the last call has read; all of them unless it continued another."""
    log_problem: str = field(default="", compare=False)
    """Why events are missing in the log, or nothing."""
    dry_run: bool = False
    """Whether nothing was written: then there is no version, and numbers of samples, shards, bytes and seconds are estimates."""
    first_samples: list[dict[str, Any]] = field(default_factory=list, compare=False)
    """Of a dry run the first samples, as they would be packed."""
    first_rejects: list[str] = field(default_factory=list, compare=False)
    """Of a dry run what would be set aside of the samples that were tried."""

    @property
    def ratio(self) -> float:
        """Bytes of the source a byte stored."""
        return self.source_bytes / self.stored_bytes if self.stored_bytes else 0.0

    @property
    def cores_used(self) -> float:
        """CPU seconds of the workers a second."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def stage_bytes_per_second(self) -> dict[str, float]:
        """Bytes of the source a second in one worker, for each stage that took time: the lowest holds up the others."""
        return {stage: self.read_bytes / took for stage, took in self.stage_seconds.items() if took}

    @property
    def slowest_stage(self) -> str:
        """The stage that took most of the workers' time; nothing where none was timed."""
        return max(self.stage_seconds, key=self.stage_seconds.__getitem__) if any(self.stage_seconds.values()) else ""

    def facts(self) -> dict[str, Any]:
        """Returns all of it but samples as JSON knows it."""
        facts = dataclasses.asdict(dataclasses.replace(self, first_samples=[]))
        del facts["first_samples"]
        return facts | {
            "ratio": self.ratio,
            "cores_used": self.cores_used,
            "slowest_stage": self.slowest_stage,
            "stage_bytes_per_second": self.stage_bytes_per_second,
        }


def summarized(place: Target, done: Published, plan: SourcePlan, skipped: dict[str, int]) -> PackSummary:
    """Returns the summary of a pack that is published."""
    manifest, entries = done.manifest, done.entries
    return PackSummary(
        target=place.root,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        types={field.name: field.type for field in manifest.parsed_schema.fields},
        num_samples=sum(entry.num_samples for entry in entries),
        num_shards=len(entries),
        num_units=len(plan.units),
        num_workers=done.num_workers,
        source_bytes=plan.num_bytes,
        stored_bytes=sum(entry.num_bytes for entry in entries),
        seconds=done.seconds,
        skipped=dict(skipped),
        num_rejects=done.done.num_rejects,
        num_tokens=_num_tokens(manifest, entries, plan.tokens),
        note=plan.note,
        num_dropped=done.done.num_dropped,
        num_split=done.done.num_split,
        num_duplicates=done.done.num_duplicates,
        read_bytes=done.read_bytes,
        cpu_seconds=done.done.cpu_seconds,
        stage_seconds={stage: getattr(done.done, f"{stage}_seconds") for stage in STAGES} if done.num_workers else {},
    )


def complete_before(root: str, manifest: Manifest, skipped: dict[str, int]) -> PackSummary:
    """Returns the summary of a call that has found nothing to add."""
    return PackSummary(
        target=root,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        types={field.name: field.type for field in manifest.parsed_schema.fields},
        num_samples=0,
        num_shards=0,
        num_units=0,
        num_workers=0,
        source_bytes=0,
        stored_bytes=0,
        seconds=0.0,
        skipped=dict(skipped),
    )


def _num_tokens(manifest: Manifest, entries: Sequence[ShardEntry], name: str) -> int:
    """Returns the items of the stream of tokens; 0 where there is none, or they lie in the records."""
    names = [field.name for field in manifest.parsed_schema.stream_fields]
    return sum(entry.num_items[names.index(name)] for entry in entries) if name in names else 0


def estimated(
    root: str, call: Call, plan: SourcePlan, schema: Schema, trial: Trial, num_workers: int, skipped: dict[str, int]
) -> PackSummary:
    """Returns what a pack would make, from what some of its samples have come to."""
    total = plan.num_bytes
    stored_bytes = round(trial.scaled(total, trial.stored_bytes))
    return PackSummary(
        target=root,
        version=0,
        fingerprint="",
        types={field.name: field.type for field in schema.fields},
        num_samples=round(trial.scaled(total, trial.num_samples)),
        num_shards=max(len(plan.units), -(-stored_bytes // call.settings.shard_size)),
        num_units=len(plan.units),
        num_workers=num_workers,
        source_bytes=total,
        stored_bytes=stored_bytes,
        seconds=trial.scaled(total, trial.seconds) / num_workers,
        skipped=dict(skipped),
        num_rejects=round(trial.scaled(total, len(trial.rejects))),
        note=plan.note,
        num_dropped=round(trial.scaled(total, trial.num_dropped)),
        num_split=round(trial.scaled(total, trial.num_split)),
        num_duplicates=round(trial.scaled(total, trial.num_duplicates)),
        dry_run=True,
        first_samples=trial.samples,
        first_rejects=trial.rejects[:_SHOWN_REJECTS],
    )
