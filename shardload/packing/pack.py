"""`pack`: a source in, a dataset out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from shardload.codecs.dictionary import DictionaryMode
from shardload.errors import PackError
from shardload.format.schema import FieldType, Schema, extend_schema, parse_schema
from shardload.importers import Source, SourcePlan, Token
from shardload.packing.call import (
    Call,
    check_places,
    check_policy,
    check_seed,
    checked_dedup,
    checked_preparation,
    checked_settings,
    checked_tokenization,
    listed,
    named_sources,
)
from shardload.packing.events import EventLog
from shardload.packing.passes import Pass, Published, check_workers, in_session, run_pass
from shardload.packing.prepared import open_prepared
from shardload.packing.preview import base_schema, try_source
from shardload.packing.progress import Report
from shardload.packing.session import Session
from shardload.packing.shuffle import shuffle as shuffle_source
from shardload.packing.summary import PackSummary, estimated, summarized
from shardload.packing.unit import OnError
from shardload.preparation import Function
from shardload.storage import OPERATIONS, Operations, is_far, shown
from shardload.writer.describe import Types, schema_for
from shardload.writer.far import staging_place, target_at
from shardload.writer.target import Mode
from shardload.writer.writer import DEFAULT_SHARD_SIZE

DEFAULT_COMPRESSION = "zstd:3"

Path = str | os.PathLike[str]


def pack(
    source: Path | Sequence[Path],
    target: Path,
    *,
    schema: Mapping[str, FieldType] | None = None,
    compression: str = DEFAULT_COMPRESSION,
    dictionary: DictionaryMode = "auto",
    key: str = "",
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    unit_size: int | str | None = None,
    tokenizer: Path | None = None,
    append_token: Token | None = None,
    prepend_token: Token | None = None,
    text_key: str | None = None,
    token_field: str | None = None,
    map: Sequence[Function] | Function | None = None,
    filter: Sequence[Function] | Function | None = None,
    steps: Sequence[str] | str = (),
    map_timeout: float | None = None,
    dedup: bool | str | Sequence[str] = False,
    shuffle: int | None = None,
    replace: bool = False,
    append: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    max_rejects: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    staging: Path | None = None,
    progress: Report | None = None,
    log_json: Path | None = None,
    dry_run: bool = False,
    operations: Operations = OPERATIONS,
) -> PackSummary:
    """Packs a source into a dataset, which appears whole when all is on the device, or not at all.

    The bytes of all files are the same for any number of workers. A pack that was cut off by whatever it was, once it has
    finished a shard, is continued by the same call with `resume=True`, and ends with the same bytes as one that was not.

    Args:
        source: a folder of images, texts or other files; or JSON Lines files or WebDataset tars, plain, `.gz` or
            `.zst`, or Megatron pairs of `.idx` and `.bin`, or Parquet, Arrow, CSV or TSV files, one, several or a
            folder of them; or a folder by `save_to_disk` of Hugging Face's datasets or of MosaicML's MDS, or
            `hf:NAME@SPLIT` of the hub. With a tokenizer also single texts. Links to files are followed, links to
            directories are not. All but the last also by URLs of fsspec, such as `s3://bucket/raw/`; of HTTP only files.
        target: directory of the dataset; created if it is not there. Or an s3:// URL: there each shard is uploaded when it is
            finished, so that the disk holds about two a worker.
        schema: field name -> type, or type and compression as for `ShardWriter`: for a folder in place of inferred ones,
            for all others the whole schema. An append may name new nullable fields.
        compression: `none` or `zstd:<level>`, for fields of bytes, str, json and lists.
        dictionary: whether a zstd dictionary is trained on the first samples: `auto` (if it pays), `on` or `off`.
        key: name of the field by which samples are looked up; its values must differ.
        shard_size: most bytes of a shard file, as a number or text such as 256MiB.
        workers: processes; None for one a core, at most one a unit. With one, this process does the work; None is one in
            a daemonic process, which may start no others. As many do `map` and `filter`, and this one packs for all of them
            as long as it keeps them busy.
        include: patterns that select files of a folder, such as `*.py` or `train/**/*.jpg`.
        exclude: patterns of files and folders of a folder that are left out, such as `tests` or `*_old.py`.
        unit_size: bytes of the source in a unit; None for a 64th of it, between 16 MiB and 1 GiB.
        tokenizer: path of a `tokenizer.json` of Hugging Face's tokenizers, or `bytes` for the bytes of UTF-8: the text of
            each sample becomes a stream of token ids. A pack is continued and a dataset appended to with the same one only.
        append_token: token after each text, by its text in the vocabulary or by its id; None for nothing.
        prepend_token: token before each text.
        text_key: field of the text: None for `text` in JSON Lines, `txt` in tars.
        token_field: field of the tokens; None for `tokens`.
        map: functions, or their names as `pkg.module:function`, that each sample goes through: a dict in, and a dict, None to
            drop the sample or a list of dicts to split it out. They must be pure, and run in processes of their own. The schema
            is that of what they give; with a tokenizer the texts are made tokens after them.
        filter: functions or their names, after those of `map`: a dict in, and whether the sample stays out.
        steps: what else is done to each sample, in order, after `map` and `filter`, as text: `nfc:FIELD` for Unicode's normal
            form C; `length:FIELD,min=N,max=N,unit=characters|bytes|tokens` to drop what is shorter or longer;
            `image:FIELD,format=jpeg|png,quality=N,shorter=N,longer=N` to encode images anew, scaled down to a side of N pixels;
            `map:pkg.module:function` and `filter:pkg.module:function`. Steps on the field of tokens follow the tokenizer.
        map_timeout: most seconds that a sample may take in all of them; None for any. One that takes longer is an error of that
            sample, as one is that a function raises for or that ends its process.
        dedup: leave samples out whose content an earlier one has, in the order of the source: of all fields (True), or of
            those named. What a dataset had before an append is not looked at. Takes room as `shuffle` does.
        shuffle: seed of the order in which the samples are written: a permutation of all of them. Meanwhile the samples
            lie in `.work` in the order of the source, which takes room for as much again.
        replace: write the next version of a dataset that is there.
        append: add to the dataset that is there, with its schema unless another is given.
        resume: go on with the pack that the same call began; begin it if there is none, and change nothing if it is
            complete.
        on_error: `raise` to end at the first thing that is no sample or does not fit the schema; `reject` to set such
            aside in `rejects.jsonl` and go on. A pack that was ended by one may be continued with `reject`.
        max_rejects: most that may be set aside; None for no limit.
        storage_options: for URLs of source and target, options of fsspec's file system for them, as for `shardload.open`.
            They stand in no message or file; a pack may be continued with others.
        staging: for a target that is a URL: directory on the disk for what is not uploaded yet, and for what `resume` needs
            to know; None for one in the user's cache directory, by the URL.
        progress: called in this thread at the start, then about ten times a second, and at the end.
        log_json: file that events are added to, a JSON object a line: `start`, `unit`, `reject`, `progress`, and `end` or
            `error`.
        dry_run: write nothing: try a few samples and return what the pack would make, estimated, and the first samples.
        operations: the file operations at the target; tests replace them. They are pickled for the workers.

    Raises:
        PackError: source or target are not as they must be, or something failed; nothing was published. The message says
            whether what was packed stays for `resume`.
        FormatError: schema or compression are not of the format.
        ValueError: another argument cannot be.
    """
    check_policy(replace, append, key, on_error, max_rejects)
    check_seed(shuffle)
    types = None if schema is None else dict(schema)
    settings = checked_settings(types, compression, dictionary, key, shard_size, unit_size, workers)
    tokens = checked_tokenization(tokenizer, append_token, prepend_token, text_key), token_field or ""
    paths = named_sources([source] if isinstance(source, str | os.PathLike) else source)
    preparation = checked_preparation(map, filter, steps, map_timeout)
    root, options = os.fspath(target), dict(storage_options or {})
    place = staging_place(root, options, staging) if is_far(root) else ""
    check_places(paths, root, place)
    for_source = options if not place or any(is_far(path) for path in paths) else {}
    call = Call(
        *(paths, listed(include), listed(exclude), settings, *tokens, preparation),
        *(shuffle, checked_dedup(dedup), resume, on_error, max_rejects, progress, for_source),
        None if log_json is None or dry_run else EventLog(os.fspath(log_json)),
    )
    claim = partial(target_at, options=options if place else None, staging=staging)
    mode: Mode = "append" if append else "replace" if replace else "create"
    work = partial(_pack_into, call=call)
    if dry_run:
        return _dry_run(root, base_schema(root, mode, options), call)
    return _logged(call, lambda: in_session(root, mode, operations, resume, work, claim=claim))


def _logged(call: Call, work: Callable[[], PackSummary]) -> PackSummary:
    """Does the work and notes in the log how it ended."""
    if call.log is None:
        return work()
    try:
        summary = work()
    except BaseException as error:
        call.log.fail(error)
        raise
    call.log.end(summary.facts())
    return dataclasses.replace(summary, log_problem=call.log.problem)


def _pack_into(session: Session, call: Call) -> PackSummary:
    with contextlib.ExitStack() as held:
        return pack_source(session, call, open_prepared(call, held))


def _dry_run(root: str, base: Schema | None, call: Call) -> PackSummary:
    """Returns what a pack would make, estimated from a few samples."""
    settings, root = call.settings, shown(root)
    with contextlib.ExitStack() as held:
        source = open_prepared(call, held)
        plan = source.plan(_plain_types(settings.types, base), settings.unit_size)
        types = {name: _with_codec(name, text, settings.types) for name, text in plan.types.items()}
        codec = settings.compression.partition(":")[0]
        schema = parse_schema(types, codec, settings.key) if base is None else extend_schema(base, types, codec)
        _check_dedup(call, source, schema)
        num_workers = check_workers(settings, plan)
        trial = try_source(plan, schema, settings.compression, num_workers, call.dedup)
        if trial.rejects and call.on_error == "raise":
            raise PackError(trial.rejects[0])
        return estimated(root, call, plan, schema, trial, num_workers, source.skipped)


def pack_source(session: Session, call: Call, source: Source) -> PackSummary:
    """Packs a source into a claimed target.

    Raises:
        PackError: source or target are not as they must be, or something failed.
        FormatError: schema or compression are not of the format.
    """
    settings, place = call.settings, session.place
    base = None if place.base is None else place.base.parsed_schema
    plan = source.plan(_plain_types(settings.types, base), settings.unit_size)
    if plan.reject is not None and call.on_error == "raise":
        raise PackError(plan.reject.message)
    types = {name: _with_codec(name, text, settings.types) for name, text in plan.types.items()}
    schema = schema_for(place, types, settings.compression.partition(":")[0], settings.key)
    _check_dedup(call, source, schema)
    options = _options(call, plan, place.mode == "append")
    if call.resume and (complete := session.find_complete(options, plan)):
        return summarized(place, Published(*complete), plan, source.skipped)
    check_workers(settings, plan)
    session.begin(options, plan)
    stage = "indexing" if plan.in_place else "packing"
    described = Pass(plan, schema, plan.metadata, source.location, stage)
    if call.shuffle is None and call.dedup is None:
        done = run_pass(session, call, described)
    else:
        done = shuffle_source(session, call, described, options)
    return summarized(place, done, plan, source.skipped)


def _check_dedup(call: Call, source: Source, schema: Schema) -> None:
    if missing := [name for name in call.dedup or () if name not in schema]:
        raise PackError(f"{source.location}: dedup names the field {missing[0]!r}, which is not in the schema {schema}")


def _plain_types(types: Types | None, base: Schema | None) -> dict[str, str] | None:
    """Returns the types given, without codecs; what is added to a dataset has its types unless others are given."""
    if types is None:
        return None if base is None else {field.name: field.type for field in base.fields}
    return {name: entry if isinstance(entry, str) else entry["type"] for name, entry in types.items()}


def _with_codec(name: str, text: str, given: Types | None) -> FieldType:
    """Returns a planned type with the codec that was given for its field."""
    entry = (given or {}).get(name, text)
    return text if isinstance(entry, str) else {**entry, "type": text}


def _options(call: Call, plan: SourcePlan, append: bool) -> dict[str, Any]:
    """Returns what decides the bytes beside the source, by the names that the caller knows."""
    # How errors are treated is not among them: what was packed without a reject is the same with either.
    settings = call.settings
    return {
        "append": append,
        "compression": settings.compression,
        "dictionary": settings.dictionary,
        "exclude": call.exclude,
        "include": call.include,
        "key": settings.key,
        "schema": [[name, _with_codec(name, text, settings.types)] for name, text in plan.types.items()],
        "shard_size": settings.shard_size,
        "source": [shown(path) if is_far(path) else os.path.normpath(path) for path in call.paths],
        "unit_size": settings.unit_size,
        **({} if call.shuffle is None else {"shuffle": call.shuffle}),
        **({} if call.dedup is None else {"dedup": list(call.dedup) or "all fields"}),
        **plan.options,
    }
