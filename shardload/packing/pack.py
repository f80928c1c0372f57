"""`pack`: a source in, a dataset out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shardload.codecs.dictionary import DictionaryMode
from shardload.errors import PackError
from shardload.format.manifest import Manifest
from shardload.format.schema import FieldType
from shardload.format.table import ShardEntry
from shardload.importers import Source, SourcePlan, Token, named_by_hub, named_by_index, open_source
from shardload.packing.call import (
    Call,
    check_places,
    check_policy,
    check_seed,
    checked_settings,
    checked_tokenization,
    listed,
)
from shardload.packing.passes import Pass, Published, check_workers, in_session, run_pass
from shardload.packing.progress import Report
from shardload.packing.session import Session
from shardload.packing.shuffle import shuffle as shuffle_source
from shardload.packing.unit import OnError
from shardload.storage import OPERATIONS, Operations, is_far
from shardload.writer.describe import Types, schema_for
from shardload.writer.far import staging_place, target_at
from shardload.writer.target import Mode, Target
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

    @property
    def ratio(self) -> float:
        """Bytes of the source a byte stored."""
        return self.source_bytes / self.stored_bytes


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
    shuffle: int | None = None,
    replace: bool = False,
    append: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    max_rejects: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    staging: Path | None = None,
    progress: Report | None = None,
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
            directories are not.
        target: directory of the dataset; created if it is not there. Or an s3:// URL: there each shard is uploaded when it is
            finished, so that the disk holds about one a worker.
        schema: field name -> type, or type and compression as for `ShardWriter`: for a folder in place of inferred ones,
            for all others the whole schema. An append may name new nullable fields.
        compression: `none` or `zstd:<level>`, for fields of bytes, str, json and lists.
        dictionary: whether a zstd dictionary is trained on the first samples: `auto` (if it pays), `on` or `off`.
        key: name of the field by which samples are looked up; its values must differ.
        shard_size: most bytes of a shard file, as a number or text such as 256MiB.
        workers: processes; None for one a core, at most one a unit. With one, this process does the work; None is one in
            a daemonic process, which may start no others.
        include: patterns that select files of a folder, such as `*.py` or `train/**/*.jpg`.
        exclude: patterns of files and folders of a folder that are left out, such as `tests` or `*_old.py`.
        unit_size: bytes of the source in a unit; None for a 64th of it, between 16 MiB and 1 GiB.
        tokenizer: path of a `tokenizer.json` of Hugging Face's tokenizers, or `bytes` for the bytes of UTF-8: the text of
            each sample becomes a stream of token ids. A pack is continued and a dataset appended to with the same one only.
        append_token: token after each text, by its text in the vocabulary or by its id; None for nothing.
        prepend_token: token before each text.
        text_key: field of the text: None for `text` in JSON Lines, `txt` in tars.
        token_field: field of the tokens; None for `tokens`.
        shuffle: seed of the order in which the samples are written: a permutation of all of them. Meanwhile the samples
            lie in `.work` in the order of the source, which takes room for as much again.
        replace: write the next version of a dataset that is there.
        append: add to the dataset that is there, with its schema unless another is given.
        resume: go on with the pack that the same call began; begin it if there is none, and change nothing if it is
            complete.
        on_error: `raise` to end at the first thing that is no sample or does not fit the schema; `reject` to set such
            aside in `rejects.jsonl` and go on. A pack that was ended by one may be continued with `reject`.
        max_rejects: most that may be set aside; None for no limit.
        storage_options: for a target that is a URL, as of `open`.
        staging: for a target that is a URL: directory on the disk for what is not uploaded yet, and for what `resume` needs
            to know; None for one in the user's cache directory, by the URL.
        progress: called in this thread at the start, then about ten times a second, and at the end.
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
    given = [os.fspath(path) for path in ([source] if isinstance(source, str | os.PathLike) else source)]
    paths = named_by_index(named_by_hub(given))
    call = Call(
        paths, listed(include), listed(exclude), settings, *tokens, shuffle, resume, on_error, max_rejects, progress
    )
    root = os.fspath(target)
    check_places(paths, staging_place(root, storage_options, staging) if is_far(root) else root)
    claim = partial(target_at, options=storage_options, staging=staging)
    mode: Mode = "append" if append else "replace" if replace else "create"
    return in_session(root, mode, operations, resume, lambda session: _pack_into(session, call), claim=claim)


def _pack_into(session: Session, call: Call) -> PackSummary:
    source = open_source(call.paths, call.include, call.exclude, call.tokenization, call.token_field)
    return pack_source(session, call, source)


def pack_source(session: Session, call: Call, source: Source) -> PackSummary:
    """Packs a source into a claimed target.

    Raises:
        PackError: source or target are not as they must be, or something failed.
        FormatError: schema or compression are not of the format.
    """
    settings, place = call.settings, session.place
    plan = source.plan(_plain_types(settings.types, place), settings.unit_size)
    if plan.reject is not None and call.on_error == "raise":
        raise PackError(plan.reject.message)
    types = {name: _with_codec(name, text, settings.types) for name, text in plan.types.items()}
    schema = schema_for(place, types, settings.compression.partition(":")[0], settings.key)
    options = _options(call, plan, place.mode == "append")
    if call.resume and (complete := session.find_complete(options, plan)):
        return _summary(place, Published(*complete), plan, source.skipped)
    check_workers(settings, plan)
    session.begin(options, plan)
    stage = "indexing" if plan.in_place else "packing"
    described = Pass(plan, schema, plan.metadata, source.location, stage)
    if call.shuffle is None:
        done = run_pass(session, call, described)
    else:
        done = shuffle_source(session, call, described, options)
    return _summary(place, done, plan, source.skipped)


def _plain_types(types: Types | None, place: Target) -> dict[str, str] | None:
    """Returns the types given, without codecs; what is added to a dataset has its types unless others are given."""
    if types is None:
        return None if place.base is None else {field.name: field.type for field in place.base.parsed_schema.fields}
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
        "source": [os.path.normpath(path) for path in call.paths],
        "unit_size": settings.unit_size,
        **({} if call.shuffle is None else {"shuffle": call.shuffle}),
        **plan.options,
    }


def _summary(place: Target, done: Published, plan: SourcePlan, skipped: dict[str, int]) -> PackSummary:
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
        num_rejects=done.num_rejects,
        num_tokens=_num_tokens(manifest, entries, plan.tokens),
        note=plan.note,
    )


def _num_tokens(manifest: Manifest, entries: Sequence[ShardEntry], name: str) -> int:
    """Returns the items of the stream of tokens; 0 where there is none, or they lie in the records."""
    names = [field.name for field in manifest.parsed_schema.stream_fields]
    return sum(entry.num_items[names.index(name)] for entry in entries) if name in names else 0
