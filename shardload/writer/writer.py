"""`ShardWriter`: samples in, a dataset out, whole or not at all."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from shardload.codecs import make_codec
from shardload.codecs.dictionary import DictionaryMode, check_dictionary
from shardload.errors import PackError
from shardload.format.manifest import Manifest, Metadata, check_metadata
from shardload.format.schema import FieldType, Schema, parse_schema
from shardload.quantities import parse_bytes
from shardload.storage import OPERATIONS, Operations, is_far, shown
from shardload.writer.batch import BatchEncoder
from shardload.writer.describe import make_recipe, schema_for
from shardload.writer.encode import EncodedSample, SampleEncoder
from shardload.writer.far import staging_place, target_at
from shardload.writer.first import FirstSamples
from shardload.writer.keys import DuplicateKeyError, check_new
from shardload.writer.lock import num_forks
from shardload.writer.shard import UnitWriter
from shardload.writer.target import Mode, Target, write_error
from shardload.writer.values import ValueMismatch, describe, rows_of

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
    (fixed fields of 512 bytes and more) and ragged ones are kept until their shard is closed, and with compression the
    first samples until a dictionary has been trained on them. Not safe to use from several threads, nor from a process
    forked after the first `write`. A writer that is dropped without `close` is abandoned, with a warning.
    """

    _place: Target | None = None
    _ended = ""

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: Mapping[str, FieldType] | None = None,
        *,
        compression: str | None = None,
        dictionary: DictionaryMode = "auto",
        key: str = "",
        shard_size: int | str = DEFAULT_SHARD_SIZE,
        replace: bool = False,
        append: bool = False,
        metadata: Metadata | None = None,
        storage_options: Mapping[str, Any] | None = None,
        staging: str | os.PathLike[str] | None = None,
        operations: Operations = OPERATIONS,
    ) -> None:
        """Describes the dataset to be written.

        Args:
            target: directory of the dataset; created if it is not there. Or an s3:// URL: there each shard is uploaded when
                it is finished.
            schema: field name -> type, such as `{"image": "jpeg", "label": "int64", "caption": "str?"}`; in place of a type
                may stand `{"type": "uint16[*]", "compression": "zstd"}`. Only an append may leave it out, or name new
                nullable fields beside those of the dataset.
            compression: `none` or `zstd:<level>`, for fields of bytes, str, json and lists, and ragged ones that ask for
                it; encoded media stays as it is. None for `none`, or in an append for what the dataset was last written with.
            dictionary: whether a zstd dictionary is trained on the first samples: `auto` (if it pays), `on` or `off`.
            key: name of the field by which samples are looked up; its values must differ.
            shard_size: most bytes of a shard file, as a number or text such as 256MiB.
            replace: write the next version of a dataset that is there; readers keep the version they opened.
            append: add to a dataset that is there, as its next version.
            metadata: facts kept in the manifest: text, booleans, integers or lists of these by name.
            storage_options: for a target that is a URL, as of `open`.
            staging: for a target that is a URL: directory on the disk for what is not uploaded yet; None for one in the user's
                cache directory, by the URL.
            operations: the file operations; tests replace them.

        Raises:
            FormatError: the schema, compression or metadata is not of the format.
            ValueError: the shard size is not a size, or options contradict each other.
        """
        self.target = shown(os.fspath(target)) if is_far(target) else os.fspath(target)
        if is_far(target):
            # Before anything is touched it is known whether datasets are written to such URLs.
            staging_place(os.fspath(target), storage_options, staging)
        self._claim = partial(target_at, os.fspath(target), options=storage_options, staging=staging)
        self.num_samples = 0
        self._mode: Mode = _mode(replace, append)
        if schema is None and not append:
            raise ValueError("schema= is needed, unless samples are appended to a dataset that has one")
        if append and key:
            raise ValueError("key= is that of the dataset; it cannot be given in an append")
        chosen = DEFAULT_COMPRESSION if compression is None else compression
        make_codec(chosen)
        self._types = None if schema is None else dict(schema)
        self._key = key
        self._schema = None if append else parse_schema(schema or {}, chosen.partition(":")[0], key)
        self._shard_size = parse_bytes(shard_size, "shard_size")
        # Of an append that does not say it is known when the dataset is.
        self._compression = "" if append and compression is None else chosen
        self._dictionary = check_dictionary(dictionary, self._compression)
        self._metadata = check_metadata(metadata or {})
        self._operations = operations
        self._encoder: SampleEncoder | None = None
        self._batches: BatchEncoder | None = None
        self._here = _Here(self)
        self._forks = -1
        self._first: FirstSamples | None = None
        self._unit: UnitWriter | None = None

    @property
    def schema(self) -> Schema:
        """The schema; of an append it is known when the writer is open."""
        if self._schema is None:
            self._open()
        assert self._schema is not None
        return self._schema

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
        encoded = self._open().encode(sample, self._here)
        try:
            if self._unit is not None:
                self._unit.add(encoded, self._here)
            else:
                self._keep(encoded)
        except DuplicateKeyError:
            raise
        except BaseException as error:
            self._fail(error)
            raise
        self.num_samples += 1

    def write_batch(self, columns: Mapping[str, Any]) -> None:
        """Adds many samples, given by field, to the same bytes as `write` one by one, at a part of its cost.

        ```python
        writer.write_batch({"image": [first, second], "label": np.array([3, 5])})
        ```

        Numbers come cheapest as one array of the field's own dtype, of shape (samples, *field_shape); bytes and text as a list.

        Args:
            columns: field name -> array or tensor with a row a sample, on any device, or a list of values, as long as the others;
                None stands in a list for a missing value, and a nullable field may be left out. All are copied.

        Raises:
            PackError: a sample does not fit the schema, or its key is not new (names the sample, field, expected and got; nothing
                of the batch was written and the writer can go on), or the storage failed (nothing will be published).
        """
        self._open()
        assert self._batches is not None
        rows, num_rows = self._rows_of(columns)
        batch = self._batches.encode(rows, self.num_samples, num_rows)
        check_new(batch.keys, self.schema.key, self.num_samples, self._key_place)
        stop = self.num_samples + num_rows
        try:
            while self._unit is None and self.num_samples < stop:
                self._keep(batch.sample(num_rows - (stop - self.num_samples)))
                self.num_samples += 1
            if self._unit is not None:
                self._unit.add_batch(batch[num_rows - (stop - self.num_samples) :])
        except BaseException as error:
            self._fail(error)
            raise
        self.num_samples = stop

    def _rows_of(self, columns: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Returns the rows of a batch, and their number."""
        where = f"samples from {self.num_samples} on"
        if not isinstance(columns, Mapping) or not columns:
            got = "an empty one" if isinstance(columns, Mapping) else describe(columns)
            raise PackError(f"{where}: a batch is a mapping of field name to rows, got {got}")
        rows: dict[str, Any] = {}
        for name, value in columns.items():
            try:
                rows[name] = rows_of(value)
            except ValueMismatch as error:
                raise PackError(f"{where}: field {name!r}: {error}") from None
        (first, num_rows), *others = ((name, len(one)) for name, one in rows.items())
        for name, count in others:
            if count != num_rows:
                raise PackError(f"{where}: field {name!r}: expected {num_rows} rows as of field {first!r}, got {count}")
        return rows, num_rows

    def _fail(self, error: BaseException) -> None:
        """Gives up after an error that may have left half of something."""
        self._give_up(_FAILED)
        if isinstance(error, OSError):
            raise write_error(self.target, error) from error

    def close(self) -> Manifest | None:
        """Brings everything to the device and publishes the dataset; returns its manifest, or None if already closed.

        Raises:
            PackError: the storage failed or another writer came first; nothing was published.
        """
        if self._ended and self._ended != _FAILED:
            return None
        # After a failed write this refuses: who caught that error must not take the end of the block for a commit.
        self._open()
        assert self._place is not None
        try:
            if self._place.base is not None and not self.num_samples:
                raise PackError(
                    f"{self.target}: there is no sample to append; nothing was published", dataset=self.target
                )
            unit = self._start()
            entries = unit.finish()
            manifest = self._place.commit(unit.recipe.description, entries)
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

    def _open(self) -> SampleEncoder:
        if self._ended:
            raise PackError(f"{self.target}: this writer is {self._ended}; make a new one", dataset=self.target)
        if self._encoder is not None and num_forks() == self._forks:
            return self._encoder
        if self._place is None:
            self._place, self._forks = self._claim(self._mode, self._operations), num_forks()
        else:
            self._place.check_process()
        if self._encoder is None:
            try:
                self._encoder = self._prepare(self._place)
            except BaseException:
                # Who meets this in `with` gets no writer to close: the claim must not outlive the error.
                self._give_up(_ABANDONED)
                raise
        return self._encoder

    def _prepare(self, place: Target) -> SampleEncoder:
        if place.base is not None:
            self._compression = self._compression or place.base.generations[-1].codec
        codec = self._compression.partition(":")[0]
        self._schema = schema_for(place, self._types, codec, self._key)
        self._first = FirstSamples(self._schema, self._compression, self._dictionary, self._shard_size)
        self._batches = BatchEncoder(self._schema)
        return SampleEncoder(self._schema)

    def _keep(self, sample: EncodedSample) -> None:
        """Keeps a sample while a dictionary is to be trained on it."""
        if self._first is not None and not self._first.add(sample, str(self._here)):
            self._start()

    def _key_place(self, key: bytes) -> str:
        """Returns which sample is known to have a key, given by its digest; empty for none."""
        if self._unit is not None:
            return self._unit.key_place(key)
        return self._first.key_place(key) if self._first is not None else ""

    def _start(self) -> UnitWriter:
        """Returns the unit; at the first call chooses the dictionary and writes what was kept for it."""
        if self._unit is None:
            assert self._place is not None and self._first is not None
            first, self._first = self._first, None
            dictionary = first.dictionary()
            settings = (self._compression, dictionary, self._metadata, self._shard_size, 1)
            recipe = make_recipe(self._place, self.schema, *settings)
            self._unit = UnitWriter(self._place.storage, recipe, 0, on_part=self._place.deliver)
            for sample, place in first.samples:
                self._unit.add(sample, place)
        return self._unit


class _Here:
    """Stands for the sample that is being written: its words are made only when a message needs them."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = weakref.ref(writer)

    def __str__(self) -> str:
        writer = self._writer()
        return f"sample {0 if writer is None else writer.num_samples}"


def _mode(replace: bool, append: bool) -> Mode:
    if replace and append:
        raise ValueError("replace and append exclude each other")
    return "replace" if replace else "append" if append else "create"
