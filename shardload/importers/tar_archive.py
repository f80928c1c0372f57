"""The members of a tar, one after the other, from a stream: damage is named, and nothing is passed over in silence.

The headers are parsed by the standard library (`TarInfo.frombuf`); the walk from header to header is our own, since
that of `tarfile`, and with it `webdataset.tariterators.tar_file_iterator`, was found to

- end without an error at a header that is broken, cut short or zeroed, and at a file that was cut between two members;
- stop at the first block of zeros, whatever follows it: the second of two tars joined by `cat` is lost;
- read a PAX header or a long name of any size into memory, and call itself once for every such header in a row;
- pass over links and devices, which leaves a sample without a member that its tar names.

Nothing is extracted: names are data, be they absolute or with `..`, and never reach the file system.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from shardload.quantities import format_bytes

MAX_EXTENSION_BYTES = 1 << 20
"""Longest PAX header or GNU long name that is read; tar programs write some hundred bytes."""

_BLOCK_BYTES = 512
# What is asked for at once of a compressed stream, whose headers may promise any number of bytes.
_PART_BYTES = 16 << 20
_SKIPPED_BYTES = 1 << 18
# Zeros at the end that tell no loss: GNU tar, bsdtar and Python fill up to a record of this size unless told otherwise,
# after the two blocks that end a tar. A file whose tail never reached the disk reads as more of them.
_MAX_END_BYTES = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE

_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.DIRTYPE: "a directory",
}
_REGULAR_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=]+)=")
_PAX_SIZE = re.compile(r"[0-9]{1,20}")


class TarDamage(Exception):
    """The archive cannot be read on; the text says what is wrong and at which byte of it."""


class Stream(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """Returns so many bytes, fewer only at the end."""
        ...

    def seek(self, offset: int, /) -> int:
        """Goes to a byte; called only where the size of the archive is known."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: str
    """Its name; bytes that are not UTF-8 stand in it as surrogates."""
    kind: str
    """Nothing for a regular file, else what it is, such as `a hard link`."""
    num_bytes: int
    """Bytes of its data."""
    start: int
    """Byte of the tar at which its first header starts."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, which holds nothing itself."""
        return self.kind == _KINDS[tarfile.DIRTYPE]


class Archive:
    """A tar that is read once, from its start to its end."""

    def __init__(self, stream: Stream, num_bytes: int | None) -> None:
        """Begins an archive.

        Args:
            stream: stands at the first byte; stays the caller's.
            num_bytes: size of the tar if the stream is a plain file that can seek; None if it is decompressed.
        """
        self.last = ""
        """Name of the member before the one that is looked at."""
        self.bytes_read = 0
        """Bytes that were read so far, without those that were passed over by seeking."""
        self._stream = stream
        self._num_bytes = num_bytes
        self._at = 0
        self._block = b""
        # Bytes of data and of padding that are left of the member yielded last.
        self._data: tuple[int, int] = (0, 0)
        self._global: dict[str, str] = {}

    def __iter__(self) -> Iterator[Member]:
        """Yields the members. `read` gives the data of the one yielded last, until the next is asked for.

        Raises:
            TarDamage: a header is none, the archive is cut short, or something follows its end.
        """
        while (member := self._next()) is not None:
            yield member
            self.finish()
            self.last = member.name
        self._check_rest()

    def tell(self) -> int:
        """Returns the byte of the archive up to which it was read."""
        return self._at

    def read(self) -> bytes:
        """Returns the data of the member yielded last."""
        left = self._data[0]
        self._data = (0, self._data[1])
        if self._num_bytes is not None:
            return self._take(left)
        parts = []
        while left:
            parts.append(self._take(min(left, _PART_BYTES)))
            left -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Passes over what is left of the member yielded last."""
        self._skip(sum(self._data))
        self._data = (0, 0)

    def _next(self) -> Member | None:
        start = self._at
        own: dict[str, str] = {}
        while (info := self._header()) is not None:
            # Where a name is given more than once for a member, the first counts, as in the standard library.
            if info.type in _PAX_TYPES:
                own = self._pax(info) | own
            elif info.type == tarfile.XGLTYPE:
                self._global |= self._pax(info)
                if "size" in self._global:
                    raise TarDamage(f"the global header at byte {start} gives the members' size")
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                own.setdefault("path", _text(self._extension(info).partition(b"\0")[0]))
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                self._extension(info)
            else:
                return self._member(info, own, start)
        if own or self._at - start > _BLOCK_BYTES:
            raise TarDamage(f"the archive ends at byte {self._at - _BLOCK_BYTES}, where a member is announced")
        return None

    def _member(self, info: tarfile.TarInfo, own: dict[str, str], start: int) -> Member:
        facts = self._global | own
        name = facts.get("GNU.sparse.name") or facts.get("path") or info.name
        size = int(own.get("size", info.size))
        kind = "" if info.type in _REGULAR_TYPES else _KINDS.get(info.type, f"of type {info.type!r}")
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._pass_sparse_map()
        if info.type == tarfile.GNUTYPE_SPARSE or any(fact.startswith("GNU.sparse.") for fact in own):
            kind = "a sparse file"
        # As in the standard library: of these, a size says nothing about what follows.
        if info.type in _KINDS:
            size = 0
        padded = -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
        if size < 0:
            raise TarDamage(f"the header of member {name!r} at byte {start} gives a size of {size} bytes")
        if self._num_bytes is not None and self._at + padded > self._num_bytes:
            raise TarDamage(
                f"member {name!r} at byte {start} should have {size} bytes from byte {self._at} on, but the archive "
                f"ends at byte {self._num_bytes}"
            )
        self._data = (size, padded - size)
        return Member(name, kind, size, start)

    def _header(self) -> tarfile.TarInfo | None:
        """Returns the next header, or None at a block of zeros."""
        at = self._at
        block = self._stream.read(_BLOCK_BYTES)
        self._at += len(block)
        self.bytes_read += len(block)
        if not block:
            if not at:
                raise TarDamage("it is empty")
            raise TarDamage(f"the archive has no end: after byte {at} there should be a member or a block of zeros")
        if len(block) < _BLOCK_BYTES:
            raise TarDamage(f"the header at byte {at} has {len(block)} bytes instead of {_BLOCK_BYTES}")
        if block.count(0) == _BLOCK_BYTES:
            return None
        self._block = block
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise TarDamage(f"what stands at byte {at} is no header of a member ({error})") from None

    def _extension(self, info: tarfile.TarInfo) -> bytes:
        """Returns the data of a header that is about the next member."""
        if not 0 <= info.size <= MAX_EXTENSION_BYTES:
            raise TarDamage(
                f"the extended header at byte {self._at - _BLOCK_BYTES} says that it has {info.size} bytes; the limit "
                f"is {format_bytes(MAX_EXTENSION_BYTES)}"
            )
        data = self._take(info.size)
        self._skip(-info.size % _BLOCK_BYTES)
        return data

    def _pax(self, info: tarfile.TarInfo) -> dict[str, str]:
        """Returns the facts of a PAX header that bear on reading."""
        start = self._at
        data = self._extension(info).rstrip(b"\0")
        facts: dict[str, str] = {}
        at = 0
        while at < len(data):
            match = _PAX_RECORD.match(data, at)
            stop = at + int(match[1]) if match else 0
            if match is None or not match.end() < stop <= len(data) or data[stop - 1 : stop] != b"\n":
                raise TarDamage(f"the PAX header whose data start at byte {start} is broken")
            keyword, value = _text(match[2]), _text(data[match.end() : stop - 1])
            if keyword in ("path", "size") or keyword.startswith("GNU.sparse."):
                facts[keyword] = value
            at = stop
        if "size" in facts and not _PAX_SIZE.fullmatch(facts["size"]):
            raise TarDamage(f"the PAX header whose data start at byte {start} gives a size of {facts['size']!r}")
        return facts

    def _pass_sparse_map(self) -> None:
        """Passes over the blocks that carry on the map of an old GNU sparse file, whose header was read last."""
        more = bool(self._block[482])
        while more:
            more = bool(self._take(_BLOCK_BYTES)[504])

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        self.bytes_read += len(data)
        if len(data) < size:
            raise TarDamage(f"the archive ends at byte {self._at}, within a member")
        return data

    def _skip(self, size: int) -> None:
        if self._num_bytes is not None and size >= _SKIPPED_BYTES // 64:
            self._at = self._stream.seek(self._at + size)
            return
        while size:
            size -= len(self._take(min(size, _SKIPPED_BYTES)))

    def _check_rest(self) -> None:
        """Checks that nothing but some zeros follows the first block of them."""
        end = self._at - _BLOCK_BYTES
        while data := self._stream.read(_SKIPPED_BYTES):
            if data.count(0) < len(data):
                at = self._at + len(data) - len(data.lstrip(b"\0"))
                raise TarDamage(
                    f"a block of zeros at byte {end} ends the archive, but data follow at byte {at}: it was "
                    "overwritten, or several tars were joined into one file"
                )
            self._at += len(data)
            self.bytes_read += len(data)
        if self._at - end > _MAX_END_BYTES:
            raise TarDamage(
                f"from byte {end} on it is {self._at - end:,} bytes of zeros, where tar programs write at most "
                f"{_MAX_END_BYTES:,}: its last members may be lost; if they are not, write it anew"
            )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def is_text(name: str) -> bool:
    """Tells whether a name was UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
