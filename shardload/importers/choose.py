"""Which source a path is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from shardload.errors import PackError
from shardload.importers.base import Source, SourceFile
from shardload.importers.columnar import ARROW_SUFFIXES, PARQUET_SUFFIXES, ColumnarSource
from shardload.importers.delimited import CSV_SUFFIXES, DelimitedSource
from shardload.importers.files import examine_file, scan_folder, shown
from shardload.importers.folder import FolderSource
from shardload.importers.hugging_face import saved_files
from shardload.importers.jsonl import JSONL_SUFFIXES, JsonlSource
from shardload.importers.mds import MdsSource, is_mds
from shardload.importers.megatron import DATA_SUFFIX, INDEX_SUFFIX, MegatronSource, Pair, data_of, index_of
from shardload.importers.megatron_index import has_magic
from shardload.importers.patterns import Selection
from shardload.importers.tar import TAR_SUFFIXES, TarSource
from shardload.importers.tokens import TOKEN_FIELD, Tokenization, TokenSource

_TEXT_KEYS: dict[type[Source], str] = {TarSource: "txt"}
"""What the field of the text is called, by source, where it is not `text`."""
_MAKERS: dict[str, type[JsonlSource] | type[TarSource] | type[ColumnarSource] | type[DelimitedSource]] = {
    "JSON Lines files": JsonlSource,
    "WebDataset tars": TarSource,
    "Parquet files": ColumnarSource,
    "Arrow files": ColumnarSource,
    "CSV files": DelimitedSource,
}
"""Sources whose files hold many samples each."""
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "JSON Lines files": JSONL_SUFFIXES,
    "WebDataset tars": TAR_SUFFIXES,
    "Parquet files": PARQUET_SUFFIXES,
    "Arrow files": ARROW_SUFFIXES,
    "CSV files": CSV_SUFFIXES,
}
_PAIRS = "Megatron pairs"


def open_source(
    paths: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenization: Tokenization | None = None,
    token_field: str = "",
    prepare: Callable[[Source], Source] | None = None,
) -> Source:
    """Returns the source that paths name: a folder, or files of one kind: JSON Lines, tars, Parquet, Arrow, Megatron.

    A folder whose selected files all are JSON Lines files is a JSON Lines source, with the files in the order of their
    paths, and the same holds for tars and for Megatron pairs, which are named by their indexes; every other folder is a
    source of whole files. Where texts are made tokens, all other files are documents, plain or compressed, also those that
    are named one by one.

    Args:
        paths: a folder, or files in the order in which they are to be packed.
        include: patterns that select files of a folder; see `Selection`.
        exclude: patterns of files and folders that are left out.
        tokenization: how texts become tokens, if they do.
        token_field: name of the field of tokens; nothing for `tokens`.
        prepare: makes of the source one whose samples are changed, before their texts become tokens.

    Raises:
        PackError: there is nothing to pack there, or it cannot be made tokens.
        ValueError: patterns are given for files, or are none.
    """
    field = token_field or TOKEN_FIELD
    source = _open(paths, Selection(include, exclude), field, documents=tokenization is not None)
    prepared = source if prepare is None else prepare(source)
    if isinstance(source, MegatronSource):
        if tokenization is not None:
            raise PackError(f"{source.location} holds tokens already: leave out the tokenizer")
        return prepared
    if tokenization is None:
        if token_field:
            raise PackError(
                f"{source.location} gives no tokens that could be named {token_field!r}: give a tokenizer too"
            )
        return prepared
    text_key = tokenization.text_key or _TEXT_KEYS.get(type(source), "text")
    if isinstance(source, FolderSource) and text_key != "text":
        raise PackError(
            f"{source.location} holds whole texts, which have no field {text_key!r}: leave out the text key"
        )
    return TokenSource(prepared, text_key, tokenization, field)


def _open(paths: Sequence[str], selection: Selection, token_field: str, documents: bool) -> Source:
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return _open_folder(paths[0], selection, token_field, documents)
    if not selection.takes_all:
        raise ValueError("include and exclude patterns select files of a folder, but the source is given as files")
    if not paths:
        raise ValueError("there is no source")
    files = [examine_file("", path) for path in paths]
    kinds = {path: _PAIRS if index_of(path) == path else _kind(path) for path in paths}
    for path, kind in kinds.items():
        if not kind and not documents:
            raise PackError(
                f"{shown(path)} is not a source: give a folder, or "
                + ", or ".join(f"{kind} ({', '.join(suffixes)})" for kind, suffixes in _SUFFIXES.items())
                + f", or Megatron pairs ({INDEX_SUFFIX}, {DATA_SUFFIX}); single texts are packed as tokens, with --tokenizer"
            )
    if len(names := sorted({kind or "whole texts" for kind in kinds.values()})) > 1:
        raise PackError(f"{shown(', '.join(paths))}: {' and '.join(names)} are different sources")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise PackError("the same file is given twice as a source")
    location, make = ", ".join(paths), _MAKERS.get(names[0])
    if names[0] == _PAIRS:
        pairs = [Pair(file, examine_file("", data_of(file.path))) for file in files]
        return MegatronSource(location, os.getcwd(), "", pairs, {}, token_field)
    if make is None:
        return FolderSource(location, os.getcwd(), "", files, {}, documents=True)
    return make(location, os.getcwd(), "", files, {})


def _kind(path: str) -> str:
    """Returns what a file is called that holds many samples by its suffix, or nothing."""
    return next((kind for kind, suffixes in _SUFFIXES.items() if path.lower().endswith(suffixes)), "")


def _open_folder(location: str, selection: Selection, token_field: str, documents: bool) -> Source:
    if selection.takes_all and (saved := saved_files(location)):
        files = [examine_file(location, name) for name in saved]
        return ColumnarSource(location, os.path.abspath(location), location, files, {})
    if selection.takes_all and is_mds(location):
        return MdsSource(location)
    scan = scan_folder(location, selection)
    skipped = dict(sorted(scan.skipped.items()))
    if not scan.files:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise PackError(f"{location} holds no file to pack" + (f"; left out: {left_out}" if left_out else ""))
    root = os.path.abspath(location)
    if pairs := _pairs(location, scan.files):
        in_pairs = {file.path for pair in pairs for file in (pair.index, pair.data)}
        others = [file for file in scan.files if file.path not in in_pairs]
        if others:
            raise _mixed(location, f"{len(pairs)} Megatron pairs", others, (INDEX_SUFFIX, DATA_SUFFIX))
        return MegatronSource(location, root, location, pairs, skipped, token_field)
    for kind, make in _MAKERS.items():
        others = [file for file in scan.files if _kind(file.path) != kind]
        if not others:
            return make(location, root, location, scan.files, skipped)
        # Beside others a CSV file is one of many texts.
        if len(others) < len(scan.files) and make is not DelimitedSource:
            one = next(file for file in scan.files if _kind(file.path) == kind)
            raise _mixed(location, f"{len(scan.files) - len(others)} {kind}", others, (_suffix(one.path),))
    return FolderSource(location, root, location, scan.files, skipped, documents=documents)


def _mixed(location: str, some: str, others: Sequence[SourceFile], suffixes: Sequence[str]) -> PackError:
    patterns = " ".join(f"--include '*{suffix}'" for suffix in suffixes)
    return PackError(
        f"{location} holds {some} and {len(others)} others (such as {others[0].path}): choose with include patterns, such as "
        f"{patterns}"
    )


def _pairs(location: str, files: Sequence[SourceFile]) -> list[Pair]:
    """Returns the Megatron pairs among the files of a folder."""
    by_path = {file.path: file for file in files}
    pairs = []
    for file in files:
        if not file.path.endswith(INDEX_SUFFIX) or not has_magic(os.path.join(location, file.path)):
            continue
        data = by_path.get(data_of(file.path))
        if data is None:
            raise PackError(
                f"{os.path.join(location, file.path)} is a Megatron index, but {data_of(file.path)} is not there or was not "
                "selected"
            )
        pairs.append(Pair(file, data))
    return pairs


def _suffix(path: str) -> str:
    return next(suffix for suffix in _SUFFIXES[_kind(path)] if path.lower().endswith(suffix))
