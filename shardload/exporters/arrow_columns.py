"""Columns of a dataset as arrays of Arrow, such that the importer of Parquet gives back each value as it was.

| type | Arrow |
| --- | --- |
| bool, integers, floats | the same; bfloat16 as float, which holds it |
| fixed shapes | fixed-size lists in one another |
| ragged | lists of numbers, or of fixed-size lists |
| `str`; `json` | string; string, of JSON |
| `bytes`, `jpeg`, `png`, `audio`, `video` | binary |
| `bytes[*]`, `str[*]` | lists of these |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ExportError
from shardload.exporters.members import stored_bytes
from shardload.format.ragged import Ragged
from shardload.format.schema import Field
from shardload.reader.batch import Column, SampleBatch, typed_values

_MAX_VALUE_BYTES = (1 << 31) - 1
_LEAVES = {"bool": "bool_", "bfloat16": "float32"}


def pyarrow(target: str) -> Any:
    """Returns the package pyarrow.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ExportError(
            f"{target} is written by the package pyarrow, which is not installed: pip install 'shardload[parquet]'"
        ) from None
    return pyarrow


def arrow_type(field: Field) -> Any:
    """Returns the type of the column of a field."""
    pa = pyarrow("it")
    if not field.numeric:
        one = pa.string() if field.kind in ("str", "json") else pa.binary()
        return pa.list_(one) if field.listed else one
    kind = getattr(pa, _LEAVES.get(field.kind, field.kind))()
    for length in reversed(field.shape):
        kind = pa.list_(kind, length)
    return pa.list_(kind) if field.ragged else kind


def arrow_array(batch: SampleBatch, name: str) -> Any:
    """Returns a column as an array, null where a value is missing.

    Raises:
        ExportError: a value is larger than Parquet can hold; names field and sample.
        FormatError: a value is none of its field's.
    """
    pa = pyarrow("it")
    column = batch.columns[name]
    kind = arrow_type(column.field)
    if column.field.ragged:
        return _ragged(batch, column)
    if column.field.numeric:
        values = np.ascontiguousarray(typed_values(column.field, np.asarray(column.values)))
        if not column.field.shape:
            return pa.array(values, kind, mask=_missing(column))
        return _nested(values, column.field.shape, _missing(column))
    if column.field.listed:
        lists = batch.values_of(name)
        _check_sizes(batch, column, [0 if one is None else sum(map(len, one)) for one in lists])
        return pa.array(lists, kind)
    data = stored_bytes(batch, column)
    _check_sizes(batch, column, [len(one or b"") for one in data])
    if column.field.kind not in ("str", "json"):
        return pa.array(data, kind)
    try:
        return pa.array([None if one is None else one.decode() for one in data], kind)
    except UnicodeDecodeError:
        # Names the sample.
        batch.values_of(name)
        raise


def _missing(column: Column) -> NDArray[np.bool_] | None:
    return None if column.valid is None else ~column.valid


def _ragged(batch: SampleBatch, column: Column) -> Any:
    pa = pyarrow("it")
    ragged = column.values
    assert isinstance(ragged, Ragged)
    _check_sizes(batch, column, (np.diff(ragged.offsets) * column.field.num_bytes).tolist())
    values = np.ascontiguousarray(typed_values(column.field, ragged.values))
    items = _nested(values, column.field.shape, None) if column.field.shape else pa.array(values)
    mask = None if column.valid is None else pa.array(~column.valid)
    return pa.ListArray.from_arrays(pa.array(ragged.offsets.astype(np.int32)), items, mask=mask)


def _nested(values: NDArray[Any], shape: tuple[int, ...], missing: NDArray[np.bool_] | None) -> Any:
    """Returns an array of shape (rows, *shape) as fixed-size lists."""
    pa = pyarrow("it")
    found = pa.array(values.reshape(-1))
    for i, length in enumerate(reversed(shape)):
        outermost = i == len(shape) - 1 and missing is not None
        found = pa.FixedSizeListArray.from_arrays(found, length, mask=pa.array(missing) if outermost else None)
    return found


def _check_sizes(batch: SampleBatch, column: Column, sizes: list[int]) -> None:
    if sum(sizes) <= _MAX_VALUE_BYTES:
        return
    slot = int(np.argmax(sizes))
    sample_id = int(batch.sample_ids[slot])
    raise ExportError(
        f"{batch.location}: field {column.field.name!r} of sample {sample_id} has {sizes[slot]:,} bytes, more than Parquet can "
        "hold: leave the field out, with fields (--fields), or export to webdataset",
        dataset=batch.location,
        sample_id=sample_id,
    )
