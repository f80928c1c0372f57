"""Damaged bytes that come from elsewhere are fetched once more before they are called damaged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from shardload.errors import FormatError, UnsupportedVersionError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MOST_RANGES = 64
"""Damaged ranges of one call that are fetched once more."""


class Rereading(Protocol):
    """Whose methods may be carried out again."""

    def discard(self, error: FormatError) -> bool:
        """Drops copies of the bytes that an error names; returns whether another read may give others."""
        ...


Owner = TypeVar("Owner", bound=Rereading)


def rereads(
    method: Callable[Concatenate[Owner, Parameters], Result],
) -> Callable[Concatenate[Owner, Parameters], Result]:
    """Carries a method out again when bytes are damaged that may have been so only on their way, or as a copy.

    What is found damaged twice is so where it is stored: then the error says that.
    """

    @functools.wraps(method)
    def again(owner: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        tried: set[tuple[Any, ...]] = set()
        while True:
            try:
                return method(owner, *args, **kwargs)
            except UnsupportedVersionError:
                raise
            except FormatError as error:
                place = error.shard, error.start, error.stop
                if place in tried:
                    error.message += (
                        "; fetched again with the same result: the stored object differs from what was written"
                    )
                    raise
                if error.shard is None or len(tried) == _MOST_RANGES or not owner.discard(error):
                    raise
                tried.add(place)

    return again
