"""`index`: a dataset over existing tars, which stay where and as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shardload.errors import PackError
from shardload.format.external import external_bytes_fact
from shardload.format.manifest import MANIFEST_NAME
from shardload.format.schema import FieldType
from shardload.importers import tars_in_place
from shardload.packing.call import Call, Preparation, check_policy, checked_settings, listed
from shardload.packing.pack import Path, pack_source
from shardload.packing.passes import in_session
from shardload.packing.progress import Report
from shardload.packing.session import Session
from shardload.packing.summary import PackSummary, complete_before
from shardload.packing.unit import OnError
from shardload.reader import open_dataset
from shardload.storage import OPERATIONS, Operations
from shardload.storage.secrets import is_url, shown
from shardload.writer.job import read_record
from shardload.writer.target import OWN_NAMES, Mode
from shardload.writer.writer import DEFAULT_SHARD_SIZE


def index(
    tars: Path,
    *,
    schema: Mapping[str, FieldType] | None = None,
    key: str = "",
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    unit_size: int | str | None = None,
    replace: bool = False,
    append: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    max_rejects: int | None = None,
    progress: Report | None = None,
    operations: Operations = OPERATIONS,
) -> PackSummary:
    """Makes a dataset of the WebDataset tars in a folder without copying them: `shardload.open(tars)` reads it from then on.

    The samples are those that `pack` makes of the same tars. Members that are values as they stand (bytes, media, str, json) stay
    in their tar, under a checksum; keys, integers of `cls` and arrays of `npy` are stored in shards. The index lies in the
    same folder, and the tars are never changed. The bytes of all files are the same for any number of workers.

    Args:
        tars: the folder. Tars in sub-folders, and compressed ones, cannot be indexed; other files are passed over.
        schema: field name -> type: the whole schema, which chooses members, instead of one that is inferred. `bytes` leaves any
            member in its tar.
        key: name of the field by which samples are looked up, such as `key`; its values must differ over all tars.
        shard_size: most bytes of a shard file, as a number or text such as 256MiB.
        workers: processes; None for one a core, at most one a unit of tars.
        include: patterns of the tars to index, such as `train-*.tar`; None for all.
        exclude: patterns of tars and sub-folders that are left out.
        unit_size: bytes of tars that one worker indexes at a time; None for a 64th of all, between 16 MiB and 1 GiB.
        replace: index all tars anew, as the next version of the dataset that is there.
        append: add the tars that are not indexed yet, as the next version, with the schema that is there unless another is given.
        resume: go on with what the same call began; begin it if there is nothing, and change nothing if it is complete.
        on_error: `raise` to end at the first thing that is no sample or does not fit the schema; `reject` to set such
            aside in `rejects.jsonl` and go on.
        max_rejects: most that may be set aside; None for no limit.
        progress: called in this thread at the start, then about ten times a second, and at the end.
        operations: the file operations at the target; tests replace them.

    Raises:
        PackError: the tars or the folder are not as they must be, or something failed; nothing was published. The message says
            whether what was indexed stays for `resume`.
        FormatError: the schema is not of the format.
        ValueError: another argument cannot be.
    """
    check_policy(replace, append, key, on_error, max_rejects)
    types = None if schema is None else dict(schema)
    settings = checked_settings(types, "none", "off", key, shard_size, unit_size, workers)
    root = os.fspath(tars)
    if is_url(root):
        raise PackError(
            f"{shown(root)} is a URL: tars are indexed in a local folder; shardload pack takes them from URLs"
        )
    if not os.path.isdir(root):
        raise PackError(f"{root} is not a folder of tars")
    if os.path.lexists(os.path.join(root, MANIFEST_NAME)) and not (replace or append or resume):
        raise PackError(
            f"{root} holds a dataset already: add the tars that are new with --append (append=True), or index all of them anew "
            "with --replace (replace=True)",
            dataset=root,
        )
    patterns = listed(include), listed(exclude)
    call = Call(
        *([root], *patterns, settings, None, "", Preparation(()), None, None),
        *(resume, on_error, max_rejects, progress, {}),
    )
    mode: Mode = "append" if append else "replace" if replace else "create"
    return in_session(root, mode, operations, resume, lambda session: _index(session, call), others=True)


def _index(session: Session, call: Call) -> PackSummary:
    (root,) = call.paths
    known = _known(session, call)
    # Going on where all is done ends well, also where other calls have done it.
    at_least = 0 if call.resume and known else 1
    source = tars_in_place(root, call.include, call.exclude, OWN_NAMES, known, at_least)
    place = session.place
    if source.num_files or place.current is None:
        return pack_source(session, call, source)
    place.leave_finished()
    return complete_before(place.root, place.current, source.skipped)


def _known(session: Session, call: Call) -> dict[str, int]:
    """Returns the tars that are indexed already, with their lengths, where new ones are added to them."""
    place = session.place
    if place.base is None:
        return {}
    # Those of an unfinished call, which may have been cut off after its commit, are what it is continued with.
    begun = read_record(place.storage).generation if call.resume and place.has_job else 0
    dataset = open_dataset(place.root, version=place.base.version)
    files, manifest = dataset.external_files(but=begun), dataset.manifest
    facts = (external_bytes_fact(one.generation) for one in manifest.generations if one.generation != begun)
    unnamed = sum(int(str(manifest.metadata.get(fact, 0))) for fact in facts) - sum(file.num_bytes for file in files)
    if unnamed:
        # It would be taken for a new one, and its samples would come twice.
        raise PackError(
            f"{place.root}: of tars of {unnamed:,} bytes that are indexed already no sample has a member that is read from there, "
            "so that nobody knows which they are: index all anew with --replace"
        )
    return {file.name: file.num_bytes for file in files}
