"""Reading once more what did not pass its check: bytes may have been damaged on their way, or in a copy, and not where they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from shardload.errors import FormatError, UnsupportedVersionError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_MAX_PLACES = 16
"""Of one call; more damage than this is not from the way."""


class Reads(Protocol):
    """Something whose methods read files."""

    def discard(self, error: FormatError) -> bool:
        """Drops the copies of what an error says is damaged; returns whether another read may give other bytes."""
        ...


Reader = TypeVar("Reader", bound=Reads)


def read_anew(
    method: Callable[Concatenate[Reader, Arguments], Result],
) -> Callable[Concatenate[Reader, Arguments], Result]:
    """Makes a method that reads do so once more for each place that was found damaged, where that may give other bytes."""

    @functools.wraps(method)
    def reads(self: Reader, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        seen: set[tuple[str | None, int | None, int | None]] = set()
        while True:
            try:
                return method(self, *args, **kwargs)
            except UnsupportedVersionError:
                raise
            except FormatError as error:
                place = error.shard, error.start, error.stop
                if place in seen:
                    error.message += "; it was read twice, from where it is stored, so that it is damaged there"
                    raise
                if len(seen) == _MAX_PLACES or not self.discard(error):
                    raise
                seen.add(place)

    return cast(Callable[Concatenate[Reader, Arguments], Result], reads)
