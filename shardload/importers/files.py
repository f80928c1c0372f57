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
    """The selected entries, sorted by the bytes of their paths; what is no readable file says so in `problem`."""
    skipped: Counter[str] = field(default_factory=Counter)
    """What was left out: reason -> number."""


def scan_folder(location: str, selection: Selection) -> Scan:
    """Returns the selected files below a folder.

    Hidden files and folders are left out unless a pattern writes their dot. Links to regular files are followed,
    wherever they lead; links to directories are not, so there is no loop to fall into.

    Raises:
        PackError: a folder cannot be read: what it holds is not known then.
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
    file = _look_at(location, path)
    if file.problem:
        raise PackError(f"{shown(os.path.join(location, path))} {file.problem}")
    return file


def _look_at(location: str, path: str) -> SourceFile:
    """Returns the facts of one file, or what is wrong with it."""
    name = os.path.join(location, path)
    try:
        facts = os.stat(name)
    except FileNotFoundError:
        there = os.path.lexists(name)
        return SourceFile(path, 0, 0, "is a link that leads nowhere" if there else "does not exist")
    except OSError as error:
        loop = error.errno == errno.ELOOP
        return SourceFile(path, 0, 0, "is a link in a loop of links" if loop else f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "not a file")
        return SourceFile(path, 0, 0, f"is {kind}; only regular files can be packed")
    return SourceFile(path, facts.st_size, facts.st_mtime_ns)


class LostFileError(PackError):
    """One file cannot be read, is not what was scanned, or holds no sample; the others may be all right.

    Its message starts with the name of the file and a space.
    """


def open_file(root: str, file: SourceFile, name: str) -> io.FileIO:
    """Opens a file of a source.

    Args:
        root: absolute path of the source's folder.
        file: the file as it was scanned.
        name: what to call it in messages.

    Raises:
        LostFileError: it has vanished or changed since, or cannot be read.
        PackError: this process has no means left to open any file, or the whole folder is gone.
    """
    try:
        # Without O_NONBLOCK a FIFO put in the file's place would wait for a writer for ever.
        descriptor = os.open(_encode(os.path.join(root, file.path)), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if root and not os.path.isdir(root):
            raise PackError(f"{name} vanished while it was being packed, and so did {root}") from None
        raise LostFileError(f"{name} vanished while it was being packed") from None
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
        LostFileError: it has another size, another time of change, or is no regular file any more.
    """
    facts = os.fstat(opened.fileno())
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != file.num_bytes:
        raise LostFileError(
            f"{name} changed while it was being packed: it had {file.num_bytes} bytes and now has {facts.st_size}"
        )
    if facts.st_mtime_ns != file.modified_ns:
        raise LostFileError(f"{name} changed while it was being packed: it was written to after the source was scanned")


def unreadable(name: str, error: OSError) -> PackError:
    """Returns the error for a file that the operating system does not give."""
    # Neither descriptors nor memory are the file's fault, and the next one would fare no better.
    kind = PackError if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else LostFileError
    return kind(f"{name} cannot be read: {error.strerror or error}")


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
        # Never opened, so that what it is called here need not lead to it.
        problem = "is a file name that is not UTF-8; rename it, or leave it out with exclude patterns"
        return SourceFile(repr(path), 0, 0, problem)
    return _look_at(location, path.decode())


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _decode(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
