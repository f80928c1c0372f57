"""What the fields of a shard hold, worked out when it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.record import record_layout
from shardload.format.rows import count_column, row_layout, valid_mask
from shardload.format.schema import Field, Schema
from shardload.format.statistics import FieldStatistics, of_lengths, range_of
from shardload.writer.columns import Column


def shard_statistics(
    schema: Schema, row_table: bytearray, record_lengths: bytearray, columns: Sequence[Column]
) -> list[FieldStatistics]:
    """Returns the statistics of all fields.

    Args:
        schema: the fields.
        row_table: the packed rows of all samples.
        record_lengths: the lengths in the headers of all records.
        columns: wide fields and streams, finished.
    """
    rows = np.frombuffer(row_table, dtype=row_layout(schema).dtype)
    fields = record_layout(schema).fields
    lengths = np.frombuffer(record_lengths, dtype="<u4").reshape(len(rows), len(fields)) if fields else None
    ranges = {column.field.name: column.range for column in columns}
    result = []
    for field in schema.fields:
        valid: Any = valid_mask(rows, schema, field) if field.nullable else slice(None)
        missing = len(rows) - int(valid.sum()) if field.nullable else 0
        if field.in_record:
            assert lengths is not None
            one = of_lengths(_stored_lengths(field, lengths[:, fields.index(field)][valid]), missing)
        elif field.streamed:
            one = of_lengths(rows[count_column(field)][valid], missing) + ranges[field.name]
        else:
            one = FieldStatistics(missing, len(rows) - missing)
            one += ranges[field.name] if field.wide else range_of(field, rows[field.name][valid])
        result.append(one)
    return result


def _stored_lengths(field: Field, lengths: NDArray[Any]) -> NDArray[Any]:
    return lengths // field.num_bytes if field.ragged else lengths
