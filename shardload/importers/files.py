"""The files of a source: found once, and opened again later only if they are still the same."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shardload.errors import PackError
from shardload.importers.base import SourceFile
from shardload.importers.patterns import Selection, is_hidden

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
}


@dataclass
class Scan:
    """What a folder holds."""

    files: list[SourceFile] = field(default_factory=list)
    """The selected files, sorted by the bytes of their paths."""
    skipped: Counter[str] = field(default_factory=Counter)
    """What was left out: reason -> number."""


def scan_folder(location: str, selection: Selection) -> Scan:
    """Returns the selected files below a folder.

    Hidden files and folders are left out unless a pattern writes their dot. Links to regular files are followed,
    wherever they lead; links to directories are not, so there is no loop to fall into.

    Raises:
        PackError: a selected entry is no regular file, leads nowhere or has a name that is not UTF-8, or a folder
            cannot be read.
    """
    scan = Scan()
    folders = [b""]
    while folders:
        folder = folders.pop()
        for entry in _entries(location, folder):
            path = folder + entry.name
            if entry.is_dir(follow_symlinks=False):
                if not selection.enters_hidden and entry.name.startswith(b"."):
                    scan.skipped["hidden"] += 1
                elif selection.excludes(_decode(path)):
                    scan.skipped["excluded"] += 1
                else:
                    folders.append(path + b"/")
            elif reason := _reason_to_skip(entry, path, selection):
                scan.skipped[reason] += 1
            else:
                scan.files.append(_examine(location, path))
    scan.files.sort(key=lambda file: file.path.encode())
    return scan


def examine_file(location: str, path: str) -> SourceFile:
    """Returns the facts of one file; `path` may also be absolute.

    Raises:
        PackError: it is no regular file or cannot be reached.
    """
    name = os.path.join(location, path)
    try:
        facts = os.stat(name)
    except FileNotFoundError:
        detail = "is a link that leads nowhere" if os.path.lexists(name) else "does not exist"
        raise PackError(f"{shown(name)} {detail}") from None
    except OSError as error:
        detail = "is a link in a loop of links" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise PackError(f"{shown(name)} {detail}") from error
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "not a file")
        raise PackError(f"{shown(name)} is {kind}; only regular files can be packed")
    return SourceFile(path, facts.st_size, facts.st_mtime_ns)


def open_file(root: str, file: SourceFile, name: str) -> io.FileIO:
    """Opens a file of a source.

    Args:
        root: absolute path of the source's folder.
        file: the file as it was scanned.
        name: what to call it in messages.

    Raises:
        PackError: it has vanished or changed since, or cannot be read.
    """
    try:
        # Without O_NONBLOCK a FIFO put in the file's place would wait for a writer for ever.
        descriptor = os.open(_encode(os.path.join(root, file.path)), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise PackError(f"{name} vanished while it was being packed") from None
    except OSError as error:
        raise unreadable(name, error) from error
    opened = io.FileIO(descriptor)
    try:
        check_unchanged(opened, file, name)
    except BaseException:
        opened.close()
        raise
    return opened


def check_unchanged(opened: io.FileIO, file: SourceFile, name: str) -> None:
    """Checks that an open file still is what was scanned.

    Raises:
        PackError: it has another size, another time of change, or is no regular file any more.
    """
    facts = os.fstat(opened.fileno())
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != file.num_bytes:
        raise PackError(
            f"{name} changed while it was being packed: it had {file.num_bytes} bytes and now has {facts.st_size}"
        )
    if facts.st_mtime_ns != file.modified_ns:
        raise PackError(f"{name} changed while it was being packed: it was written to after the source was scanned")


def unreadable(name: str, error: OSError) -> PackError:
    """Returns the error for a file that the operating system does not give."""
    return PackError(f"{name} cannot be read: {error.strerror or error}")


def shown(name: str) -> str:
    """Returns a file name for a message: as it is, or quoted with escapes if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return repr(_encode(name))
    return name


def _entries(location: str, folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    path = os.path.join(_encode(location), folder)
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        raise unreadable(shown(_decode(path)), error) from error


def _reason_to_skip(entry: os.DirEntry[bytes], path: bytes, selection: Selection) -> str:
    text = _decode(path)
    if not selection.selects(text):
        return "hidden" if is_hidden(text) else "not included"
    if selection.excludes(text):
        return "excluded"
    try:
        return "links to directories" if entry.is_symlink() and entry.is_dir() else ""
    except OSError:
        # A loop of links: named when it is examined.
        return ""


def _examine(location: str, path: bytes) -> SourceFile:
    try:
        path.decode()
    except UnicodeDecodeError:
        raise PackError(
            f"{location}: the file name {path!r} is not UTF-8; rename it, or leave it out with include patterns"
        ) from None
    return examine_file(location, path.decode())


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _decode(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
