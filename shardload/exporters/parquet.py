"""Parquet files: one sample a row, in row groups of bounded size; what Arrow cannot say stands in the schema's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardload.exporters.arrow_columns import arrow_array, arrow_type, pyarrow
from shardload.exporters.target import Target
from shardload.format.manifest import Metadata
from shardload.format.note import NOTE_NAME, make_note
from shardload.format.schema import Field
from shardload.reader.batch import SampleBatch
from shardload.storage import FileWriter

ROW_GROUP_BYTES = 32 << 20
"""Bytes of the values in a row group before they are encoded: so many are held."""


class _Sink:
    """A file as pyarrow writes to it. Takes nothing any more once it is closed: pyarrow would end the file of a lost export."""

    closed = False

    def __init__(self, file: FileWriter) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        """Writes all of the data."""
        view = memoryview(data).cast("B")
        if not self.closed:
            self._file.write(view)
        return len(view)

    def tell(self) -> int:
        """Returns the bytes written."""
        return self._file.num_bytes

    def flush(self) -> None:
        """Does nothing: the target brings files to the device."""

    def close(self) -> None:
        """Ends the writing."""
        self.closed = True


class ParquetFiles:
    """Writes samples into Parquet files of about a size."""

    def __init__(
        self,
        target: Target,
        fields: Sequence[Field],
        metadata: Metadata,
        max_bytes: int,
        group_bytes: int = ROW_GROUP_BYTES,
    ) -> None:
        """Describes the files.

        Args:
            target: what they belong to.
            fields: what samples have.
            metadata: facts of the dataset.
            max_bytes: a file that has so many bytes takes no more row groups.
            group_bytes: most bytes of values in a row group, unless one sample has more.

        Raises:
            ExportError: pyarrow is missing.
        """
        pa = pyarrow(target.path)
        columns = [pa.field(field.name, arrow_type(field), field.nullable) for field in fields]
        note = make_note(fields, [field.name for field in fields], metadata)
        self._schema = pa.schema(columns, {NOTE_NAME: note.encode()})
        self.stored = {column.name: str(column.type) for column in self._schema}
        """Type of the column of each field."""
        self._target = target
        self._max_bytes = max_bytes
        self._group_bytes = min(group_bytes, max_bytes)
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self._writer: Any = None
        self._sink: _Sink | None = None

    def write(self, batch: SampleBatch) -> None:
        """Writes samples, or keeps them until there are enough for a row group."""
        pa = pyarrow("it")
        found = pa.record_batch([arrow_array(batch, name) for name in self._schema.names], self._schema)
        if self._waiting and self._waiting_bytes + found.nbytes > self._group_bytes:
            self._write_group()
        self._waiting.append(found)
        self._waiting_bytes += found.nbytes

    def finish(self) -> None:
        """Ends the last file; one without rows if there were none."""
        self._write_group()
        if self._writer is None and not self._target.num_files:
            self._begin()
        self._end()

    def abandon(self) -> None:
        """Lets a file go that is not finished."""
        if self._sink is not None:
            self._sink.close()

    def _write_group(self) -> None:
        if not self._waiting:
            return
        table = pyarrow("it").Table.from_batches(self._waiting, self._schema)
        self._waiting, self._waiting_bytes = [], 0
        size = max(1, table.num_rows * self._group_bytes // max(self._group_bytes, table.nbytes))
        for start in range(0, table.num_rows, size):
            if self._sink is not None and not self._target.single and self._sink.tell() >= self._max_bytes:
                self._end()
            if self._writer is None:
                self._begin()
            self._writer.write_table(table.slice(start, size))

    def _begin(self) -> None:
        parquet = pyarrow("it").parquet
        self._sink = _Sink(self._target.open_next())
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd", write_page_checksum=True)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._sink = None, None
            self._target.finish_file()
