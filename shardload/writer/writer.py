"""`ShardWriter`: samples in, a dataset out, whole or not at all."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from shardload.codecs import make_codec
from shardload.errors import PackError
from shardload.format.manifest import Manifest, Metadata, check_metadata
from shardload.format.schema import Schema, parse_schema
from shardload.quantities import parse_bytes
from shardload.storage import OPERATIONS, Operations
from shardload.writer.encode import SampleEncoder
from shardload.writer.shard import UnitWriter
from shardload.writer.target import Target, write_error

DEFAULT_SHARD_SIZE = "256MiB"
DEFAULT_COMPRESSION = "none"

_FAILED = "out of use since a write failed, and nothing was published"
_ABANDONED = "abandoned"


class ShardWriter:
    """Writes samples, in the order given, into a new dataset that appears when the writer is closed without an error.

    ```python
    with shardload.ShardWriter("out/", schema={"image": "jpeg", "label": "int64"}) as writer:
        writer.write({"image": data, "label": 3})
    ```

    Nothing is touched before the first `write` or the `with` block. Memory stays below about one shard: wide values
    (fixed fields of 512 bytes and more) are kept until their shard is closed. Not safe to use from several threads, nor
    from a process forked after the first `write`. A writer that is dropped without `close` is abandoned, with a warning.
    """

    _place: Target | None = None
    _ended = ""

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: Mapping[str, str],
        *,
        compression: str = DEFAULT_COMPRESSION,
        shard_size: int | str = DEFAULT_SHARD_SIZE,
        replace: bool = False,
        metadata: Metadata | None = None,
        operations: Operations = OPERATIONS,
    ) -> None:
        """Describes the dataset to be written.

        Args:
            target: directory of the dataset; created if it is not there.
            schema: field name -> type, such as `{"image": "jpeg", "label": "int64", "caption": "str?"}`.
            compression: `none` or `zstd:<level>`, for fields of bytes, str and json; encoded media stays as it is.
            shard_size: most bytes of a shard file, as a number or text such as 256MiB.
            replace: write the next version of a dataset that is there; readers keep the version they opened.
            metadata: facts kept in the manifest: text, integers or lists of text by name.
            operations: the file operations; tests replace them.

        Raises:
            FormatError: the schema, compression or metadata is not of the format.
            ValueError: the shard size is not a size.
        """
        self.target = os.fspath(target)
        codec = make_codec(compression)
        self.schema: Schema = parse_schema(schema, compression.partition(":")[0])
        self.num_samples = 0
        self._shard_size = parse_bytes(shard_size, "shard_size")
        self._compression = compression
        self._replace = replace
        self._metadata = check_metadata(metadata or {})
        self._operations = operations
        self._encoder = SampleEncoder(self.schema, codec)
        self._unit: UnitWriter | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds one sample.

        Args:
            sample: field name -> value for every field; None, or no entry, for a nullable one that is missing. Arrays
                are of numpy or torch, or nested lists, and are copied.

        Raises:
            PackError: the sample does not fit the schema (names field, expected and got; the writer can go on), or the
                storage failed (nothing will be published).
        """
        unit = self._open()
        encoded = self._encoder.encode(sample, f"sample {self.num_samples}")
        try:
            unit.add(encoded)
        except BaseException as error:
            self._give_up(_FAILED)
            if isinstance(error, OSError):
                raise write_error(self.target, error) from error
            raise
        self.num_samples += 1

    def close(self) -> Manifest | None:
        """Brings everything to the device and publishes the dataset; returns its manifest, or None if already closed.

        Raises:
            PackError: the storage failed or another writer came first; nothing was published.
        """
        if self._ended and self._ended != _FAILED:
            return None
        # After a failed write this refuses: who caught that error must not take the end of the block for a commit.
        unit = self._open()
        assert self._place is not None
        try:
            entries = unit.finish()
            manifest = self._place.commit(self.schema, entries, self._shard_size, self._compression, self._metadata)
        except BaseException as error:
            self._give_up(_ABANDONED)
            if isinstance(error, OSError):
                raise write_error(self.target, error) from error
            raise
        self._ended = "closed"
        return manifest

    def abandon(self) -> None:
        """Gives up: removes what was written, as far as the storage lets it; no dataset appears.

        In a process forked from the writer's own this only closes what the child has open.
        """
        if not self._ended:
            self._give_up(_ABANDONED)

    def __del__(self) -> None:
        place = self._place
        # At the end of the interpreter half of what a clean-up needs may be gone, and the lock goes anyway.
        if self._ended or place is None or sys.is_finalizing():
            return
        self.abandon()
        if place.is_mine:
            warnings.warn(
                f"{self.target}: a ShardWriter was dropped without close() or abandon(): nothing was published",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _give_up(self, end: str) -> None:
        # First of all: also after a clean-up that fails a later close() must know.
        self._ended = end
        try:
            if self._unit is not None:
                self._unit.abandon()
        finally:
            if self._place is not None:
                self._place.abandon()

    def _open(self) -> UnitWriter:
        if self._ended:
            raise PackError(f"{self.target}: this writer is {self._ended}; make a new one", dataset=self.target)
        if self._unit is None:
            self._place = Target(self.target, self._replace, self._operations)
            self._unit = UnitWriter(self._place.storage, self.schema, self._place.generation, 0, self._shard_size)
        elif self._place is not None:
            self._place.check_process()
        return self._unit
