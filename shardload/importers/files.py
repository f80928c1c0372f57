"""The files of a source: found once, and opened again later only if they are still the same."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shardload.errors import FormatError, PackError
from shardload.importers.base import SourceFile
from shardload.importers.patterns import Selection, is_hidden
from shardload.storage import AnswerError
from shardload.storage.sources import SourceStore, SourceStream

Root = str | SourceStore
"""Where the paths of a source's files start: an absolute folder, or what is below a URL."""
Opened = io.FileIO | SourceStream
"""A file of a source that is open."""

# A look before and one behind would be two thirds of what small files cost.
_CHECKED_LATER_BYTES = 1 << 20
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


def scan_store(store: SourceStore, selection: Selection) -> Scan:
    """Returns the selected files below a URL; those that are hidden are left out as in `scan_folder`.

    Raises:
        PackError: the store does not tell what it holds.
    """
    scan = Scan()
    try:
        found = store.walk()
    except AnswerError as error:
        raise _untold(store.shown, error) from None
    for facts in sorted(found, key=lambda one: one.path.encode()):
        if reason := _reason_by_path(facts.path, selection, folders=True):
            scan.skipped[reason] += 1
        else:
            scan.files.append(SourceFile(facts.path, facts.num_bytes, 0, tag=facts.tag))
    return scan


def read_small(root: Root, path: str, max_bytes: int) -> bytes | None:
    """Returns the start of a file, all of it if it is small; None where there is none, or it cannot be read."""
    if isinstance(root, SourceStore):
        try:
            return root.read_small(path, max_bytes)
        except (AnswerError, FormatError):
            return None
    try:
        with open(os.path.join(root, path), "rb", opener=_without_waiting) as file:
            return file.read(max_bytes)
    except OSError:
        return None


def read_start(root: Root, path: str, num_bytes: int) -> bytes:
    """Returns the first bytes of a file; none where there is none, or it cannot be read."""
    if not isinstance(root, SourceStore):
        return read_small(root, path, num_bytes) or b""
    try:
        with root.open(path, root.facts(path).num_bytes) as stream:
            return stream.read_at(num_bytes, 0)
    except AnswerError:
        return b""


def is_there(root: Root, path: str) -> bool:
    """Tells whether there is a file of this name.

    Raises:
        PackError: the store does not tell.
    """
    if not isinstance(root, SourceStore):
        return os.path.lexists(os.path.join(root, path))
    try:
        root.facts(path)
    except AnswerError as error:
        if error.kind == "missing":
            return False
        raise _untold(_named(root, path), error) from None
    return True


def examine_file(root: Root, path: str, location: str | None = None) -> SourceFile:
    """Returns the facts of one file; `path` may also be absolute.

    Args:
        root: the folder it is in.
        path: its path there.
        location: what to call the folder in messages; None for `root`.

    Raises:
        PackError: it is no regular file or cannot be reached.
    """
    if isinstance(root, SourceStore):
        try:
            facts = root.facts(path)
        except AnswerError as error:
            name = _named(root, path)
            raise PackError(f"{name} does not exist") if error.kind == "missing" else _untold(name, error) from None
        return SourceFile(path, facts.num_bytes, 0, tag=facts.tag)
    file = _look_at(root, path)
    location = root if location is None else location
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


def open_file(root: Root, file: SourceFile, name: str) -> Opened:
    """Opens a file of a source.

    Args:
        root: absolute path of the source's folder, or what is below a URL.
        file: the file as it was scanned.
        name: what to call it in messages.

    Raises:
        LostFileError: it has vanished or changed since, or cannot be read.
        PackError: this process has no means left to open any file, or the whole folder is gone.
    """
    if isinstance(root, SourceStore):
        stream = root.open(file.path, file.num_bytes)
        if file.num_bytes > _CHECKED_LATER_BYTES:
            check_unchanged(stream, file, name)
        return stream
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


def check_unchanged(opened: Opened, file: SourceFile, name: str) -> None:
    """Checks that an open file still is what was scanned.

    Raises:
        LostFileError: it has another size, another time of change or tag, or is no regular file any more.
        PackError: a store does not tell.
    """
    if isinstance(opened, SourceStream):
        try:
            told = opened.facts()
        except AnswerError as error:
            raise unreadable(name, error) from None
        num_bytes, same = told.num_bytes, told.tag == file.tag
    else:
        facts = os.fstat(opened.fileno())
        num_bytes = facts.st_size if stat.S_ISREG(facts.st_mode) else -1
        same = facts.st_mtime_ns == file.modified_ns
    if num_bytes != file.num_bytes:
        raise LostFileError(
            f"{name} changed while it was being packed: it had {file.num_bytes} bytes and now has {num_bytes}"
        )
    if not same:
        raise LostFileError(f"{name} changed while it was being packed: it was written to after the source was scanned")


def read_at(opened: Opened, num_bytes: int, start: int) -> bytes:
    """Returns bytes of a place of an open file, fewer at its end."""
    if isinstance(opened, SourceStream):
        return opened.read_at(num_bytes, start)
    return os.pread(opened.fileno(), num_bytes, start)


def unreadable(name: str, error: OSError) -> PackError:
    """Returns the error for a file that the operating system or a store does not give."""
    if isinstance(error, AnswerError):
        if error.kind == "missing":
            return LostFileError(f"{name} vanished while it was being packed")
        if error.kind == "changed":
            return LostFileError(
                f"{name} changed while it was being packed: it was written to after the source was scanned"
            )
        # What a store does not give says nothing about the file.
        return _untold(name, error)
    # Neither descriptors nor memory are the file's fault, and the next one would fare no better.
    kind = PackError if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else LostFileError
    return kind(f"{name} cannot be read: {error.strerror or error}")


def _named(store: SourceStore, path: str) -> str:
    return os.path.join(store.shown, path) if store.folder else path


def _untold(name: str, error: AnswerError) -> PackError:
    _, separator, reason = error.message.partition(" cannot be read")
    return PackError(f"{name} cannot be read{reason}" if separator else f"{name}: {error.message}")


def _without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK a FIFO would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


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


def _reason_by_path(path: str, selection: Selection, folders: bool = False) -> str:
    """Returns why a path is not selected, or nothing; `folders` to look at what each folder above it is called as well."""
    if not selection.selects(path):
        return "hidden" if is_hidden(path) else "not included"
    names = path.split("/")
    paths = ["/".join(names[: i + 1]) for i in range(len(names))] if folders else [path]
    return "excluded" if any(map(selection.excludes, paths)) else ""


def _reason_to_skip(entry: os.DirEntry[bytes], path: bytes, selection: Selection) -> str:
    if reason := _reason_by_path(_decode(path), selection):
        return reason
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
