"""`pack --shuffle` and `--dedup`: two passes, so that any source is written in a true permutation, without duplicates.

The first pass packs the source as it is into a dataset in `.work/unshuffled`, by the same means as every pack: with a
journal of its own, so that it can be interrupted anywhere. For `--dedup` a field of it takes the digest of each sample, and
what is a duplicate follows from that column. The second pass reads that dataset in the permuted order, with units that are
ranges of positions, and its journal is that of the pack. All are pure functions of the source and the options, so the
bytes are the same for any number of workers and interruptions. The commit removes the first dataset.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shardload.errors import StorageError
from shardload.format.schema import Schema, parse_field
from shardload.importers import copy_named, plan_shuffled
from shardload.packing.call import Call
from shardload.packing.passes import Pass, Published, check_set_aside, in_session, run_pass
from shardload.packing.progress import times_of
from shardload.packing.rejects import read_rejects
from shardload.packing.session import Session, SetAside
from shardload.packing.unit import DigestField
from shardload.preparation.digest import DIGEST_TYPE
from shardload.preparation.duplicates import mark_duplicates
from shardload.reader import open_dataset
from shardload.storage import LocalStorage
from shardload.writer.failures import write_error
from shardload.writer.resume import ResumableTarget
from shardload.writer.work import UNSHUFFLED, WORK

_MARKS = f"{WORK}/duplicates"
_DIGEST_FIELD = "content_digest"
_MARKED_TOGETHER = 1 << 16
"""Samples whose digests are read together."""


def shuffle(session: Session, call: Call, described: Pass, options: Mapping[str, Any]) -> Published:
    """Packs a source in the order that its seed gives, without duplicates if that is asked for, and publishes it.

    Args:
        session: the pack, begun.
        call: how to do it.
        described: what is packed.
        options: what the pack was asked for.

    Raises:
        PackError: as of `run_pass`.
    """
    place = session.place
    root = place.storage.path(UNSHUFFLED)
    copied = _with_digest(call, described)
    first = in_session(
        *(root, "create", place.storage.operations, True),
        partial(_pack_unshuffled, call=call, described=copied, options=options),
    )
    unshuffled = LocalStorage(root, place.storage.operations)
    session.set_aside = SetAside(first.done, partial(read_rejects, unshuffled))
    left_out, marks = "", ""
    if copied.digest is not None:
        left_out, marks = copied.digest.name, place.storage.path(_MARKS)
        _mark(place, root, left_out, marks)
    plan = plan_shuffled(root, call.shuffle, call.settings.unit_size, left_out, marks)
    metadata = dict(described.metadata)
    if call.shuffle is not None:
        # By generation: what is appended later may have another order, or none.
        metadata[f"shuffle_seed_{place.generation}"] = call.shuffle
    # All that could be rejected was, so that anything now is damage.
    strict = replace(call, on_error="raise", max_rejects=None)
    stage = "shuffling" if copied.digest is None else "deduplicating"
    second = run_pass(session, strict, Pass(plan, described.schema, metadata, described.source, stage))
    del plan
    # What this process has mapped of the copy takes its room on the disk until it is let go, and it lies in a cycle.
    gc.collect()
    # What was read and mapped is that of the first pass; the time that of both.
    done = replace(first.done + times_of(second.done), num_duplicates=second.done.num_dropped)
    return replace(second, done=done, seconds=first.seconds + second.seconds, read_bytes=first.read_bytes)


def _with_digest(call: Call, described: Pass) -> Pass:
    """Returns what the first pass packs: with a field for digests, and duplicate keys, where duplicates are to go."""
    if call.dedup is None:
        return described
    schema = described.schema
    fields = tuple(schema[name] for name in call.dedup) if call.dedup else schema.fields
    name = _DIGEST_FIELD
    while name in schema:
        name += "_"
    with_digest = Schema((*schema.fields, parse_field(name, DIGEST_TYPE)), "")
    return replace(described, schema=with_digest, digest=DigestField(name, fields))


def _mark(place: ResumableTarget, root: str, name: str, marks: str) -> None:
    """Marks the samples of the first pass that an earlier one equals."""
    with copy_named(root):
        dataset = open_dataset(root)
        bursts = (
            np.arange(i, min(i + _MARKED_TOGETHER, len(dataset))) for i in range(0, len(dataset), _MARKED_TOGETHER)
        )
        try:
            mark_duplicates(
                (dataset.column(name, ids) for ids in bursts), len(dataset), place.storage.path(WORK), marks
            )
        except StorageError:
            raise
        except OSError as error:
            raise write_error(place.root, error) from error


def _pack_unshuffled(session: Session, call: Call, described: Pass, options: Mapping[str, Any]) -> Published:
    """Packs the source in its own order, or finds it packed."""
    with copy_named(session.place.root):
        complete = session.find_complete(options, described.plan)
    if complete:
        check_set_aside(call, session.place.root, complete[2].num_rejects)
        return Published(*complete)
    session.begin(options, described.plan)
    # It is read once: speed counts more than a few bytes.
    compression = "none" if call.settings.compression == "none" else "zstd:1"
    settings = replace(call.settings, compression=compression, dictionary="off")
    return run_pass(session, replace(call, settings=settings), described)
