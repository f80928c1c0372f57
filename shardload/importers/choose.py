"""Which source a path is."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shardload.errors import PackError
from shardload.importers.base import Source
from shardload.importers.files import examine_file, scan_folder, shown
from shardload.importers.folder import FolderSource
from shardload.importers.jsonl import JSONL_SUFFIXES, JsonlSource, is_jsonl
from shardload.importers.patterns import Selection
from shardload.importers.tar import TAR_SUFFIXES, TarSource, is_tar
from shardload.importers.tokens import TOKEN_FIELD, Tokenization, TokenSource

_TEXT_KEYS: dict[type[Source], str] = {FolderSource: "text", JsonlSource: "text", TarSource: "txt"}
"""What the field of the text is called, by source."""
_MAKERS: dict[str, type[JsonlSource] | type[TarSource]] = {
    "JSON Lines files": JsonlSource,
    "WebDataset tars": TarSource,
}
"""Sources whose files hold many samples each."""


def open_source(
    paths: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenization: Tokenization | None = None,
    token_field: str = "",
) -> Source:
    """Returns the source that paths name: a folder, or one or several JSON Lines files or WebDataset tars.

    A folder whose selected files all are JSON Lines files is a JSON Lines source, with the files in the order of their
    paths, and the same holds for tars; every other folder is a source of whole files. Where texts are made tokens, all
    other files are documents, plain or compressed, also those that are named one by one.

    Args:
        paths: a folder, or files in the order in which they are to be packed.
        include: patterns that select files of a folder; see `Selection`.
        exclude: patterns of files and folders that are left out.
        tokenization: how texts become tokens, if they do.
        token_field: name of the field of tokens; nothing for `tokens`.

    Raises:
        PackError: there is nothing to pack there, or it cannot be made tokens.
        ValueError: patterns are given for files, or are none.
    """
    source = _open(paths, include, exclude, documents=tokenization is not None)
    if tokenization is None:
        if token_field:
            raise PackError(
                f"{source.location} gives no tokens that could be named {token_field!r}: give a tokenizer too"
            )
        return source
    text_key = tokenization.text_key or _TEXT_KEYS[type(source)]
    if isinstance(source, FolderSource) and text_key != "text":
        raise PackError(
            f"{source.location} holds whole texts, which have no field {text_key!r}: leave out the text key"
        )
    return TokenSource(source, text_key, tokenization, token_field or TOKEN_FIELD)


def _open(paths: Sequence[str], include: Sequence[str], exclude: Sequence[str], documents: bool) -> Source:
    selection = Selection(include, exclude)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return _open_folder(paths[0], selection, documents)
    if include or exclude:
        raise ValueError("include and exclude patterns select files of a folder, but the source is given as files")
    if not paths:
        raise ValueError("there is no source")
    files = [examine_file("", path) for path in paths]
    kinds = {path: _kind(path) for path in paths}
    for path, kind in kinds.items():
        if not kind and not documents:
            raise PackError(
                f"{shown(path)} is not a source: give a folder, or JSON Lines files ({', '.join(JSONL_SUFFIXES)}), or "
                f"WebDataset tars ({', '.join(TAR_SUFFIXES)}); single texts are packed as tokens, with --tokenizer"
            )
    if len(names := sorted({kind or "whole texts" for kind in kinds.values()})) > 1:
        raise PackError(f"{shown(', '.join(paths))}: {' and '.join(names)} are different sources")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise PackError("the same file is given twice as a source")
    location, make = ", ".join(paths), _MAKERS.get(names[0])
    if make is None:
        return FolderSource(location, os.getcwd(), "", files, {}, documents=True)
    return make(location, os.getcwd(), "", files, {})


def _kind(path: str) -> str:
    """Returns what a file is called that holds many samples, or nothing."""
    return "JSON Lines files" if is_jsonl(path) else "WebDataset tars" if is_tar(path) else ""


def _open_folder(location: str, selection: Selection, documents: bool) -> Source:
    scan = scan_folder(location, selection)
    skipped = dict(sorted(scan.skipped.items()))
    if not scan.files:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise PackError(f"{location} holds no file to pack" + (f"; left out: {left_out}" if left_out else ""))
    facts = location, os.path.abspath(location), location, scan.files, skipped
    for kind, make in _MAKERS.items():
        others = [file for file in scan.files if _kind(file.path) != kind]
        if not others:
            return make(*facts)
        if len(others) < len(scan.files):
            one = next(file for file in scan.files if _kind(file.path) == kind)
            raise PackError(
                f"{location} holds {len(scan.files) - len(others)} {kind} and {len(others)} others (such as "
                f"{others[0].path}): choose with include patterns, such as --include '*{_suffix(one.path)}'"
            )
    return FolderSource(*facts, documents=documents)


def _suffix(path: str) -> str:
    return next(suffix for suffix in (*JSONL_SUFFIXES, *TAR_SUFFIXES) if path.lower().endswith(suffix))
