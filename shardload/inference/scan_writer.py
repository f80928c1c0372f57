"""`ScanWriter`: the results of a scan as a dataset whose sample i belongs to sample i of what was scanned."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from shardload.codecs import make_codec
from shardload.errors import PackError
from shardload.format.manifest import Manifest, Metadata, check_metadata
from shardload.format.schema import FieldType, parse_schema
from shardload.inference.output import Output
from shardload.inference.pieces import Pieces, default_piece_samples
from shardload.loader.scan import Scan
from shardload.order.cursor import RankBatch
from shardload.order.spans import Spans
from shardload.quantities import as_integer, parse_bytes
from shardload.writer.batch import EncodedBatch
from shardload.writer.describe import make_recipe
from shardload.writer.failures import named
from shardload.writer.job import JobRecord, current_versions
from shardload.writer.shared import SharedTarget
from shardload.writer.values import ValueMismatch, rows_of
from shardload.writer.writer import DEFAULT_COMPRESSION, DEFAULT_SHARD_SIZE

INPUT_FACT = "input_fingerprint"
"""Name of the fact that names what was scanned, in the metadata of the output."""

_FAILED = "out of use since a write failed"
_STAYS = "what was finished stays: the same call goes on after it"

_log = logging.getLogger("shardload")


class ScanWriter:
    """Writes the results of a scan as one dataset. All ranks write parts of it at once, and none talks to another.

    ```python
    scan = shardload.scan(dataset, 256)
    with shardload.ScanWriter("results/", {"logits": "float32[10]"}, scan) as job:
        for batch in job:
            job.write({"logits": model(batch["image"])})
    ```

    Sample i of the output belongs to sample i of the scanned dataset. The samples are cut into pieces, whatever the ranks,
    and rank r of R has the pieces r, r + R, ...; each batch is of one piece. A piece becomes one unit of the output, so that
    its bytes are the same for any number of ranks and interruptions, if equal batches have equal results.

    Whatever is killed, the same call goes on after the last part that was finished, a shard or the end of a piece; also with
    another number of ranks. The dataset appears when the last piece of all ranks is there and its rank closes; any rank that
    is run again then publishes what the others have left.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        schema: Mapping[str, FieldType],
        scan: Scan,
        *,
        compression: str = DEFAULT_COMPRESSION,
        shard_size: int | str = DEFAULT_SHARD_SIZE,
        piece_samples: int | None = None,
        replace: bool = False,
        metadata: Metadata | None = None,
    ) -> None:
        """Describes the output; nothing is touched before the `with` block or the first batch.

        Args:
            target: directory of the output; the same for all ranks.
            schema: field name -> type of the results, as for `ShardWriter`.
            scan: what is scanned; the writer iterates over it.
            compression: `none` or `zstd:<level>`.
            shard_size: most bytes of a shard file.
            piece_samples: samples of a piece, and most that a kill of a rank may cost; None for a 1024th of all, between 1,024 and
                65,536, in whole batches, or what an unfinished job has. A piece costs some 2 ms of a core and two flushes of the
                device: of a job whose samples take microseconds, larger ones are worth more than what a kill may cost.
            replace: write the next version of a dataset that is there, which another job has written.
            metadata: facts kept in the manifest, beside `input_fingerprint`. They are part of the job: name your model here, so
                that results of another one are not taken for finished work.

        Raises:
            FormatError: the schema, compression or metadata is not of the format.
            ValueError: another argument cannot be.
        """
        self.target = os.fspath(target)
        self.scan = scan
        self.manifest: Manifest | None = None
        """Of the output, once it is published."""
        self.num_samples = 0
        """Samples whose results were taken here."""
        self.write_seconds = 0.0
        """Time that `write` has taken from the loop."""
        make_codec(compression)
        codec = compression.partition(":")[0]
        self.schema = parse_schema(schema, codec)
        self._compression = compression
        self._shard_size = parse_bytes(shard_size, "shard_size")
        given = piece_samples is not None
        self._piece_samples = as_integer(piece_samples, "piece_samples", 1) if given else None
        self._replace = replace
        if INPUT_FACT in (metadata or {}):
            raise ValueError(f"metadata: {INPUT_FACT!r} is what the writer itself notes")
        self._metadata = check_metadata({INPUT_FACT: scan.dataset.fingerprint, **(metadata or {})})
        self._output: Output | None = None
        self._batches: Iterator[Any] | None = None
        self._ids: Iterator[RankBatch] = iter(())
        self._spans = Spans((), scan.batch_size)
        self._due: RankBatch | None = None
        self._ended = ""

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._leave("left by an error")
        self._tell_what_stays(error)

    def __iter__(self) -> Self:
        """Returns itself: the batches that this rank has still to do."""
        self._open()
        return self

    def __len__(self) -> int:
        """Returns how many batches this rank had to do when it began."""
        self._open()
        return self._spans.num_batches()

    def __next__(self) -> Any:
        self._open()
        self._check_written()
        if self._batches is None:
            raise StopIteration
        batch = next(self._batches)
        self._due = next(self._ids)
        return batch

    def write(self, results: Mapping[str, Any]) -> None:
        """Takes the results of the batch that was given last, one row for each of its samples.

        They are written in threads meanwhile: what fails there is raised by a later call, at the latest by `close`.

        Args:
            results: field name -> array or tensor of shape (batch, *field_shape) on any device, or a list of values; a nullable
                field may be left out. All are copied.

        Raises:
            PackError: the results do not fit the batch or the schema, of which then nothing is written and the right ones may be
                given; or the storage failed, with these or with earlier ones.
        """
        start = time.perf_counter()
        output = self._open()
        due = self._due
        if due is None:
            raise PackError(f"{self.target}: results go with a batch: take the next one before they are written")
        samples = self._encoded(output, results, due)
        try:
            output.write(samples, int(due.positions[0]))
        except BaseException:
            self._leave(_FAILED)
            raise
        self._due = None
        self.num_samples += len(due.positions)
        self.write_seconds += time.perf_counter() - start

    def close(self) -> Manifest | None:
        """Ends this rank's part; publishes the output if the results of all ranks are there.

        Returns:
            The manifest of the output, or None while other ranks have something left.

        Raises:
            PackError: the last batch has no results yet, or the storage failed.
        """
        if self._ended:
            return self.manifest
        output = self._open()
        try:
            self._check_written()
            self.manifest = output.publish()
        except PackError as error:
            self._tell_what_stays(error)
            raise
        finally:
            self._leave("closed")
        return self.manifest

    def _tell_what_stays(self, error: BaseException) -> None:
        if not isinstance(error, PackError) or self._output is None or not self._output.has_parts:
            return
        if not error.message.endswith(_STAYS):
            error.message += f"; {_STAYS}"

    def _open(self) -> Output:
        if self._ended:
            raise PackError(f"{self.target}: this writer is {self._ended}; make a new one", dataset=self.target)
        if self._output is None:
            try:
                self._begin()
            except BaseException:
                # Who meets this in `with` gets no writer to close.
                self._leave("left by an error")
                raise
        assert self._output is not None
        return self._output

    def _begin(self) -> None:
        ranks = self.scan.ranks
        if ranks.num_copies > 1:
            raise ValueError(
                f"{ranks.num_copies} processes of the mesh read the same samples, and only one of them can write their "
                "results: scan with num_replicas= and rank= on that one"
            )
        rank = self.scan.fix_rank()
        self._output = output = self._begun()
        spans = self._spans = output.left(ranks.num_replicas, rank, self.scan.batch_size)
        if output.is_published:
            _log.warning("%s: this job is complete already, with nothing left to do", self.target)
        if spans.num_samples:
            self._ids = spans.batches(0, lambda positions: positions)
            self._batches = self.scan.over(spans)

    def _begun(self) -> Output:
        num_samples = self.scan.dataset.orders(False).num_positions
        options = {
            "compression": self._compression,
            INPUT_FACT: self.scan.dataset.fingerprint,
            "metadata": self._metadata,
            "num_samples": num_samples,
            "schema": self.schema.canonical,
            "shard_size": self._shard_size,
        }
        record = JobRecord(options, [], current_versions())
        size, given = self._piece_samples, self._piece_samples is not None
        size = size or default_piece_samples(num_samples, self.scan.batch_size)
        place = SharedTarget(self.target, record, size, given, "replace" if self._replace else "create")
        try:
            with named(place.root):
                pieces = Pieces(num_samples, place.unit_samples)
                facts = (self._compression, b"", self._metadata, self._shard_size, len(pieces))
                return Output(place, make_recipe(place, self.schema, *facts), pieces)
        except BaseException:
            place.leave()
            raise

    def _encoded(self, output: Output, results: Mapping[str, Any], due: RankBatch) -> EncodedBatch:
        """Returns the rows as they are stored; all of them, before any is written."""
        first, num_rows = int(due.positions[0]), len(due.positions)
        where = f"{self.target}: results of samples {first} to {first + num_rows}"
        if not isinstance(results, Mapping):
            raise PackError(f"{where}: expected a mapping of field name to rows, got {type(results).__name__}")
        columns = {}
        for name, value in results.items():
            try:
                columns[name] = rows_of(value)
            except ValueMismatch as error:
                raise PackError(f"{where}: field {name!r}: {error}", dataset=self.target) from None
            if len(columns[name]) != num_rows:
                raise PackError(
                    f"{where}: field {name!r}: expected {num_rows} rows, one for each sample of the batch, got "
                    f"{len(columns[name])}",
                    dataset=self.target,
                )
        return output.encoder.encode(columns, first, num_rows)

    def _check_written(self) -> None:
        if self._due is not None:
            first, num_rows = int(self._due.positions[0]), len(self._due.positions)
            raise PackError(
                f"{self.target}: the results of samples {first} to {first + num_rows} were not written: write() those of each "
                "batch before the next one is taken",
                dataset=self.target,
            )

    def _leave(self, end: str) -> None:
        self._ended = self._ended or end
        batches, self._batches = self._batches, None
        try:
            if batches is not None:
                batches.close()  # type: ignore[attr-defined]
        finally:
            if self._output is not None:
                self._output.leave()
