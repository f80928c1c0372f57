"""WebDataset tars: one sample after the other, a member a field; equal datasets give equal bytes.

The members are written here and not by `webdataset.TarWriter`, which loads torch, encodes by extensions, stamps the time of
the day, and cannot write the member of the note: its name is of no sample. That tells a pack the fields and types; webdataset
passes over it.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Sequence

from shardload.errors import ExportError
from shardload.exporters.members import EMPTY_EXTENSION, contents, extensions, stored_bytes
from shardload.exporters.target import Target
from shardload.format.manifest import Metadata
from shardload.format.note import NOTE_NAME, make_note
from shardload.format.schema import Field
from shardload.reader.batch import SampleBatch
from shardload.storage import FileWriter

DEFAULT_KEY = "key"
"""Field that gives the keys if it is there and can: that of packed tars."""

_END = bytes(2 * tarfile.BLOCKSIZE)
_MAX_KEY_BYTES = 1024
_BAD_COMPONENT = re.compile(r"|\.\.?|.*[\x00-\x1f\x7f].*", re.DOTALL)
_META = re.compile(r"__.*__", re.DOTALL)
_MIN_KEY_DIGITS = 9


def key_field(fields: Sequence[Field], key: str | None, location: str) -> str:
    """Returns the name of the field that gives the samples' keys, or nothing where their numbers do.

    Args:
        fields: the fields that are exported.
        key: the name given; nothing for numbers, None for `DEFAULT_KEY` if there is such a field.
        location: the dataset, for messages.

    Raises:
        ValueError: there is no such field, or its values are no keys.
    """
    kinds = {field.name: field.type for field in fields}
    if key is None:
        return DEFAULT_KEY if kinds.get(DEFAULT_KEY) == "str" else ""
    if key and kinds.get(key) != "str":
        raise ValueError(f"{location}: {key!r} is no field of str that could name the samples" + _types(kinds, key))
    return key


def _types(kinds: dict[str, str], key: str) -> str:
    return f": it is {kinds[key]}" if key in kinds else f"; the fields are {', '.join(kinds):.500}"


class TarFiles:
    """Writes samples into tars of about a size."""

    def __init__(
        self, target: Target, fields: Sequence[Field], metadata: Metadata, num_samples: int, max_bytes: int, key: str
    ) -> None:
        """Describes the files.

        Args:
            target: what they belong to.
            fields: what samples have.
            metadata: facts of the dataset.
            num_samples: samples that will come.
            max_bytes: most bytes of a tar, unless it holds one sample only.
            key: name of the field that gives the keys, or nothing.
        """
        names = extensions(fields, key)
        self.stored = {field.name: name for field, name in zip(fields, names, strict=True) if field.name != key}
        """Extension of each field's members."""
        self._note = member(NOTE_NAME, make_note(fields, names, metadata).encode())
        self._contents = [
            (self.stored[field.name], field.name, contents(field)) for field in fields if field.name != key
        ]
        empty = EMPTY_EXTENSION
        while empty in names:
            empty += "_"
        self._empty = empty
        self._target = target
        self._max_bytes = max_bytes
        self._key = key
        self._digits = max(_MIN_KEY_DIGITS, len(str(num_samples - 1)))
        self._num_samples = 0
        self._file: FileWriter | None = None
        self._keys: set[bytes] = set()

    def write(self, batch: SampleBatch) -> None:
        """Writes samples.

        Raises:
            ExportError: one has a key that cannot be one.
        """
        members = [(name, values(batch, batch.columns[field])) for name, field, values in self._contents]
        keys = stored_bytes(batch, batch.columns[self._key]) if self._key else [None] * len(batch)
        for slot, key in enumerate(keys):
            name = f"{self._num_samples:0{self._digits}d}" if key is None else self._checked(key)
            data = [
                member(f"{name}.{extension}", value)
                for extension, column in members
                if (value := column[slot]) is not None
            ]
            self._add(name, b"".join(data or [member(f"{name}.{self._empty}", b"")]))

    def finish(self) -> None:
        """Ends the last tar; one without samples if there were none."""
        if self._file is None:
            self._begin()
        self._end()

    def _add(self, key: str, data: bytes) -> None:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest() if self._key else b""
        if self._file is not None and not self._target.single and self._keys and self._is_full(len(data), digest):
            self._end()
        if self._file is None:
            self._begin()
        assert self._file is not None
        if digest in self._keys and self._key:
            raise ExportError(
                f"sample {self._num_samples} has the key {key!r:.80}, which an earlier one of the same tar has: export into a "
                f"folder, where it starts another tar, or {_NUMBERS}",
                sample_id=self._num_samples,
            )
        self._keys.add(digest)
        self._file.write(data)
        self._num_samples += 1

    def _is_full(self, num_bytes: int, digest: bytes) -> bool:
        assert self._file is not None
        # Keys need not differ but within a tar: datasets of several tars often number theirs alike.
        return self._file.num_bytes + num_bytes + len(_END) > self._max_bytes or (
            bool(self._key) and digest in self._keys
        )

    def _begin(self) -> None:
        self._file = self._target.open_next()
        self._file.write(self._note)

    def _end(self) -> None:
        assert self._file is not None
        self._file.write(_END)
        self._file.pad_to(-(-self._file.num_bytes // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)
        self._file = None
        self._keys.clear()
        self._target.finish_file()

    def _checked(self, data: bytes) -> str:
        key = data.decode(errors="replace")
        if reason := _fault(key, data):
            raise ExportError(
                f"sample {self._num_samples} has the {self._key} {key!r:.80}, which cannot be the key of a WebDataset sample: "
                f"{reason}; {_NUMBERS}",
                sample_id=self._num_samples,
            )
        return key


_NUMBERS = "give key='' (--key '') to name the samples by their numbers"


def _fault(key: str, data: bytes) -> str:
    """Returns why a text is no key, or nothing."""
    folders, _, name = key.rpartition("/")
    parts = [*folders.split("/"), name] if "/" in key else [name]
    if not key or any(_BAD_COMPONENT.fullmatch(part) for part in parts):
        return "it is empty, or has an empty, hidden or unprintable part"
    if "." in name:
        return "a key ends at its first dot"
    if _META.fullmatch(parts[0]):
        return "webdataset passes over names such as __name__"
    return f"it has over {_MAX_KEY_BYTES} bytes" if len(data) > _MAX_KEY_BYTES else ""


def member(name: str, data: bytes) -> bytes:
    """Returns a member of a tar, padded: a regular file of nobody's from the year 1970."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") + data + bytes(-len(data) % tarfile.BLOCKSIZE)
