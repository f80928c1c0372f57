"""Datasets of the Hugging Face hub by name: its package `datasets` loads them, and the Arrow files that it keeps are the source."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from shardload.errors import PackError

PREFIX = "hf:"

# A part of a split would have the files of the whole.
_NAME = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<split>[\w.-]+))?")
# From this one on it never runs code that comes with a dataset.
_FIRST_VERSION = 4


def named_by_hub(paths: Sequence[str]) -> list[str]:
    """Returns paths with the files of each dataset in place of its name, `hf:NAME`, `hf:NAME@SPLIT` or `hf:NAME:CONFIG@SPLIT`.

    Raises:
        PackError: the name is none, the package is missing or does not find the dataset, or no split is named of several.
    """
    found: list[str] = []
    for path in paths:
        found += _files(path) if path.startswith(PREFIX) and not os.path.lexists(path) else [path]
    return found


def _files(text: str) -> list[str]:
    match = _NAME.fullmatch(text)
    if match is None:
        raise PackError(f"{text} names no dataset of the hub: give hf:NAME@SPLIT, or hf:NAME:CONFIG@SPLIT")
    loaded = _load(text, match["name"], match["config"], match["split"])
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise PackError(
                f"{text} has the splits {', '.join(map(str, loaded)):.300}: choose one, such as {text}@{next(iter(loaded))}"
            )
        [loaded] = loaded.values()
    files = [str(entry["filename"]) for entry in loaded.cache_files]
    if not files or getattr(loaded, "_indices", None) is not None:
        raise PackError(
            f"{text}: the package datasets keeps no files of it that could be packed: save it with save_to_disk"
        )
    return files


def _load(text: str, name: str, config: str | None, split: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise PackError(
            f"{text} is loaded by the package datasets, which is not installed: pip install 'shardload[datasets]'"
        ) from None
    if int(datasets.__version__.partition(".")[0]) < _FIRST_VERSION:
        raise PackError(
            f"{text}: datasets {datasets.__version__} may run code of a dataset: pip install 'shardload[datasets]'"
        )
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:
        # Whatever its many backends raise: the dataset was not loaded.
        raise PackError(f"{text} could not be loaded by datasets: {' '.join(str(error).split()):.400}") from None
