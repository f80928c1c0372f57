"""One value of a sample: what is taken, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shardload.codecs import make_codec
from shardload.errors import FormatError, PackError
from shardload.format.schema import parse_schema
from shardload.writer.encode import SampleEncoder, row_columns
from shardload.writer.pack import RecordPacker
from shardload.writer.values import describe

HUGE = 10**5000


def short(value: Any) -> str:
    """Names a case; pytest's own way has trouble with the huge integer."""
    return ascii(value)[1:-1][:24] if isinstance(value, str) else type(value).__name__


def encode(kind: str, value: Any) -> Any:
    """What is stored for a value: a number, or bytes."""
    schema = parse_schema({"x": kind})
    encoded = SampleEncoder(schema).encode({"x": value}, "sample 7")
    if schema.record_fields:
        return encoded.plain
    return encoded.values[0] if encoded.values else encoded.row[row_columns(schema).index("x")]


def nested(depth: int) -> list[Any]:
    """Returns lists in lists, so many of them."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("kind", "value", "got"),
    [
        ("int8", 128, "int 128, outside -128 to 127"),
        ("int8", -129, "int -129, outside"),
        ("uint8", -1, "int -1, outside 0 to 255"),
        ("int64", 1 << 63, "outside"),
        ("uint64", 1 << 64, "outside 0 to 18446744073709551615"),
        ("int64", HUGE, "int of 16610 bits, outside"),
        ("int64", True, "bool True"),
        ("int64", np.True_, "numpy.bool"),
        ("int64", 1.0, "float 1.0"),
        ("int64", np.float32(1), "numpy.float32"),
        ("int64", "1", "str of length 1"),
        ("int64", b"1", "bytes of length 1"),
        ("int64", [1], "list"),
        ("int64", np.zeros(1, int), r"array of int64 \[1\]"),
        ("int64", 1j, "complex"),
        ("int32", np.int64(1 << 40), "numpy.int64, outside"),
        ("uint8", np.array(300), "outside"),
        ("bool", 1, "int 1"),
        ("bool", np.uint8(1), "numpy.uint8"),
        ("bool", "True", "str"),
        ("float32", True, "bool True"),
        ("float32", "1", "str"),
        ("float32", np.float64(1), "a scalar of float64"),
        ("float16", np.float32(1), "a scalar of float32"),
        ("float32", np.longdouble(1), "a scalar of"),
        ("float16", 65_520.0, "too large for float16"),
        ("float32", 1e39, "too large for float32"),
        ("float32", HUGE, "int of 16610 bits, too large"),
        ("float64", HUGE, "int of 16610 bits, too large"),
        ("bfloat16", 0.1, "float 0.1, which bfloat16 cannot hold exactly"),
        ("bfloat16", 257, "int 257, which bfloat16 cannot"),
        ("bfloat16", 1e39, "cannot hold exactly"),
        ("bfloat16", HUGE, "int of 16610 bits, which bfloat16"),
        ("bfloat16", (1 << 60) + 1, "which bfloat16"),
        ("bfloat16", np.int64((1 << 60) + 1), "which bfloat16"),
        ("bfloat16", np.longdouble(1), "a scalar of"),
        ("bfloat16", 1e-45, "which bfloat16"),
        ("float16", 2049, "int 2049, which float16 cannot hold exactly"),
        ("float32", 16_777_217, "int 16777217, which float32 cannot hold exactly"),
        ("float32", np.int64(16_777_217), "numpy.int64, which float32 cannot hold exactly"),
        ("float32", np.array(16_777_217), "numpy.int64, which float32 cannot hold exactly"),
        ("float64", (1 << 53) + 1, "which float64 cannot hold exactly"),
        ("float64", -(1 << 53) - 1, "which float64 cannot hold exactly"),
        ("float64", (1 << 64) - 1, "which float64 cannot hold exactly"),
        ("float16[2]", [1, 2049], "int 2049, which float16 cannot hold exactly"),
        ("float32[2]", [1, 16_777_217], "int 16777217, which float32 cannot hold exactly"),
        ("float32[2]", (0.5, 16_777_217), "int 16777217, which float32 cannot hold exactly"),
        ("float64[2,2]", [[1, 2], [3, (1 << 53) + 1]], "which float64 cannot hold exactly"),
        ("float64[2]", [0.5, (1 << 53) + 1], "which float64 cannot hold exactly"),
        ("float64[3]", [float("nan"), 0.5, -(1 << 53) - 1], "which float64 cannot hold exactly"),
        ("float64[2]", [-(1 << 63), (1 << 63) - 1], "which float64 cannot hold exactly"),
        ("float64[2]", [np.int64(1), np.uint64((1 << 64) - 1)], "which float64 cannot hold exactly"),
        ("float64[2]", [np.array(0.5), np.array((1 << 53) + 1)], "which float64 cannot hold exactly"),
        ("float64[2]", np.array([1, (1 << 53) + 1]), "which float64 cannot hold exactly"),
        ("float64[100]", np.full(100, (1 << 64) - 1, "u8"), "which float64 cannot hold exactly"),
        ("bfloat16[2]", [0.5, (1 << 53) + 1], "which bfloat16 cannot hold exactly"),
        ("float32[3]", np.zeros(3), r"array of float64 \[3\]"),
        ("float32[3]", np.zeros(4, "f4"), r"array of float32 \[4\]"),
        ("float32[3]", np.zeros((3, 1), "f4"), r"array of float32 \[3, 1\]"),
        ("float32[3]", np.zeros(3, "i4"), r"array of int32 \[3\]"),
        ("float32[3]", np.zeros(3, bool), r"array of bool \[3\]"),
        ("float32[3]", np.zeros(3, "c8"), "array of complex64"),
        ("float32[1]", np.float32(1), "numpy.float32"),
        ("float32[1]", 1.0, "float 1.0"),
        ("float32[3]", None, "None; if it may be missing, its type is float32"),
        ("float32[3]", "abc", "str"),
        ("float32[3]", {1: 2}, "dict"),
        ("int8[2]", np.zeros(2, "i2"), "array of int16"),
        ("int8[2]", np.zeros(2, "u1"), "array of uint8"),
        ("int8[2]", np.zeros(2, bool), "array of bool"),
        ("uint8[600]", np.zeros(600, bool), "array of bool"),
        ("bool[2]", np.zeros(2, "u1"), "array of uint8"),
        ("bool[2]", [0, 1], "a list of int64"),
        ("int8[2]", [1, 128], "out of range"),
        ("int8[2]", [1, 1.0], "a list of float64"),
        ("int8[2]", [True, False], "a list of bool"),
        ("int64[1]", [HUGE], "list"),
        ("uint64[2]", [-1, 1], "out of range"),
        ("int8[2]", [1], r"array of int8 \[1\]"),
        ("int8[2,2]", [[1, 2], [3]], "rows differ in length"),
        ("float16[2]", [1.0, 1e6], "too large for float16"),
        ("float32[2]", ["a", "b"], "a list of <U1"),
        ("bfloat16[2]", [1.0, 0.1], "cannot hold exactly"),
        ("bfloat16[2]", [1, 257], "cannot hold exactly"),
        ("bfloat16[2]", [1, (1 << 60) + 1], "cannot hold exactly"),
        ("bfloat16[2]", np.array([1, 0.1], "f4"), "cannot hold exactly"),
        ("bfloat16[2]", np.zeros(2, "u2"), "array of uint16"),
        ("bfloat16[2]", np.zeros(2, "i8"), "array of int64"),
        ("bytes", "text", "str of length 4"),
        ("bytes", 5, "int 5"),
        ("bytes", [1, 2], "list"),
        ("bytes", np.zeros(3, "u1"), "array of uint8"),
        ("str", b"text", "bytes of length 4"),
        ("str", 5, "int 5"),
        ("str", "ab\ud800", "UTF-8 cannot hold at character 2"),
        ("json", float("nan"), "JSON cannot hold"),
        ("json", {"a": [float("inf")]}, "JSON cannot hold"),
        ("json", {"a": {1, 2}}, "JSON cannot hold"),
        ("json", {"a": b"x"}, "JSON cannot hold"),
        ("json", {(1, 2): 3}, "JSON cannot hold"),
        ("json", {"a": [{1: 2}]}, "the key 1 is not text"),
        ("json", nested(258), "nested over 256 deep"),
        ("json", "\ud800", "JSON cannot hold"),
        ("json", HUGE, "JSON cannot hold"),
        ("jpeg", b"\x89PNG\r\n\x1a\n", "bytes that start with"),
        ("png", b"\x89PN", "bytes that start with"),
        ("png", b"", "bytes that start with b''"),
        ("jpeg", "text", "str of length 4"),
    ],
    ids=short,
)  # fmt: skip
def test_refused_with_expected_and_got(kind: str, value: Any, got: str) -> None:
    expected = kind if kind not in ("jpeg", "png") or isinstance(value, bytes) else "bytes"
    with pytest.raises(PackError, match=got) as caught:
        encode(kind, value)
    assert str(caught.value).startswith(f"sample 7: field 'x': expected {expected}, got ")
    assert len(str(caught.value)) < 300


def test_deeply_nested_json_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PackError, match="JSON cannot hold"):
        encode("json", deep)
    while deep:  # taken apart one by one: the interpreter's own recursion would free it otherwise
        deep = deep[0]


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("int8", -128, -128),
        ("uint64", (1 << 64) - 1, (1 << 64) - 1),
        ("int64", np.uint8(3), 3),
        ("uint8", np.int64(255), 255),
        ("int64", np.array(3), 3),
        ("bool", True, 1),
        ("bool", np.False_, 0),
        ("bool", np.array(True), 1),
        ("float32", 3, 3.0),
        ("float32", 0.1, 0.1),  # rounded when it is packed
        ("float32", 16_777_217.0, 16_777_217.0),
        ("float32", 16_777_218, 16_777_218.0),
        ("float32", -(1 << 127), -(2.0**127)),
        ("float64", 1 << 62, 2.0**62),
        ("float64", np.uint64(1 << 63), 2.0**63),
        ("float32[2]", [16_777_217.0, 1], np.array([16_777_216, 1], "<f4").tobytes()),
        ("float32[2]", [16_777_217.0, 16_777_218], np.array([16_777_216, 16_777_218], "<f4").tobytes()),
        ("float32[2]", [1 << 40, 0.1], np.array([1 << 40, 0.1], "<f4").tobytes()),
        ("float32[2]", [float("nan"), float("inf")], np.array([np.nan, np.inf], "<f4").tobytes()),
        ("float32[2]", [np.float16(1.5), np.float16(2)], np.array([1.5, 2], "<f4").tobytes()),
        ("float64[2]", [-(1 << 63), 1 << 62], np.array([-(2.0**63), 2.0**62]).tobytes()),
        ("float64[2]", np.array([-(1 << 63), 1 << 62]), np.array([-(2.0**63), 2.0**62]).tobytes()),
        ("float64", np.float32(0.5), 0.5),
        ("float32", np.float16(0.5), 0.5),
        ("float32", np.int8(3), 3.0),
        ("float32", float("inf"), float("inf")),
        ("float16", 65_504.0, 65_504.0),
        ("bfloat16", 1.0, 0x3F80),
        ("bfloat16", -0.0, 0x8000),
        ("bfloat16", 256, 0x4380),
        ("bfloat16", 1 << 60, 0x5D80),
        ("bfloat16", np.uint64(1 << 63), 0x5F00),
        ("bfloat16", float("inf"), 0x7F80),
        ("bfloat16", float("-inf"), 0xFF80),
        ("bfloat16", float("nan"), 0x7FC0),
        ("bfloat16", 2.0**-133, 0x0001),
        ("bfloat16", np.float64(1.5), 0x3FC0),
        ("float64[2]", np.array([1, 2], "f4"), np.array([1, 2.0]).tobytes()),
        ("float32[2]", np.array([1, 2], ">f4"), np.array([1, 2], "<f4").tobytes()),
        ("float32[2]", np.array([1, 2], "i2"), np.array([1, 2], "<f4").tobytes()),
        ("float32[2]", [0.1, 2], np.array([0.1, 2], "<f4").tobytes()),
        ("float32[2]", (1, 2), np.array([1, 2], "<f4").tobytes()),
        ("int32[2,3]", np.asfortranarray(np.arange(6, dtype="i4").reshape(2, 3)), np.arange(6, dtype="<i4").tobytes()),
        ("int32[3]", np.arange(6, dtype="i4")[::2], np.array([0, 2, 4], "<i4").tobytes()),
        ("int32[3]", np.arange(6, dtype="i4")[5::-2], np.array([5, 3, 1], "<i4").tobytes()),
        ("uint64[1]", [(1 << 64) - 1], b"\xff" * 8),
        ("bool[3]", [True, False, True], b"\1\0\1"),
        ("bool[3]", np.array([True, False, True]), b"\1\0\1"),
        ("bfloat16[2]", np.array([1, -2], "f8"), b"\x80\x3f\x00\xc0"),
        ("bfloat16[2]", np.array([1, 0, -2], "f2")[::2], b"\x80\x3f\x00\xc0"),
        ("bfloat16[2]", [1, -2], b"\x80\x3f\x00\xc0"),
        ("bfloat16[2]", [1 << 60, 2], b"\x80\x5d\x00\x40"),
        ("bytes", b"", b""),
        ("bytes", bytearray(b"ab"), b"ab"),
        ("bytes", memoryview(b"abcd")[::2], b"ac"),
        ("str", "é\0", b"\xc3\xa9\0"),
        ("json", {"b": [1, "é"], "a": None}, '{"b":[1,"é"],"a":null}'.encode()),
        ("json", 0, b"0"),
        ("jpeg", b"\xff\xd8\xff", b"\xff\xd8\xff"),
        ("audio", b"anything", b"anything"),
    ],
    ids=short,
)  # fmt: skip
def test_stored(kind: str, value: Any, stored: Any) -> None:
    assert encode(kind, value) == stored


def test_every_bfloat16_is_kept() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    values = (bits << 16).view(np.float32)
    values = values[~np.isnan(values)]
    stored = np.frombuffer(encode(f"bfloat16[{len(values)}]", values.astype(np.float64)), "<u2")
    assert ((stored.astype(np.uint32) << 16).view(np.float32).view(np.uint32) == values.view(np.uint32)).all()


def test_arrays_are_copied() -> None:
    value = np.zeros(600, "u1")
    stored = encode("uint8[600]", value)
    value[:] = 1
    assert stored == bytes(600)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    bits = b"\x80\x3f\x00\xc0"
    for kind, value, stored in (
        ("float32[2]", torch.tensor([1.0, 2.0]), np.array([1, 2], "<f4").tobytes()),
        ("float32[2]", torch.tensor([1.0, 2.0], requires_grad=True), np.array([1, 2], "<f4").tobytes()),
        ("float32[2]", torch.nn.Parameter(torch.tensor([1.0, 2.0])), np.array([1, 2], "<f4").tobytes()),
        ("int32[2]", torch.arange(4, dtype=torch.int32)[::2], np.array([0, 2], "<i4").tobytes()),
        ("int32[2,2]", torch.arange(4, dtype=torch.int32).reshape(2, 2).T, np.array([0, 2, 1, 3], "<i4").tobytes()),
        ("bfloat16[2]", torch.tensor([1.0, -2.0], dtype=torch.bfloat16), bits),
        ("bfloat16[2]", torch.tensor([1.0, 0, -2.0], dtype=torch.bfloat16)[::2], bits),
        ("bfloat16[2]", torch.tensor([1.0, -2.0]), bits),
        ("bfloat16", torch.tensor(1.0, dtype=torch.bfloat16), 0x3F80),
        ("bfloat16", torch.tensor(1.0), 0x3F80),
        ("int64", torch.tensor(7), 7),
        ("bool", torch.tensor(True), 1),
        ("bool[2]", torch.tensor([True, False]), b"\1\0"),
        ("float64", torch.tensor(0.5), 0.5),
    ):
        assert encode(kind, value) == stored


def test_tensors_that_do_not_fit() -> None:
    torch = pytest.importorskip("torch")
    for kind, value, got in (
        ("float32[2]", torch.zeros(2, dtype=torch.float64), r"array of float64 \[2\]"),
        ("float32[2]", torch.zeros(3), r"array of float32 \[3\]"),
        ("float32[2]", torch.zeros(2, dtype=torch.bfloat16), "bfloat16"),
        ("bfloat16[2]", torch.zeros(3, dtype=torch.bfloat16), r"bfloat16 \[3\]"),
        ("bfloat16[2]", torch.tensor([0.1, 0.2]), "cannot hold exactly"),
        ("float32", torch.tensor(1.0, dtype=torch.bfloat16), "bfloat16"),
        ("bfloat16", torch.zeros(2, dtype=torch.bfloat16), "array of bfloat16"),
        ("int64", torch.zeros(1, dtype=torch.bfloat16), "bfloat16"),
        ("int64", torch.tensor(0.5), "float"),
        ("int64", torch.tensor(1.0, dtype=torch.bfloat16), "got"),
        ("bool", torch.tensor(1.0, dtype=torch.bfloat16), "got"),
        ("float32[2]", torch.zeros(2).to_sparse(), "torch.Tensor"),
        ("float32[2]", torch.zeros(2, dtype=torch.float8_e4m3fn), "torch.Tensor"),
        ("float32[2]", torch.zeros(2, device="meta"), "torch.Tensor"),
        ("bytes", torch.zeros(2), "torch.Tensor"),
    ):
        with pytest.raises(PackError, match=got) as caught:
            encode(kind, value)
        assert str(caught.value).startswith(f"sample 7: field 'x': expected {kind}, got ")


def test_missing_values() -> None:
    kinds = ["int8", "bool", "float16", "bfloat16", "float32[3]", "uint8[600]", "bfloat16[300]", "str", "jpeg", "json"]
    schema = parse_schema({kind: kind + "?" for kind in kinds})
    encoder, columns = SampleEncoder(schema), row_columns(schema)
    none = encoder.encode(dict.fromkeys(kinds), "s")
    assert none == encoder.encode({}, "s")
    stored = dict(zip(columns, none.row, strict=True))
    assert [stored[kind] for kind in kinds[:5]] == [0, 0, 0, 0, bytes(12)]
    assert stored["_validity"] == b"\0\0" and none.validity == 0
    assert none.values == [bytes(600), bytes(600)] and none.header == bytes(12) and none.plain == none.packed == b""
    some = encoder.encode({"int8": 0, "json": 0}, "s")
    assert some.row[columns.index("_validity")] == b"\x01\x02" and some.validity == 0x201


def test_fields_of_a_sample() -> None:
    encoder = SampleEncoder(parse_schema({"a": "int8", "b": "int8?"}))
    with pytest.raises(PackError, match=r"s: field 'a': expected int8, got no such field in the sample; .* int8\?"):
        encoder.encode({"b": 1}, "s")
    with pytest.raises(PackError, match="s: field 'a': expected int8, got None"):
        encoder.encode({"a": None, "b": 1}, "s")
    for extra in ({"c": 1}, {"b": 1, "c": None}, {7: 1}, {"_validity": b"\0"}):
        with pytest.raises(PackError, match="is not in the schema"):
            encoder.encode({"a": 1} | extra, "s")
    for sample in ([1, 2], None, 7, "a", [("a", 1)]):
        with pytest.raises(PackError, match="s: a sample is a mapping"):
            encoder.encode(sample, "s")  # type: ignore[arg-type]


def test_names_of_fields() -> None:
    for name in ("_a", "", "a\n", "_place"):
        with pytest.raises(FormatError, match="name"):
            parse_schema({name: "int8"})


def test_a_frame_only_where_it_is_smaller() -> None:
    encoder = SampleEncoder(parse_schema({"a": "str", "b": "bytes", "p": "video"}, "zstd"))
    packer = RecordPacker(make_codec("zstd:3"))
    small = encoder.encode({"a": "x", "b": b"y", "p": b"z"}, "s")
    assert packer.pack(small) == (bytes.fromhex("010000000100000001000000") + b"zxy", False)
    large = encoder.encode({"a": "x" * 500, "b": b"y" * 500, "p": b"z" * 500}, "s")
    record, framed = packer.pack(large)
    assert framed and large.raw_bytes == 16 + 1500 and record[12:512] == b"z" * 500
    assert record[512:516] == bytes.fromhex("28b52ffd") and len(record) < 600
    assert packer.pack(encoder.encode({"a": "", "b": b"", "p": b""}, "s")) == (bytes(12), False)


def test_describe() -> None:
    for value, text in (
        (None, "NoneType None"),
        ("ab", "str of length 2"),
        (np.zeros((2, 3)), "array of float64 [2, 3]"),
        (1 << 256, "int of 257 bits"),
        (object(), "object"),
    ):
        assert describe(value) == text
