"""The directory of a cache: whose it is, which files are in it, and how large they may be.

Its ledger names the files; no others are ever removed. It holds no lock and no name that could be left behind: a process may die
at any point, and the next finds either no ledger or a whole one, and makes the files that it lacks. A lock is only asked for to
find out whether another job is using the files, when they are to get another size.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardload.errors import StorageError
from shardload.quantities import format_bytes
from shardload.storage.slots import MIN_LIMIT_BYTES, Geometry

LEDGER = "shardload-cache.json"
JOBS_BYTES = 1 << 12

_FORMAT = 1
_MAX_LEDGER_BYTES = 1 << 16
_TEMPORARY = re.compile(r"shardload-cache\.[0-9a-f]{16}\.tmp")
_STALE_SECONDS = 3600.0
"""Nobody takes so long from creating a ledger to giving it its name."""
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a cache consists of."""

    num_sets: int
    """Its size, as of `Geometry`."""
    limit_bytes: int
    """The limit that it was made for."""
    number: int
    """How often it was made anew."""
    former: tuple[str, ...]
    """Files that were its own before, and may still be there."""

    @property
    def files(self) -> dict[str, int]:
        """Name -> bytes of the files: blocks, index, jobs."""
        geometry = Geometry(self.num_sets)
        sizes = {"blocks": geometry.data_bytes, "index": geometry.index_bytes, "jobs": JOBS_BYTES}
        return {f"{name}-{self.number}-{self.num_sets}": size for name, size in sizes.items()}

    def encode(self) -> bytes:
        """Returns the content of the ledger's file."""
        facts = {name: getattr(self, name) for name in ("num_sets", "limit_bytes", "number", "former")}
        return json.dumps({"shardload_cache": _FORMAT, **facts, "files": list(self.files)}, indent=1).encode()


def check_limit(limit_bytes: int) -> None:
    """Raises ValueError unless a cache can be had within a limit."""
    if limit_bytes < MIN_LIMIT_BYTES:
        raise ValueError(
            f"cache_limit must be at least {MIN_LIMIT_BYTES} bytes ({format_bytes(MIN_LIMIT_BYTES)}), not {limit_bytes}: less "
            "holds no part of a dataset that would be worth the work"
        )


class CacheDirectory:
    """An open cache directory with its files. Closed when the last reference goes."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Opens a directory, and makes the cache in it if there is none.

        Args:
            path: an existing cache, an empty directory, or none: then it is made.
            limit_bytes: what the files together may take.

        Raises:
            StorageError: the directory is someone else's, holds other files, or is in use with another limit.
            OSError: the file system does not allow it.
        """
        self.path = path
        self.descriptors: list[int] = []
        self._directory = -1
        check_limit(limit_bytes)
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, 0o700)
        self._directory = self._open(path)
        try:
            self._check_owner()
            self._sweep()
            ledger = self._read() or self._create(Ledger(Geometry.within(limit_bytes).num_sets, limit_bytes, 1, ()))
            if ledger.limit_bytes != limit_bytes:
                ledger = self._resize(ledger, limit_bytes)
            self.ledger = ledger
            self._open_files(ledger)
        except BaseException:
            self.close()
            raise

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter the modules that closing needs may be gone, and descriptors go anyway.
        if not is_finalizing():
            self.close()

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise self._refused("is a symbolic link, or no directory: name a directory itself") from None
            raise

    def close(self) -> None:
        """Closes the files."""
        descriptors, self.descriptors = self.descriptors, []
        directory, self._directory = self._directory, -1
        for descriptor in [*descriptors, *([directory] if directory >= 0 else [])]:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _check_owner(self) -> None:
        facts = os.fstat(self._directory)
        if facts.st_uid != os.geteuid():
            raise self._refused(f"belongs to user {facts.st_uid}: name one of your own")
        if stat.S_IMODE(facts.st_mode) & 0o077 == 0:
            return
        self._check_empty()
        # What others could write to would have to be trusted as little as what they can send.
        os.fchmod(self._directory, 0o700)

    def _sweep(self) -> None:
        """Removes ledgers that their makers did not live to name."""
        for name in os.listdir(self._directory):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(name) and self._age(name) > _STALE_SECONDS:
                    os.unlink(name, dir_fd=self._directory)

    def _age(self, name: str) -> float:
        return time.time() - os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mtime

    def _read(self) -> Ledger | None:
        try:
            descriptor = os.open(LEDGER, os.O_RDONLY | _FLAGS, dir_fd=self._directory)
        except FileNotFoundError:
            self._check_empty()
            return None
        try:
            facts = json.loads(os.read(descriptor, _MAX_LEDGER_BYTES))
            if facts["shardload_cache"] != _FORMAT:
                raise self._refused(f"is a cache of format {facts['shardload_cache']}: name another directory")
            numbers = [facts[name] for name in ("num_sets", "limit_bytes", "number")]
            if not all(type(number) is int and number > 0 for number in numbers):
                raise ValueError
            former = tuple(name for name in facts["former"] if re.fullmatch(r"(blocks|index|jobs)-\d+-\d+", name))
            num_sets, limit_bytes, number = numbers
            return Ledger(num_sets, limit_bytes, number, former)
        except (ValueError, KeyError, TypeError):
            raise self._refused(f"has a {LEDGER} that is none: remove the directory, or name another one") from None
        finally:
            os.close(descriptor)

    def _create(self, ledger: Ledger, *, replace: bool = False) -> Ledger:
        """Puts a ledger in its place, whole; returns the one that is there then, which may be another process's."""
        name = f"shardload-cache.{secrets.token_hex(8)}.tmp"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=self._directory)
        try:
            os.write(descriptor, ledger.encode())
            os.fsync(descriptor)
            if replace or not self._link(name):
                os.replace(name, LEDGER, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
        return self._read() or ledger

    def _link(self, name: str) -> bool:
        """Gives a ledger its name if there is none yet; returns False where the file system knows no links."""
        try:
            os.link(name, LEDGER, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            pass
        except OSError:
            return False
        return True

    def _resize(self, ledger: Ledger, limit_bytes: int) -> Ledger:
        """Makes the cache anew for another limit, unless someone uses it."""
        self._open_files(ledger)
        try:
            fcntl.flock(self.descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._refused(
                f"is in use with cache_limit={ledger.limit_bytes} ({format_bytes(ledger.limit_bytes)}) by another job: give the "
                "same limit, or another directory"
            ) from None
        former = (*ledger.former, *ledger.files)[-30:]
        made = Ledger(Geometry.within(limit_bytes).num_sets, limit_bytes, ledger.number + 1, former)
        made = self._create(made, replace=True)
        descriptors, self.descriptors = self.descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)
        return made

    def _open_files(self, ledger: Ledger) -> None:
        """Opens the files of a ledger, made as far as they are not there, and removes those of former ones."""
        for name in set(ledger.former) - set(ledger.files):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
        for name, size in ledger.files.items():
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._directory)
            self.descriptors.append(descriptor)
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
                raise self._refused(f"has a {name} that is not a file of yours: remove it")
            if facts.st_size != size:
                os.ftruncate(descriptor, size)
        # It tells others that the files are in use; where locks do not work they are not told, and go on without a cache.
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptors[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _check_empty(self) -> None:
        """Raises an error if there are files without a ledger that would tell whose they are."""
        names = os.listdir(self._directory)
        others = [name for name in names if not _TEMPORARY.fullmatch(name)]
        if others and LEDGER not in names:
            raise self._refused(
                f"holds files that are not a cache's, such as {min(others)}: name an empty or a new directory"
            ) from None

    def _refused(self, why: str) -> StorageError:
        return StorageError(f"cache_dir={self.path!r} {why}", dataset=self.path)
