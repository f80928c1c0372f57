"""One pass over a source: what is left of its units packed, and all of them published."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from shardload.errors import PackError
from shardload.format.manifest import Manifest, Metadata
from shardload.format.schema import Schema
from shardload.format.table import ShardEntry
from shardload.importers import SourcePlan, preparing
from shardload.packing.call import Call, Settings
from shardload.packing.dictionary import train_on_source
from shardload.packing.processes import Workers
from shardload.packing.progress import Count, Progress, Tally
from shardload.packing.session import Session
from shardload.packing.signals import signals_held
from shardload.packing.unit import DigestField, Job
from shardload.storage import Operations
from shardload.writer.describe import make_recipe
from shardload.writer.resume import ResumableTarget
from shardload.writer.target import Mode

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Pass:
    """What is packed."""

    plan: SourcePlan
    schema: Schema
    metadata: Metadata
    """What goes into the manifest beside the schema."""
    source: str
    """What the user called it."""
    stage: str = "packing"
    digest: DigestField | None = None
    """The field, one of the schema, that takes the digest of each sample's content."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a pass has come to."""

    manifest: Manifest
    entries: Sequence[ShardEntry]
    """The shards that this pack has added."""
    done: Count
    """What this pack has come to; of one that was complete before, what was counted then. Times are those of this call."""
    num_workers: int = 0
    """Processes that packed; 0 where all was packed before."""
    seconds: float = 0.0
    read_bytes: int = 0
    """Bytes of the source that this call has read."""


def in_session(
    root: str,
    mode: Mode,
    operations: Operations,
    resume: bool,
    work: Callable[[Session], _Result],
    others: bool = False,
    claim: Callable[..., ResumableTarget] = ResumableTarget,
) -> _Result:
    """Claims a target, where other files may be or not, and does some work there; it is given back whatever happens."""
    session: Session | None = None
    try:
        with signals_held():
            session = Session(claim(root, mode, operations, resume, others), resume)
        result = work(session)
    except BaseException as error:
        with signals_held(error):
            if session is not None:
                session.leave(error)
        raise
    session.leave(None)
    return result


def run_pass(session: Session, call: Call, described: Pass) -> Published:
    """Packs what is left of a pack that was begun, and publishes all of it.

    Args:
        session: the pack; its journal says what is left.
        call: how to do it.
        described: what is packed.

    Raises:
        PackError: the source or the target are not as they must be, or something failed.
    """
    settings, place, plan, schema = call.settings, session.place, described.plan, described.schema
    num_workers = check_workers(settings, plan)
    assert session.journal is not None
    blank = Progress(Count(), plan.num_bytes, 0.0, dict(plan.types), len(plan.units), num_workers)
    report = call.progress if call.log is None else call.log.told(call.progress)
    tally = Tally(replace(blank, stage=described.stage), report, session.journal.counts)
    check_set_aside(call, place.root, tally.done.num_rejects)
    tasks = session.tasks(plan.units)
    with Workers() as workers:
        if num_workers > 1 and not _has_processes(plan):
            # First of all: what they load takes as long as the dictionary often, which is trained meanwhile.
            workers.start(min(num_workers, len(tasks)))
        dictionary = train_on_source(plan, schema, settings.compression, settings.dictionary, settings.shard_size)
        external_bytes = plan.num_bytes if plan.in_place else None
        facts = (dictionary, described.metadata, settings.shard_size, len(plan.units), external_bytes)
        recipe = make_recipe(place, schema, settings.compression, *facts)
        job = Job(plan.reader, place.storage, recipe, plan.hint, call.on_error, described.digest, place.deliver)
        session.run(job, tasks, workers, num_workers, tally, call.max_rejects, call.log)
    manifest, entries = session.commit(recipe.description, described.source)
    tally.tell(last=True)
    read_bytes = (tally.done - tally.before).source_bytes
    return Published(manifest, entries, tally.done, tally.num_workers, tally.seconds, read_bytes)


def _has_processes(plan: SourcePlan) -> bool:
    """Whether others do steps for the process that packs, so that it may be enough that there is one."""
    return any(reader.waited_seconds is not None for reader in preparing(plan.reader))


def check_set_aside(call: Call, root: str, num_rejects: int) -> None:
    """Refuses to go on as if there had been no reject where there was one.

    Raises:
        PackError: something was set aside before.
    """
    if call.on_error == "raise" and num_rejects:
        raise PackError(
            f"{root}: {num_rejects:,} rejects were set aside before: continue with --on-error reject (on_error='reject')"
        )


def check_workers(settings: Settings, plan: SourcePlan) -> int:
    """Returns the number of processes.

    Raises:
        PackError: this one may start no others.
    """
    num_workers = max(1, min(settings.wanted_workers, len(plan.units)))
    if num_workers > 1 and multiprocessing.current_process().daemon:
        raise PackError(
            f"{num_workers} workers cannot be started: this is a daemonic process, such as a worker of a "
            "multiprocessing.Pool or a DataLoader, and may start no others: pack with workers=1",
        )
    return num_workers
