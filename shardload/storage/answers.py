"""What went wrong with one request to a store, told so that a layer which tries again can judge it."""

from __future__ import annotations

import email.utils
import time
from typing import Any, Literal

from shardload.errors import StorageError

Kind = Literal["transient", "throttled", "stalled", "unreachable", "wrong", "access", "missing", "changed", "refused"]
"""`transient`: may go well next time (a connection that broke, 5xx). `throttled`: asks for a pause (429, 503). `stalled`: no
answer, or no more of it, in time. `unreachable`: no connection, or no address for the name, so that the request did not arrive.
`wrong`: an answer that does not answer the request, such as another range, a length of its own, or a page about an error.
`access`: refused (401, 403). `missing`: there is no such object. `changed`: it is another one than was opened. `refused`: anything
else, which will not go better next time."""

_MISSING = {404, 410}
_ACCESS = {401, 403, 407}
_THROTTLED = {429, 503}
_TRANSIENT = {408, 425, 500, 502, 504, 509, 520, 521, 522, 523, 524}
_CHANGED = {412, 416}
"""A range that lies within the known length is only outside of another object."""


class AnswerError(StorageError):
    """One request to a store failed.

    Attributes:
        kind: what kind of failure it was.
        retry_after_seconds: the pause that the store asked for; None if it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind = "transient",
        retry_after_seconds: float | None = None,
        dataset: str | None = None,
        shard: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        sample_id: int | None = None,
    ) -> None:
        super().__init__(message, dataset=dataset, shard=shard, start=start, stop=stop, sample_id=sample_id)
        self.kind: Kind = kind
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = super().__reduce__()
        told = {"kind": self.kind, "retry_after_seconds": self.retry_after_seconds}
        return make, arguments, (state or {}) | told


class UnavailableError(AnswerError):
    """A store gave no right answer in time, or by as many attempts as there are: no other file of it would fare better."""


class RefusalError(Exception):
    """The same within a way of fetching, which does not know the place: becomes an `AnswerError`."""

    def __init__(self, kind: Kind, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


def kind_of_status(status: int) -> Kind:
    """Returns what kind of failure an HTTP status is."""
    kinds: dict[Kind, set[int]] = {
        "missing": _MISSING,
        "access": _ACCESS,
        "throttled": _THROTTLED,
        "transient": _TRANSIENT,
        "changed": _CHANGED,
    }
    return next((kind for kind, statuses in kinds.items() if status in statuses), "refused")


def refused(status: int, retry_after: str | None = None) -> RefusalError:
    """Returns the failure of an HTTP status, with the text of the Retry-After header if there was one."""
    words = {
        "missing": "there is no such object",
        "access": "access is refused",
        "throttled": "the store asks for fewer requests",
        "transient": "the store failed",
        "changed": "the object changed since it was opened",
        "refused": "the store refused",
    }
    kind = kind_of_status(status)
    return RefusalError(kind, f"{words[kind]} (status {status})", seconds_of(retry_after))


def seconds_of(retry_after: str | None) -> float | None:
    """Returns the seconds that a Retry-After header tells, as a number or as a date; None if it tells none."""
    if not retry_after:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
