"""The samples of a tar by the rules of the webdataset package: members of one key that stand together are one sample.

Key and extension of a name, and which names are the package's own, come from `webdataset.tariterators`. Its iterators
do not: `tar_file_iterator` passes over what `tar_archive` names, and `group_by_keys` drops a member without a
key in silence, ends the tar at a member that stands in its sample twice, and makes two halves of a sample whose
members do not stand together. Its decoders (which unpickle) and openers of URLs (which run programs) are never called.

What is not a sample is a `Reject`, and a sample is never given by halves: where one of its members is a link, a device,
a FIFO, sparse, there twice, too large or without a name that a field could have, the whole sample is the `Reject`.
Directories, and members that webdataset skips as its own (`__name__`, `__name__/...`), are passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.schema import parse_field
from shardload.importers.base import Reject
from shardload.importers.tar_archive import Archive, Member, is_text
from shardload.quantities import format_bytes

KEY_FIELD = "key"
MAX_SAMPLE_BYTES = 1 << 30
"""Most bytes of a sample's members together. A compressed tar of some KiB can promise any number of them."""

_MAX_MEMBERS = layout.MAX_FIELDS - 1
# For faults that no other type or name in the source could mend.
_LEAVE_OUT = "; to leave such members out, name the wanted ones in --schema"


class Wanted(NamedTuple):
    """Which members are looked at."""

    extensions: Container[str] | None
    """Extensions of which samples are made; None for all. Others are passed over, whatever they are."""
    content: Callable[[str], bool]
    """Tells whether the content of an extension is read; of others it is empty."""


class SamplePlace:
    """A sample of a tar as a place."""

    __slots__ = ("key", "tar")

    def __init__(self, tar: str, key: str) -> None:
        self.tar = tar
        self.key = key

    def __str__(self) -> str:
        return f"{self.tar} sample {self.key!r}"


@dataclass(slots=True)
class RawSample:
    """The members of one sample as they stand in the tar."""

    place: SamplePlace
    members: dict[str, bytes] = field(default_factory=dict)
    """Extension, in lower case -> content."""
    starts: dict[str, int] = field(default_factory=dict)
    """Extension -> first byte of its content in the tar."""
    fault: str = ""
    """Why it is no sample; the members are not kept then."""
    num_bytes: int = 0
    """Bytes of the content of the members that are looked at."""
    stored_bytes: int = 0
    """Bytes of the file, as it is stored, that all its members take."""


def raw_samples(archive: Archive, tar: str, wanted: Wanted, stored: Callable[[], int]) -> Iterator[RawSample | Reject]:
    """Yields the samples of a tar, and what is none.

    Args:
        archive: the tar; its damage goes through.
        tar: what to call it.
        wanted: which members are looked at.
        stored: tells the bytes of the file, as it is stored, that were read.
    """
    # Here, as the package loads torch: only those who read tars wait for it.
    from webdataset.tariterators import base_plus_ext

    keys = _Keys()
    sample: RawSample | None = None
    before = 0
    for member in archive:
        if member.is_directory or _is_meta(member.name):
            continue
        key, extension = base_plus_ext(member.name)
        if key is None or member.name.rpartition("/")[2].startswith("."):
            archive.finish()
            yield Reject(f"{tar} member {member.name!r}", _no_key(member), stored() - before)
        else:
            if sample is None or key != sample.place.key:
                if sample is not None:
                    yield _finished(sample)
                sample = RawSample(SamplePlace(tar, key), fault=keys.fault(key, member))
            _add(sample, member, extension.lower(), archive, wanted)
            archive.finish()
            sample.stored_bytes += stored() - before
        before = stored()
    if sample is not None:
        yield _finished(sample)


def _is_meta(name: str) -> bool:
    """Tells whether webdataset skips a member: the rule of its `tar_file_iterator`."""
    first = name.partition("/")[0]
    return len(first) >= 4 and first.startswith("__") and first.endswith("__")


def _no_key(member: Member) -> str:
    kind = f"it is {member.kind}, and " if member.kind else ""
    return f"{kind}its name has no key and extension, as webdataset takes them from 'key.extension'"


def _finished(sample: RawSample) -> RawSample | Reject:
    return Reject(sample.place, sample.fault, sample.stored_bytes) if sample.fault else sample


def _add(sample: RawSample, member: Member, extension: str, archive: Archive, wanted: Wanted) -> None:
    if sample.fault or (wanted.extensions is not None and extension not in wanted.extensions):
        return
    sample.num_bytes += member.num_bytes
    sample.starts[extension] = archive.tell()
    sample.fault = _fault(sample, member, extension)
    if sample.fault:
        sample.members.clear()
    else:
        sample.members[extension] = archive.read() if wanted.content(extension) else b""


def _fault(sample: RawSample, member: Member, extension: str) -> str:
    """Returns why a member makes its sample none, or nothing."""
    shown = f"member {member.name!r}"
    if member.kind:
        return f"{shown} is {member.kind}; only regular files are packed"
    if not is_text(extension):
        return f"the name of {shown} is not UTF-8"
    if extension in sample.members:
        return f"{shown} stands in it twice, the second time at byte {member.start}"
    if sample.num_bytes > MAX_SAMPLE_BYTES:
        return f"its members have over {format_bytes(MAX_SAMPLE_BYTES)} together up to {shown}; that is the limit"
    if len(sample.members) >= _MAX_MEMBERS:
        return (
            f"it has over {_MAX_MEMBERS:,} members; webdataset takes a name up to its first dot for the key, so files "
            "such as image.1.png and image.2.png are of one sample: write keys without dots"
        )
    if extension == KEY_FIELD:
        return f"{shown}: the field {KEY_FIELD!r} is for the key of the sample{_LEAVE_OUT}"
    try:
        parse_field(extension, "bytes")
    except FormatError as error:
        return f"{shown}: {error}{_LEAVE_OUT}"
    return ""


class _Keys:
    """The keys that a tar has had, 8 bytes of a hash each."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def fault(self, key: str, member: Member) -> str:
        """Returns what is wrong with the key of a sample that begins, or nothing."""
        if not is_text(key):
            return f"the name of member {member.name!r} is not UTF-8"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        if digest in self._hashes:
            return (
                f"the key came before in this tar, and comes again at byte {member.start}: the members of a sample must "
                "stand one after the other"
            )
        self._hashes.add(digest)
        return ""
