from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.schema import Field, Schema, canonical_json, extend_schema, parse_field, parse_schema


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("int64", Field("x", "int64")),
        ("bool?", Field("x", "bool", nullable=True)),
        ("float32[3,224,224]", Field("x", "float32", (3, 224, 224))),
        ("bfloat16[1]?", Field("x", "bfloat16", (1,), True)),
        (" float32[3, 4] ", Field("x", "float32", (3, 4))),
        ("json?", Field("x", "json", nullable=True)),
        ("uint8[4294967295]", Field("x", "uint8", (4294967295,))),
        ("int8[" + ",".join("1" * 16) + "]", Field("x", "int8", (1,) * 16)),
        ("uint16[*]", Field("x", "uint16", starred=True)),
        ("float32[*,80]?", Field("x", "float32", (80,), True, starred=True)),
        (" bool[ * , 2 ] ", Field("x", "bool", (2,), starred=True)),
        ("bfloat16[*," + ",".join("1" * 15) + "]", Field("x", "bfloat16", (1,) * 15, starred=True)),
        ("uint8[*,4294967295]", Field("x", "uint8", (4294967295,), starred=True)),
        ("bytes[*]", Field("x", "bytes", starred=True)),
        ("str[*]?", Field("x", "str", nullable=True, starred=True)),
    ],
)
def test_parses(text: str, field: Field) -> None:
    assert parse_field("x", text) == field
    assert parse_field("x", field.type) == field


@pytest.mark.parametrize(
    "text",
    [
        "", "int", "int64??", "int64[", "int64[]", "int64[0]", "int64[01]", "int64[-1]", "int64[1,]", "int64[1.5]",
        "json[*]", "jpeg[*]", "video[*]?", "str[*,3]", "bytes[3,*]", "str[*,*]", "str[3]", "jpeg[1]", "float32[3,*]",
        "float32[*,*]", "float32[**]", "float32[*", "float32*", "float32[*]*", "float32[*,]", "float32[,*]", "float32[*,0]",
        "float32[*3]", "float32[* 3]",
        "float32?[*]", "int8[*," + ",".join("1" * 16) + "]", "uint8[*,4294967296]",
        "Int64", "int64 ?", "?int64",
        "int64[1]int64", "uint8[4294967296]", "float32[1073741824]", "int8[65536,65536]",
        "int8[" + ",".join("1" * 17) + "]", "int8[" + "9" * 5000 + "]", "int8[" + "1," * 100_000 + "1]",
        "int8[٣]", "int8[²]", "int8[" + "[" * 100_000, "../int8", "int64\n", "complex64", 7, None,
    ],
)  # fmt: skip
def test_refuses_types(text: object) -> None:
    if text == "int64\n":  # outer white space is taken off
        assert parse_field("x", text).type == "int64"
        return
    with pytest.raises(FormatError):
        parse_field("x", text)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "é", "中" * 42, "a b", "../x", "x" * 128, "\u200d", "\ufeff", "\u00a0", "a_"])
def test_names(name: str) -> None:
    assert parse_field(name, "int8").name == name


@pytest.mark.parametrize(
    "name", ["", "_a", " a", "a ", "\n", "a\0", "a\x7f", "a\x85b", "x" * 129, "中" * 43, "\ud800", 3, None, b"a"]
)
def test_refuses_names(name: object) -> None:
    with pytest.raises(FormatError, match="field"):
        parse_field(name, "int8")  # type: ignore[arg-type]


def test_wide_begins_at_512_bytes() -> None:
    assert not parse_field("x", "float32[127]").wide
    assert parse_field("x", "float32[128]").wide
    assert parse_field("x", "bfloat16[16,16]?").wide
    assert not parse_field("x", "bytes").wide


def test_codec_is_for_bytes_str_and_json() -> None:
    schema = parse_schema(
        {name: name for name in ("bytes", "str", "json", "jpeg", "png", "audio", "video", "int8")}, "zstd"
    )
    assert [field.codec for field in schema.fields] == ["zstd"] * 3 + ["none"] * 5


def test_a_schema_has_fields_of_different_names() -> None:
    field = parse_field("x", "int8")
    with pytest.raises(FormatError, match="twice"):
        Schema((field, field))
    with pytest.raises(FormatError, match="1 to 1024"):
        Schema(())
    assert len(parse_schema({str(number): "int8" for number in range(1024)})) == 1024
    with pytest.raises(FormatError, match="not 1025"):
        parse_schema({str(number): "int8" for number in range(1025)})
    with pytest.raises(FormatError, match="mapping"):
        parse_schema([("a", "int8")])  # type: ignore[arg-type]


def test_groups_of_fields() -> None:
    schema = parse_schema({"a": "str?", "b": "int8[512]", "c": "int8?", "d": "png", "e": "float64[64]?"})
    assert [field.name for field in schema.record_fields] == ["a", "d"]
    assert [field.name for field in schema.wide_fields] == ["b", "e"]
    assert [field.name for field in schema.row_fields] == ["c"]
    assert [field.name for field in schema.nullable_fields] == ["a", "c", "e"]
    assert [schema.number(name) for name in schema] == [0, 1, 2, 3, 4]


def test_where_values_of_varying_length_are_stored() -> None:
    types = {
        "stream": "uint16[*]", "packed": {"type": "float32[*,80]?", "compression": "zstd"}, "list": "str[*]",
        "blobs": {"type": "bytes[*]", "compression": "none"}, "long": "float32[*,600]", "data": "bytes",
    }  # fmt: skip
    schema = parse_schema(types, "zstd")
    assert [field.name for field in schema.stream_fields] == ["stream", "long"]
    assert [field.name for field in schema.record_fields] == ["packed", "list", "blobs", "data"]
    assert schema.wide_fields == schema.row_fields == ()
    assert [field.codec for field in schema.fields] == ["none", "zstd", "zstd", "none", "none", "zstd"]
    assert schema["packed"].num_bytes == 320 and schema["packed"].ragged and not schema["packed"].listed
    assert schema["list"].listed and not schema["list"].ragged and not schema["list"].fixed
    assert str(schema).startswith("{stream: uint16[*], packed: float32[*,80]?, list: str[*]")


def test_compression_of_one_field() -> None:
    schema = parse_schema({"a": {"type": "str"}, "b": {"type": "str", "compression": "none"}, "c": "str"}, "zstd")
    assert [field.codec for field in schema.fields] == ["zstd", "none", "zstd"]
    for entry, message in (
        ({"type": "str", "compression": "zstd"}, "dataset's compression is none"),
        ({"type": "str", "compression": "zstd:3"}, "must be none or zstd"),
        ({"type": "str", "compression": "lz4"}, "must be none or zstd"),
        ({"type": "str", "compression": ""}, "must be none or zstd"),
        ({"type": "jpeg", "compression": "zstd"}, "not compressed"),
        ({"type": "float32[80]", "compression": "zstd"}, "not compressed"),
        ({"compression": "zstd"}, "must have `type`"),
        ({"type": "str", "codec": "zstd"}, "must have `type`"),
        ({}, "must have `type`"),
        ({"type": None}, "is not a type"),
        ({"type": ["str"]}, "is not a type"),
    ):
        with pytest.raises(FormatError, match=message):
            parse_schema({"x": entry})  # type: ignore[dict-item]
        if "dataset" in message:
            assert parse_schema({"x": entry}, "zstd")["x"].codec == "zstd"  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["str", "bytes", "int8", "uint64", "int64"])
def test_keys(kind: str) -> None:
    assert parse_schema({"a": "int8?", "id": kind}, key="id").key == "id"


@pytest.mark.parametrize(
    "kind",
    ["str?", "int64?", "bool", "bfloat16", "float32", "float64", "int64[1]", "uint16[*]", "str[*]", "json", "png"],
)
def test_refuses_keys(kind: str) -> None:
    with pytest.raises(FormatError, match="is no key"):
        parse_schema({"id": kind}, key="id")
    with pytest.raises(FormatError, match="not a field of the schema"):
        parse_schema({"id": "str"}, key="other")


def test_extends() -> None:
    base = parse_schema({"a": "int64", "b": "str?"}, "zstd", key="a")
    types = {"new": "uint16[*]?", "a": "int64", "more": {"type": "str?", "compression": "none"}}
    schema = extend_schema(base, types, "zstd")
    assert [(field.name, field.codec) for field in schema.fields] == [
        ("a", "none"), ("b", "zstd"), ("new", "none"), ("more", "none")
    ]  # fmt: skip
    assert schema.key == "a" and schema.prefix(2) == base and schema.prefix(4) is schema
    assert extend_schema(base, base.types, "none") == base  # fields that are there keep their codec
    for types, message in (
        ({"b": "str?"}, "the samples to append lack it"),
        ({"a": "int32"}, "has it as int64, not int32"),
        ({"a": "int64?"}, "not int64[?]"),
        ({"a": "int64", "b": "str"}, "has it as str[?], not str"),
        ({"a": "int64", "new": "str"}, "must be nullable: str[?]"),
        ({"a": "int64", "new": "uint16[*]"}, "must be nullable"),
        ({"a": "int64", "_new": "str?"}, "reserved"),
        ({"a": "int64"} | {str(n): "int8?" for n in range(1023)}, "1 to 1024"),
    ):
        with pytest.raises(FormatError, match=message):
            extend_schema(base, types, "none")


def test_digest_is_of_the_canonical_json() -> None:
    schema = parse_schema({"é": "str", "b": "int8?"}, "zstd")
    text = '[{"codec":"zstd","name":"é","type":"str"},{"codec":"none","name":"b","type":"int8?"}]'
    assert schema.digest == hashlib.sha256(text.encode()).digest()


def test_canonical_json() -> None:
    value = {"b": [1, True, None], "a": '"\\/\b\f\n\r\t\x01\x1f\x7fé\u2028\U0001f600', "\uffff": 0, "\U00010000": 0}
    text = (
        '{"a":"\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7fé\u2028\U0001f600","b":[1,true,null],"\uffff":0,"\U00010000":0}'
    )
    assert canonical_json(value) == text.encode()
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@given(st.text(max_size=200))
def test_any_text_is_a_type_or_refused(text: str) -> None:
    try:
        field = parse_field("x", text)
    except FormatError:
        return
    assert parse_field("x", field.type) == field
