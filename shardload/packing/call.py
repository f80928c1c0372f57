"""What one call of `pack` asks for, checked before anything is touched."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.codecs import make_codec
from shardload.codecs.dictionary import DictionaryMode, check_dictionary
from shardload.errors import PackError
from shardload.format.schema import parse_schema
from shardload.importers import MAX_SEED, Token, Tokenization, named_by_hub, named_by_index
from shardload.packing.events import EventLog
from shardload.packing.progress import Report
from shardload.packing.unit import OnError
from shardload.preparation import Function, Step, function_step
from shardload.preparation.functions import FunctionStep
from shardload.preparation.named import named_step
from shardload.quantities import parse_bytes
from shardload.storage.secrets import shown
from shardload.storage.sources import is_far, local_path
from shardload.writer.describe import Types


@dataclass(frozen=True, slots=True)
class Settings:
    """How to pack, checked."""

    types: Types | None
    compression: str
    dictionary: DictionaryMode
    key: str
    shard_size: int
    unit_size: int | None
    num_workers: int | None
    """What was asked for."""

    @property
    def wanted_workers(self) -> int:
        """Processes that are wanted: one a core, but one in a daemonic process, which may start no others."""
        daemonic = multiprocessing.current_process().daemon
        return self.num_workers or (1 if daemonic else len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to the samples of the source."""

    steps: tuple[Step, ...]
    timeout_seconds: float | None = None
    """Longest time for a sample in all steps; None for any."""

    @property
    def functions(self) -> bool:
        """Whether functions of the user are among the steps, which run in processes of their own."""
        return any(isinstance(step, FunctionStep) for step in self.steps)

    def of_field(self, name: str, others: bool) -> Preparation:
        """Returns the built-in steps on one field, or all others."""
        steps = tuple(step for step in self.steps if (getattr(step, "field", None) == name) != others)
        functions = any(isinstance(step, FunctionStep) for step in steps)
        return Preparation(steps, self.timeout_seconds if functions else None)


@dataclass(frozen=True, slots=True)
class Call:
    """What one call asks for."""

    paths: list[str]
    include: list[str]
    exclude: list[str]
    settings: Settings
    tokenization: Tokenization | None
    token_field: str
    preparation: Preparation
    shuffle: int | None
    """Seed of the order that is written; None for that of the source."""
    dedup: tuple[str, ...] | None
    """Fields whose content tells whether a sample is a duplicate, none of them for all; None where duplicates stay."""
    resume: bool
    on_error: OnError
    max_rejects: int | None
    progress: Report | None
    storage_options: Mapping[str, Any]
    """Of fsspec, for URLs; they go nowhere but to the workers."""
    log: EventLog | None = None


def listed(patterns: Sequence[str] | str) -> list[str]:
    """Returns patterns as a list; a single one may be text."""
    return [patterns] if isinstance(patterns, str) else list(patterns)


def check_policy(replace: bool, append: bool, key: str, on_error: str, max_rejects: int | None) -> None:
    """Refuses what contradicts itself, and a treatment of errors that there is not."""
    if replace and append:
        raise ValueError("replace and append exclude each other")
    if append and key:
        raise ValueError("the key is that of the dataset; it cannot be given in an append")
    if on_error not in ("raise", "reject"):
        raise ValueError(f"on_error must be 'raise' or 'reject', not {on_error!r}")
    if max_rejects is not None and on_error != "reject":
        raise ValueError("max_rejects goes with on_error='reject'")
    if max_rejects is not None and max_rejects < 0:
        raise ValueError(f"max_rejects must be at least 0, not {max_rejects}")


def check_seed(shuffle: int | None) -> None:
    """Refuses what is no seed of a shuffle."""
    if shuffle is not None and (isinstance(shuffle, bool) or not isinstance(shuffle, int)):
        raise ValueError(f"shuffle must be a seed, an integer, not {shuffle!r}")
    if shuffle is not None and not 0 <= shuffle <= MAX_SEED:
        raise ValueError(f"shuffle must be 0 to {MAX_SEED}, not {shuffle}")


def checked_dedup(dedup: bool | str | Sequence[str]) -> tuple[str, ...] | None:
    """Returns the fields by which samples are told apart; none for all of them, None where duplicates stay."""
    if isinstance(dedup, bool):
        return () if dedup else None
    names = tuple(dict.fromkeys(listed(dedup)))
    if not names or not all(names):
        raise ValueError(f"dedup must be True for all fields, or names of fields, not {dedup!r}")
    return names


def checked_settings(
    types: Types | None,
    compression: str,
    dictionary: str,
    key: str,
    shard_size: int | str,
    unit_size: int | str | None,
    workers: int | None,
) -> Settings:
    """Returns how to pack.

    Raises:
        ValueError: an argument cannot be.
        FormatError: schema or compression are not of the format.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    make_codec(compression)
    if types is not None:
        parse_schema(types, compression.partition(":")[0])
    return Settings(
        types=types,
        compression=compression,
        dictionary=check_dictionary(dictionary, compression),
        key=key,
        shard_size=parse_bytes(shard_size, "shard_size"),
        unit_size=None if unit_size is None else parse_bytes(unit_size, "unit_size"),
        num_workers=workers,
    )


def checked_tokenization(
    tokenizer: str | os.PathLike[str] | None,
    append_token: Token | None,
    prepend_token: Token | None,
    text_key: str | None,
) -> Tokenization | None:
    """Returns how texts become tokens, or None where they stay texts.

    Raises:
        ValueError: an argument cannot be, or says something of a tokenizer where there is none.
    """
    tokens = {"append_token": append_token, "prepend_token": prepend_token}
    given = [name for name, value in {**tokens, "text_key": text_key}.items() if value is not None]
    if tokenizer is None:
        if given:
            raise ValueError(f"{given[0]} goes with tokenizer")
        return None
    for name, token in tokens.items():
        if token is not None and (isinstance(token, bool) or not isinstance(token, str | int)):
            raise ValueError(f"{name} must be the text of a token or its id, not {token!r}")
    return Tokenization(os.fspath(tokenizer), append_token, prepend_token, text_key or "")


def named_sources(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns the paths and URLs of sources: files of the hub by their paths, each Megatron pair by its index."""
    paths = [local_path(os.fspath(path)) for path in given]
    return paths if any(map(is_far, paths)) else named_by_index(named_by_hub(paths))


def checked_preparation(
    maps: Sequence[Function] | Function | None,
    filters: Sequence[Function] | Function | None,
    names: Sequence[str] | str,
    timeout_seconds: float | None,
) -> Preparation:
    """Returns what is done to the samples: all maps, then all filters, then the steps that are named.

    Raises:
        ValueError: a function cannot be imported elsewhere, there is no such step, or the time is none.
        ImportError: a step needs a package that is not installed.
    """
    steps: list[Step] = [function_step("map", one) for one in _functions(maps)]
    steps += [function_step("filter", one) for one in _functions(filters)]
    steps += [named_step(one) for one in listed(names)]
    if timeout_seconds is not None and not timeout_seconds > 0:
        raise ValueError(f"map_timeout must be above 0 seconds, not {timeout_seconds!r}")
    preparation = Preparation(tuple(steps), timeout_seconds)
    if timeout_seconds is not None and not preparation.functions:
        raise ValueError("map_timeout goes with map or filter")
    return preparation


def _functions(given: Sequence[Function] | Function | None) -> Sequence[Function]:
    if given is None:
        return ()
    return given if isinstance(given, list | tuple) else (given,)


def check_places(paths: Sequence[str], target: str, staging: str = "") -> None:
    """Refuses sources that are not there, and a source and a target inside of each other.

    Args:
        paths: the sources.
        target: a directory, or a URL.
        staging: the directory on the disk that is written to for a URL.
    """
    there = os.path.realpath(staging or target)
    for path in paths:
        if is_far(path):
            here, place = (f"{shown(location).rstrip('/')}/" for location in (path, target))
            if staging and (here.startswith(place) or place.startswith(here)):
                raise PackError(
                    f"source and target lie inside of each other ({here} and {place}): choose another target"
                )
            continue
        if not os.path.lexists(path):
            raise PackError(f"{path} does not exist")
        here = os.path.realpath(path)
        if here == there:
            raise PackError(f"{target} is the source itself: choose another target")
        shared = os.path.commonpath([here, there])
        if shared in (here, there):
            inner, outer = ("target", "source") if shared == here else ("source", "target")
            raise PackError(f"the {inner} lies inside the {outer} ({path} and {target}): choose another target")
