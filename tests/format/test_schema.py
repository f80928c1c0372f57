from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.schema import Field, Schema, canonical_json, parse_field, parse_schema


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
    ],
)
def test_parses(text: str, field: Field) -> None:
    assert parse_field("x", text) == field
    assert parse_field("x", field.type) == field


@pytest.mark.parametrize(
    "text",
    [
        "", "int", "int64??", "int64[", "int64[]", "int64[0]", "int64[01]", "int64[-1]", "int64[1,]", "int64[1.5]",
        "float32[*]", "float32[*,80]", "bytes[*]", "str[*]", "str[3]", "jpeg[1]", "Int64", "int64 ?", "?int64",
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
