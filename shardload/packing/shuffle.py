"""`pack --shuffle`: two passes, so that any source can be written in a true permutation of all its samples.

The first pass packs the source as it is into a dataset in `.work/unshuffled`, by the same means as every pack: with a
journal of its own, so that it can be interrupted anywhere. The second reads that dataset in the permuted order, with
units that are ranges of positions, and its journal is that of the pack. Both are pure functions of the source and the
options, so the bytes are the same for any number of workers and interruptions. The commit removes the first dataset.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from shardload.importers import copy_named, plan_shuffled
from shardload.packing.call import Call
from shardload.packing.passes import Pass, Published, check_set_aside, in_session, run_pass
from shardload.packing.rejects import read_rejects
from shardload.packing.session import Session, SetAside
from shardload.storage import LocalStorage
from shardload.writer.work import UNSHUFFLED


def shuffle(session: Session, call: Call, described: Pass, options: Mapping[str, Any]) -> Published:
    """Packs a source in the order that its seed gives, and publishes it.

    Args:
        session: the pack, begun.
        call: how to do it.
        described: what is packed.
        options: what the pack was asked for.

    Raises:
        PackError: as of `run_pass`.
    """
    assert call.shuffle is not None
    place = session.place
    root = place.storage.path(UNSHUFFLED)
    first = in_session(
        *(root, "create", place.storage.operations, True),
        partial(_pack_unshuffled, call=call, described=described, options=options),
    )
    unshuffled = LocalStorage(root, place.storage.operations)
    session.set_aside = SetAside(first.num_rejects, partial(read_rejects, unshuffled))
    plan = plan_shuffled(root, call.shuffle, call.settings.unit_size)
    # By generation: what is appended later may have another order, or none.
    metadata = {**described.metadata, f"shuffle_seed_{place.generation}": call.shuffle}
    # All that could be rejected was, so that anything now is damage.
    strict = replace(call, on_error="raise", max_rejects=None)
    second = run_pass(session, strict, Pass(plan, described.schema, metadata, described.source, "shuffling"))
    del plan
    # What this process has mapped of the copy takes its room on the disk until it is let go, and it lies in a cycle.
    gc.collect()
    return replace(second, num_rejects=first.num_rejects, seconds=first.seconds + second.seconds)


def _pack_unshuffled(session: Session, call: Call, described: Pass, options: Mapping[str, Any]) -> Published:
    """Packs the source in its own order, or finds it packed."""
    with copy_named(session.place.root):
        complete = session.find_complete(options, described.plan)
    if complete:
        check_set_aside(call, session.place.root, complete[2])
        return Published(*complete)
    session.begin(options, described.plan)
    # It is read once: speed counts more than a few bytes.
    compression = "none" if call.settings.compression == "none" else "zstd:1"
    settings = replace(call.settings, compression=compression, dictionary="off")
    return run_pass(session, replace(call, settings=settings), described)
