"""Which source a path is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.errors import PackError
from shardload.importers.base import Source, SourceFile
from shardload.importers.columnar import ARROW_SUFFIXES, PARQUET_SUFFIXES, ColumnarSource
from shardload.importers.delimited import CSV_SUFFIXES, DelimitedSource
from shardload.importers.files import Root, examine_file, is_there, scan_folder, scan_store, shown
from shardload.importers.folder import FolderSource
from shardload.importers.hugging_face import saved_files
from shardload.importers.jsonl import JSONL_SUFFIXES, JsonlSource
from shardload.importers.mds import MdsSource, is_mds
from shardload.importers.megatron import (
    DATA_SUFFIX,
    INDEX_SUFFIX,
    MegatronSource,
    Pair,
    data_of,
    index_of,
    named_by_index,
)
from shardload.importers.megatron_index import has_magic
from shardload.importers.patterns import Selection
from shardload.importers.tar import TAR_SUFFIXES, TarSource
from shardload.importers.tokens import TOKEN_FIELD, Tokenization, TokenSource
from shardload.storage.sources import SourceStore, is_far

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
    storage_options: Mapping[str, Any] | None = None,
    prepare: Callable[[Source], Source] | None = None,
) -> Source:
    """Returns the source that paths or URLs name: a folder, or files of one kind: JSON Lines, tars, Parquet, Arrow, Megatron.

    A folder whose selected files all are JSON Lines files is a JSON Lines source, with the files in the order of their
    paths, and the same holds for tars and for Megatron pairs, which are named by their indexes; every other folder is a
    source of whole files. Where texts are made tokens, all other files are documents, plain or compressed, also those that
    are named one by one.

    Args:
        paths: a folder, or files in the order in which they are to be packed; or URLs of these.
        include: patterns that select files of a folder; see `Selection`.
        exclude: patterns of files and folders that are left out.
        tokenization: how texts become tokens, if they do.
        token_field: name of the field of tokens; nothing for `tokens`.
        storage_options: options of fsspec for URLs.
        prepare: makes of the source one whose samples are changed, before their texts become tokens.

    Raises:
        PackError: there is nothing to pack there, or it cannot be made tokens.
        ValueError: patterns are given for files, or are none.
    """
    field = token_field or TOKEN_FIELD
    opening = _Opening(Selection(include, exclude), field, documents=tokenization is not None)
    source = opening.open(paths, dict(storage_options or {}))
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


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a source is chosen."""

    selection: Selection
    token_field: str
    documents: bool
    """Whether other files are taken for texts."""

    def open(self, paths: Sequence[str], options: Mapping[str, Any]) -> Source:
        """Returns the source that paths or URLs name."""
        far = [path for path in paths if is_far(path)]
        if not far and options:
            raise ValueError(f"storage_options are for URLs, such as s3://bucket/data; {shown(paths[0])} is a path")
        if far and len(far) < len(paths):
            raise PackError("some sources are URLs and some are paths: pack them apart")
        if far:
            if len(far) == 1 and (folder := _folder_at(far[0], options)) is not None:
                return self._folder(folder.shown, folder)
            store = SourceStore(far, options)
            return self._files(named_by_index(list(store.urls), store), len(store.urls) < len(far), store)
        if len(paths) == 1 and os.path.isdir(paths[0]):
            return self._folder(paths[0], os.path.abspath(paths[0]))
        return self._files(paths, len({os.path.realpath(path) for path in paths}) < len(paths), "")

    def _files(self, paths: Sequence[str], twice: bool, root: Root) -> Source:
        if not self.selection.takes_all:
            raise ValueError("include and exclude patterns select files of a folder, but the source is given as files")
        if not paths:
            raise ValueError("there is no source")
        files = [examine_file(root, path) for path in paths]
        kinds = {path: _PAIRS if index_of(path, root) == path else _kind(path) for path in paths}
        for path, kind in kinds.items():
            if not kind and not self.documents:
                raise PackError(
                    f"{shown(path)} is not a source: give a folder, or "
                    + ", or ".join(f"{kind} ({', '.join(suffixes)})" for kind, suffixes in _SUFFIXES.items())
                    + f", or Megatron pairs ({INDEX_SUFFIX}, {DATA_SUFFIX}); single texts are packed as tokens, with --tokenizer"
                )
        if len(names := sorted({kind or "whole texts" for kind in kinds.values()})) > 1:
            raise PackError(f"{shown(', '.join(paths))}: {' and '.join(names)} are different sources")
        if twice:
            raise PackError("the same file is given twice as a source")
        location, make = ", ".join(paths), _MAKERS.get(names[0])
        if names[0] == _PAIRS:
            pairs = [Pair(file, examine_file(root, data_of(file.path))) for file in files]
            return MegatronSource(location, root or os.getcwd(), "", pairs, {}, self.token_field)
        if make is None:
            return FolderSource(location, root or os.getcwd(), "", files, {}, documents=True)
        return make(location, root or os.getcwd(), "", files, {})

    def _folder(self, location: str, root: Root) -> Source:
        selection = self.selection
        if selection.takes_all and (saved := saved_files(root, location)):
            files = [examine_file(root, name, location) for name in saved]
            return ColumnarSource(location, root, location, files, {})
        if selection.takes_all and is_mds(root):
            return MdsSource(root, location)
        scan = scan_store(root, selection) if isinstance(root, SourceStore) else scan_folder(location, selection)
        skipped = dict(sorted(scan.skipped.items()))
        if not scan.files:
            left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
            raise PackError(f"{location} holds no file to pack" + (f"; left out: {left_out}" if left_out else ""))
        if pairs := _pairs(root, location, scan.files):
            in_pairs = {file.path for pair in pairs for file in (pair.index, pair.data)}
            others = [file for file in scan.files if file.path not in in_pairs]
            if others:
                raise _mixed(location, f"{len(pairs)} Megatron pairs", others, (INDEX_SUFFIX, DATA_SUFFIX))
            return MegatronSource(location, root, location, pairs, skipped, self.token_field)
        for kind, make in _MAKERS.items():
            others = [file for file in scan.files if _kind(file.path) != kind]
            if not others:
                return make(location, root, location, scan.files, skipped)
            # Beside others a CSV file is one of many texts.
            if len(others) < len(scan.files) and make is not DelimitedSource:
                one = next(file for file in scan.files if _kind(file.path) == kind)
                raise _mixed(location, f"{len(scan.files) - len(others)} {kind}", others, (_suffix(one.path),))
        return FolderSource(location, root, location, scan.files, skipped, documents=self.documents)


def _folder_at(url: str, options: Mapping[str, Any]) -> SourceStore | None:
    """Returns the folder that a URL names, or None if it names a file.

    Raises:
        PackError: there is nothing, or the store does not tell.
    """
    folder = SourceStore([url], options, folder=True)
    if url.partition(":")[0].lower() in ("http", "https"):
        if url.endswith("/"):
            raise PackError(f"{folder.shown} cannot be listed, as HTTP has no listings: give the URLs of its files")
        return None
    # Of chained URLs the first says which folder of the others it is: zip://::s3://bucket/a.zip.
    if not url.endswith("/") and not url.partition("::")[0].endswith("/"):
        store = SourceStore([url], options)
        if is_there(store, next(iter(store.urls))):
            return None
    if not scan_store(folder, Selection()).files:
        raise PackError(f"{folder.shown} does not exist, or holds no file")
    return folder


def _kind(path: str) -> str:
    """Returns what a file is called that holds many samples by its suffix, or nothing."""
    return next((kind for kind, suffixes in _SUFFIXES.items() if path.lower().endswith(suffixes)), "")


def _mixed(location: str, some: str, others: Sequence[SourceFile], suffixes: Sequence[str]) -> PackError:
    patterns = " ".join(f"--include '*{suffix}'" for suffix in suffixes)
    return PackError(
        f"{location} holds {some} and {len(others)} others (such as {others[0].path}): choose with include patterns, such as "
        f"{patterns}"
    )


def _pairs(root: Root, location: str, files: Sequence[SourceFile]) -> list[Pair]:
    """Returns the Megatron pairs among the files of a folder."""
    by_path = {file.path: file for file in files}
    pairs = []
    for file in files:
        if not file.path.endswith(INDEX_SUFFIX) or not has_magic(root, file.path):
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
