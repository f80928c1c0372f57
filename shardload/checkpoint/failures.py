"""What torch's checkpoint raises, as errors of ours."""

from __future__ import annotations

from typing import NoReturn

from torch.distributed.checkpoint.api import CheckpointException

from shardload.errors import ShardloadError, StateMismatchError, StorageError


def cause_of(error: BaseException) -> str:
    """Returns in one sentence what went wrong; torch's own words are the traceback of each rank."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return str(cause) if _is_told(cause) else f"rank {rank}: {type(cause).__name__}: {cause}"
    return str(error) or type(error).__name__


def raise_ours(error: BaseException, what: str) -> NoReturn:
    """Raises an error of ours for what torch's checkpoint raised on all ranks, and others as they are.

    Args:
        error: what was raised.
        what: what was not done.
    """
    if isinstance(error, CheckpointException):
        _, (cause, _) = min(error.failures.items())
        if _is_told(cause):
            raise cause from error
        if isinstance(cause, ValueError):
            raise StateMismatchError(f"{what}: {cause}") from error
        raise StorageError(f"{what}: {cause_of(error)}") from error
    if isinstance(error, (TimeoutError, RuntimeError)) and not isinstance(error, ShardloadError):
        raise StorageError(f"{what}: {str(error) or 'it took too long'}") from error
    raise error


def _is_told(cause: BaseException) -> bool:
    """Tells whether an error says all by itself."""
    return isinstance(cause, ShardloadError) and not isinstance(cause, StorageError)
