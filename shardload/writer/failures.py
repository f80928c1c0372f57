"""Failures of the storage below a target, as sentences that say what is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from shardload.errors import PackError
from shardload.quantities import format_bytes

NOTHING = "nothing was published"


def _nearest(path: str) -> str:
    """Returns the directory that is there, on the way to a path that may not be."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


@contextlib.contextmanager
def named(root: str) -> Iterator[None]:
    """Turns the operating system's errors into one sentence that names the target and says what is left of it."""
    try:
        yield
    except OSError as error:
        raise write_error(root, error) from error


def write_error(root: str, error: OSError, outcome: str = NOTHING) -> PackError:
    """Returns the error for a failed write below a target; `outcome` says what was published before it."""
    if isinstance(error, PackError):
        return error
    detail = error.strerror or str(error)
    if isinstance(error, FileExistsError):
        detail = "a file of the same name was written by another writer"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            detail += f" ({format_bytes(shutil.disk_usage(_nearest(root)).free)} free)"
    name = f" ({os.path.relpath(error.filename, root)})" if isinstance(error.filename, str) else ""
    return PackError(f"{root}: cannot be written{name}: {detail}; {outcome}", dataset=root)
