from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.format.layout import PAGE_BYTES
from shardload.format.rows import VALIDITY, row_layout, valid_mask, widen_rows
from shardload.format.schema import parse_schema


def places(types: dict[str, str]) -> dict[str, int]:
    dtype = row_layout(parse_schema(types)).dtype
    assert dtype.names is not None and dtype.fields is not None
    return {name: dtype.fields[name][1] for name in dtype.names} | {"": dtype.itemsize}


def test_golden_layout() -> None:
    types = {
        "a": "int8", "b": "str?", "c": "float64?", "d": "bfloat16[3]", "e": "uint8[600]", "f": "int32", "g": "float32[128]",
        "h": "bool?", "i": "uint64[2]",
    }  # fmt: skip
    assert places(types) == {
        "_place": 0, "c": 8, "i": 16, "_stored": 32, "_raw": 36, "_sum_e": 40, "_sum_g": 44, "f": 48, "d": 52, "a": 58,
        "h": 59, "_validity": 60, "": 64,
    }  # fmt: skip


def test_small_rows() -> None:
    assert places({"a": "bool"}) == {"a": 0, "": 1}
    assert places({"a": "bool", "b": "int16"}) == {"b": 0, "a": 2, "": 4}
    assert places({"a": "bytes"}) == {"_place": 0, "_stored": 8, "_raw": 12, "": 16}
    assert places({"a": "uint8[512]"}) == {"_sum_a": 0, "": 4}
    assert places({str(n): "int8?" for n in range(9)})["_validity"] == 9
    assert places({str(n): "int8?" for n in range(9)})[""] == 11


def test_streams() -> None:
    types = {"a": "int8?", "s": "uint16[*]", "w": "uint8[512]", "t": "float32[*,80]?", "b": "bytes", "f": "float64"}
    assert places(types) == {
        "_place": 0, "_start_s": 8, "_start_t": 16, "f": 24, "_stored": 32, "_raw": 36, "_sum_w": 40, "_count_s": 44,
        "_count_t": 48, "a": 52, "_validity": 53, "": 56,
    }  # fmt: skip
    assert places({"s": "uint8[*]"}) == {"_start_s": 0, "_count_s": 8, "": 16}


def test_rows_of_an_earlier_generation() -> None:
    types = {"a": "int8?", "s": "uint16[*]", "b": "bytes?"}
    later = types | {"c": "float64?", **{str(n): "uint8[*]?" for n in range(8)}}
    old, new = parse_schema(types), parse_schema(later)
    rows = np.zeros(3, row_layout(old).dtype)
    rows["a"], rows["_place"], rows["_start_s"], rows["_count_s"] = [1, 2, 3], [16, 32, 48], [0, 2, 2], [2, 0, 9]
    # The bits above the second are those of no field of theirs, and of later fields in the whole schema.
    rows[VALIDITY] = [[1 | 0xF0], [2 | 4], [3]]
    wide = widen_rows(rows, old, new)
    assert wide.dtype == row_layout(new).dtype and wide[VALIDITY].shape == (3, 2)
    for name in set(rows.dtype.names or ()) - {VALIDITY}:
        assert wide[name].tolist() == rows[name].tolist()
    for name, valid in (("a", [True, False, True]), ("b", [False, True, True]), ("c", [False] * 3), ("7", [False] * 3)):
        assert valid_mask(wide, new, new[name]).tolist() == valid
    # Where the first nullable fields come later there is no validity to be taken over.
    bare = parse_schema({"x": "int8"})
    wide = widen_rows(np.ones(2, row_layout(bare).dtype), bare, parse_schema({"x": "int8", "y": "str?"}))
    assert wide["x"].tolist() == [1, 1] and not wide[VALIDITY].any() and not wide["_stored"].any()


KINDS = st.sampled_from(
    ["uint16[*]", "float32[*,80]?", "str[*]",
     "int8", "uint16", "int32[3]", "float64", "bool[7]", "bfloat16", "float16[5]?", "str", "json?", "uint8[512]", "int64?",
     "float64[63]", "uint8[511]?"]
)  # fmt: skip


@given(st.lists(KINDS, min_size=1, max_size=40))
def test_every_column_lies_on_its_scalar(kinds: list[str]) -> None:
    schema = parse_schema({str(number): kind for number, kind in enumerate(kinds)})
    rows = row_layout(schema)
    assert rows.dtype.names is not None and rows.dtype.fields is not None
    stop = 0
    for name in rows.dtype.names:
        dtype, offset = rows.dtype.fields[name][:2]
        assert offset == stop and offset % dtype.base.itemsize == 0 and rows.dtype.itemsize % dtype.base.itemsize == 0
        stop = offset + dtype.itemsize
    assert 0 <= rows.dtype.itemsize - stop < 8
    # So whole columns of a gathered batch are aligned arrays.
    assert all(np.zeros(3, rows.dtype)[name].flags.aligned for name in rows.dtype.names)


@pytest.mark.parametrize("size", [1, 3, 511, 8192])
@pytest.mark.parametrize("count", [1, 2, 33, 16_384, 16_385])
def test_pages(size: int, count: int) -> None:
    fields = {str(n): "uint8[511]" for n in range(size // 511)} | {f"r{n}": "uint8" for n in range(size % 511)}
    rows = row_layout(parse_schema(fields))
    assert rows.dtype.itemsize == size and rows.rows_per_page == max(1, PAGE_BYTES // size)
    bounds = [rows.page_bounds(page, count) for page in range(rows.num_pages(count))]
    assert bounds[0][0] == 0 and bounds[-1][1] == count * size
    assert all(stop - start == rows.rows_per_page * size for start, stop in bounds[:-1])
    assert [start for start, _ in bounds[1:]] == [stop for _, stop in bounds[:-1]]


def test_a_row_larger_than_a_page_is_a_page() -> None:
    rows = row_layout(parse_schema({str(n): "uint8[500]" for n in range(40)}))
    assert (rows.rows_per_page, rows.num_pages(3), rows.page_bounds(1, 3)) == (1, 3, (20_000, 40_000))


@given(st.lists(st.lists(st.booleans(), min_size=11, max_size=11), max_size=9))
def test_validity_bits(valid: list[list[bool]]) -> None:
    schema = parse_schema({"x": "int8"} | {str(n): "int8?" for n in range(11)})
    rows = np.zeros(len(valid), row_layout(schema).dtype)
    for row, bits in zip(rows, valid, strict=True):
        number = sum(bit << place for place, bit in enumerate(bits))
        row["_validity"] = np.frombuffer(number.to_bytes(2, "little"), "u1")
    for place, field in enumerate(schema.nullable_fields):
        assert valid_mask(rows, schema, field).tolist() == [bits[place] for bits in valid]
