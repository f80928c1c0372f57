"""The manifest of a checkpoint: which files belong to it, with a sum of each, and what its restore has to know beforehand."""

from __future__ import annotations

import hashlib
import re

import msgspec

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
FORMAT, VERSION = "shardload checkpoint", 1

# One plain component: a manifest names nothing outside its own directory.
_FILE_NAME = re.compile(r"(?!\.\.?$)[\w.-]{1,120}")


class WrittenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    crc32c: int
    """Of all its bytes."""


class CheckpointManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint consists of."""

    step: int
    num_ranks: int
    """Ranks that saved it together."""
    equal_random: tuple[str, ...]
    """The generators whose state was the same on all ranks."""
    files: tuple[WrittenFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)


class _Envelope(msgspec.Struct, frozen=True):
    format: str
    version: int
    content: msgspec.Raw
    sha256: str


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """Returns the manifest as JSON that carries a digest of itself."""
    content = msgspec.json.encode(manifest)
    digest = hashlib.sha256(content).hexdigest()
    return msgspec.json.encode(_Envelope(FORMAT, VERSION, msgspec.Raw(content), digest)) + b"\n"


def decode_manifest(data: bytes, place: str) -> CheckpointManifest:
    """Returns what the bytes of a manifest say.

    Args:
        data: the bytes.
        place: the checkpoint, for messages.

    Raises:
        FormatError: not such a manifest, or changed since it was written.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.MsgspecError, ValueError):  # also of bytes that are no text
        raise FormatError(
            f"{place}: {MANIFEST_NAME} is not the manifest of a checkpoint", shard=MANIFEST_NAME
        ) from None
    if (envelope.format, envelope.version) != (FORMAT, VERSION):
        raise UnsupportedVersionError(
            f"{place}: {MANIFEST_NAME} is of {envelope.format[:40]!r}, version {envelope.version}; this version of shardload "
            f"reads {FORMAT!r}, version {VERSION}",
            shard=MANIFEST_NAME,
        )
    content = bytes(envelope.content)
    if hashlib.sha256(content).hexdigest() != envelope.sha256:
        raise ChecksumError(f"{place}: {MANIFEST_NAME} has changed since it was written", shard=MANIFEST_NAME)
    try:
        manifest = msgspec.json.decode(content, type=CheckpointManifest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError(f"{place}: {MANIFEST_NAME} has another content: {error}", shard=MANIFEST_NAME) from None
    if not all(_FILE_NAME.fullmatch(file.name) for file in manifest.files) or manifest.num_ranks < 1:
        raise FormatError(f"{place}: {MANIFEST_NAME} names files that cannot be", shard=MANIFEST_NAME)
    return manifest
