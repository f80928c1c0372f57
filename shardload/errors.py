"""The errors of shardload, by what the caller can do.

```
ShardloadError
├── FormatError (ValueError)           the bytes are not what the format promises: restore or repack
│   ├── ChecksumError                  bytes have changed since they were written
│   └── UnsupportedVersionError        written by another version: use the one it names
├── StorageError (OSError)             a file cannot be read or written: mend the storage and try again
├── StateMismatchError (ValueError)    a loader state belongs to other data or another order
├── PackError                          packing was refused or failed; nothing was published
├── ExportError                        an export was refused or failed; nothing was left at the target
├── FaultLimitError (RuntimeError)     too many samples cannot be used: see what happened to the dataset or the transform
└── LoaderClosedError (RuntimeError)   the loader or iterator was closed
```

Each keeps its facts as attributes (None where they are not known) and survives pickling. Bad arguments stay plain
`ValueError`, `TypeError` and `IndexError`.
"""

from __future__ import annotations

from typing import Any


class ShardloadError(Exception):
    """Base of all errors of shardload.

    Attributes:
        dataset: location of the dataset.
        shard: name of the shard or other file inside the dataset.
        start: first byte of the range concerned.
        stop: byte after the range concerned.
        sample_id: sample concerned.
    """

    def __init__(
        self,
        message: str,
        *,
        dataset: str | None = None,
        shard: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        sample_id: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.dataset = dataset
        self.shard = shard
        self.start = start
        self.stop = stop
        self.sample_id = sample_id

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: getattr(self, name) for name in ("dataset", "shard", "start", "stop", "sample_id")}
        # The notes as well: in a process of the loader they say where it came from.
        notes = getattr(self, "__notes__", None)
        return _rebuild, (type(self), self.message, facts), notes and {"__notes__": notes}


def _rebuild(kind: type[ShardloadError], message: str, facts: dict[str, Any]) -> ShardloadError:
    return kind(message, **facts)


class FormatError(ShardloadError, ValueError):
    """The bytes are not what the format promises."""


class ChecksumError(FormatError):
    """The bytes have changed since they were written."""


class UnsupportedVersionError(FormatError):
    """The data was written in a version of the format, or with a feature, that this version does not read."""


class StorageError(ShardloadError, OSError):
    """A file could not be read or written."""


class StateMismatchError(ShardloadError, ValueError):
    """A saved state belongs to another dataset, seed, recipe or version."""


class PackError(ShardloadError):
    """Packing was refused or failed; the target shows no new dataset."""


class ExportError(ShardloadError):
    """An export was refused or failed; nothing was left at its target."""


class FaultLimitError(ShardloadError, RuntimeError):
    """More samples could not be used, and had others in their place, than `max_faults` allows."""


class LoaderClosedError(ShardloadError, RuntimeError):
    """The loader or the iterator was closed."""
