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


def open_source(paths: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Source:
    """Returns the source that paths name: a folder, or one or several JSON Lines files or WebDataset tars.

    A folder whose selected files all are JSON Lines files is a JSON Lines source, with the files in the order of their
    paths, and the same holds for tars; every other folder is a source of whole files.

    Args:
        paths: a folder, or files in the order in which they are to be packed.
        include: patterns that select files of a folder; see `Selection`.
        exclude: patterns of files and folders that are left out.

    Raises:
        PackError: there is nothing to pack there.
        ValueError: patterns are given for files, or are none.
    """
    selection = Selection(include, exclude)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return _open_folder(paths[0], selection)
    if include or exclude:
        raise ValueError("include and exclude patterns select files of a folder, but the source is given as files")
    if not paths:
        raise ValueError("there is no source")
    files = [examine_file("", path) for path in paths]
    for path in paths:
        if not is_jsonl(path) and not is_tar(path):
            raise PackError(
                f"{shown(path)} is not a source: give a folder, or JSON Lines files ({', '.join(JSONL_SUFFIXES)}), or "
                f"WebDataset tars ({', '.join(TAR_SUFFIXES)})"
            )
    if len({is_tar(path) for path in paths}) > 1:
        raise PackError(f"{shown(', '.join(paths))}: JSON Lines files and WebDataset tars are different sources")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise PackError("the same file is given twice as a source")
    make = TarSource if is_tar(paths[0]) else JsonlSource
    return make(", ".join(paths), os.getcwd(), "", files, {})


def _open_folder(location: str, selection: Selection) -> Source:
    scan = scan_folder(location, selection)
    skipped = dict(sorted(scan.skipped.items()))
    if not scan.files:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise PackError(f"{location} holds no file to pack" + (f"; left out: {left_out}" if left_out else ""))
    for kind, is_kind, make in (("JSON Lines files", is_jsonl, JsonlSource), ("WebDataset tars", is_tar, TarSource)):
        others = [file for file in scan.files if not is_kind(file.path)]
        if not others:
            return make(location, os.path.abspath(location), location, scan.files, skipped)
        if len(others) < len(scan.files):
            one = next(file for file in scan.files if is_kind(file.path))
            raise PackError(
                f"{location} holds {len(scan.files) - len(others)} {kind} and {len(others)} others (such as "
                f"{others[0].path}): choose with include patterns, such as --include '*{_suffix(one.path)}'"
            )
    return FolderSource(location, scan.files, skipped)


def _suffix(path: str) -> str:
    return next(suffix for suffix in (*JSONL_SUFFIXES, *TAR_SUFFIXES) if path.lower().endswith(suffix))
