from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format.manifest import (
    FieldEntry,
    Generation,
    Manifest,
    Writer,
    check_metadata,
    complete,
    decode_description,
    decode_manifest,
    describe,
)
from shardload.format.schema import parse_schema

WRITER = Writer("2.0.0", "0.1.0", "1.5.6")
MANIFEST = Manifest(
    generations=[
        Generation("none", "", 1, 3, 7, 2, 65536, WRITER),
        Generation("zstd:3", "cd" * 32, 3, 4, 0, 1, 4096, WRITER),
    ],
    key="id",
    metadata={"classes": ["cat", "dög"], "note": "é\n", "year": 2024, "sorted": True, "sizes": [1, -2]},
    num_bytes=12345,
    num_samples=7,
    num_shards=2,
    schema=[
        FieldEntry("zstd", "id", "str"),
        FieldEntry("none", "x", "float32[3,4]"),
        FieldEntry("none", "i", "png"),
        FieldEntry("none", "t", "uint16[*]?"),
    ],
    table="ab" * 32,
    version=3,
)
WRITTEN = '"writer":{"numpy":"2.0.0","shardload":"0.1.0","zstd":"1.5.6"}}'
GOLDEN = (
    '{"fingerprint":"f7b3","manifest":{"draft":2,"format":"shardload","generations":[{"codec":"none","dictionary":"",'
    '"generation":1,"num_fields":3,"num_samples":7,"num_units":2,"shard_size":65536,' + WRITTEN + ',{"codec":"zstd:3",'
    '"dictionary":"' + "cd" * 32 + '","generation":3,"num_fields":4,"num_samples":0,"num_units":1,"shard_size":4096,'
    + WRITTEN + '],"key":"id","metadata":{"classes":["cat","dög"],"note":"é\\n","sizes":[1,-2],"sorted":true,"year":2024},'
    '"num_bytes":12345,"num_samples":7,"num_shards":2,"required":[],"schema":[{"codec":"zstd","name":"id","type":"str"},'
    '{"codec":"none","name":"x","type":"float32[3,4]"},{"codec":"none","name":"i","type":"png"},{"codec":"none","name":"t",'
    '"type":"uint16[*]?"}],"table":"' + "ab" * 32 + '","version":3}}\n'
)  # fmt: skip
FINGERPRINT = "6635c598efb244535537a71cb34fc5868b3bad3c7cfb516868e0ea3a5deb5cdb"


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def built() -> Any:
    return json.loads(MANIFEST.encode())["manifest"]


def sealed(manifest: Any) -> bytes:
    """A manifest's file with a fingerprint that is right, whatever is in it."""
    return canonical({"fingerprint": hashlib.sha256(canonical(manifest)).hexdigest(), "manifest": manifest}) + b"\n"


def test_golden_bytes() -> None:
    data = GOLDEN.replace("f7b3", FINGERPRINT).encode()
    assert MANIFEST.encode() == data
    assert decode_manifest(data, "manifest.json") == MANIFEST
    assert MANIFEST.fingerprint == FINGERPRINT
    assert sealed(built()) == data


def test_every_changed_byte_is_refused() -> None:
    data = MANIFEST.encode()
    for place in range(len(data)):
        for change in (1, 4, 32, 128):
            with pytest.raises(FormatError):
                decode_manifest(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :], "m")
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            decode_manifest(data[:cut], "m")


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_manifest(data, "m")


def replaced(*path: str | int, value: Any) -> Any:
    manifest = built()
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return manifest


LEAVES: list[tuple[tuple[str | int, ...], Any]] = []


def _walk(value: Any, path: tuple[str | int, ...]) -> None:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _walk(inner, (*path, key))
    if path:
        LEAVES.append((path, value))


_walk(json.loads(MANIFEST.encode())["manifest"], ())
FREE = ("metadata",)


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=lambda path: ".".join(map(str, path)))
def test_another_type_in_each_place(path: tuple[str | int, ...]) -> None:
    was = dict(LEAVES)[path]
    for value in (True, None, 1.5, 1e300, "text", "../../etc/passwd", "9", 7, -1, [], {}, [[]], [7], [None], {"a": {}}):
        fact = isinstance(value, str | int) or (value in ([], [7]) and len(path) == 2)
        if (path[0] == "metadata" and len(path) > 1 and fact) or (path == ("metadata",) and value == {}):
            continue
        if type(value) is type(was) and (
            value == was or isinstance(was, int) or path[-1] == "name" or "writer" in path
        ):
            continue
        with pytest.raises(FormatError):
            decode_manifest(sealed(replaced(*path, value=value)), "m")


@pytest.mark.parametrize("path", [path for path, value in LEAVES if isinstance(value, str)], ids=str)
def test_a_path_in_each_text(path: tuple[str | int, ...]) -> None:
    """Names and facts may hold any text, as no path is made of them; all else is refused."""
    data = sealed(replaced(*path, value="../" * 9))
    if path[0] in FREE or "writer" in path or (path[-1] == "name" and path != ("schema", 0, "name")):
        assert decode_manifest(data, "m").version == 3
    else:
        error = UnsupportedVersionError if path[-1] == "codec" else FormatError
        with pytest.raises(error):
            decode_manifest(data, "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"draft": 1},
        lambda m: m | {"draft": 3},
        lambda m: {"format": "shardload", "draft": 3, "new": [1.5]},
        lambda m: m | {"required": ["encryption"]},
        lambda m: m | {"required": ["external", "encryption"]},
        lambda m: m | {"required": ["../"]},
        lambda m: m | {"schema": [{"codec": "lz4", "name": "id", "type": "str"}], "generations": [_generation(1)]},
    ],
)
def test_unknown_versions(change: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedVersionError, match=r"draft 1|later version of the format|needs|codec"):
        decode_manifest(sealed(change(built())), "m")


@pytest.mark.parametrize(
    "codec", ["lz4", "zstd", "zstd:3x", "../", "", "zstd:999", "zstd:23", "zstd:-101", "zstd:+3", "zstd: 3", "none:1"]
)
def test_unknown_codecs(codec: str) -> None:
    for number in (0, 1):
        with pytest.raises(UnsupportedVersionError, match="codec"):
            decode_manifest(sealed(replaced("generations", number, "codec", value=codec)), "m")


@pytest.mark.parametrize("codec", ["zstd:-100", "zstd:0", "zstd:22"])
def test_codecs(codec: str) -> None:
    data = sealed(replaced("generations", 1, "codec", value=codec))
    assert decode_manifest(data, "m").generations[1].codec == codec


@pytest.mark.parametrize("codec", ["zstd:03", "zstd:-0", "zstd:003"])
def test_a_codec_has_one_form(codec: str) -> None:
    with pytest.raises(FormatError):
        decode_manifest(sealed(replaced("generations", 1, "codec", value=codec)), "m")


def _generation(fields: int = 4, samples: int = 7, number: int = 1, **facts: Any) -> dict[str, Any]:
    numbers = {"num_fields": fields, "num_samples": samples, "num_units": 1, "shard_size": 1}
    writer = {"numpy": "2", "shardload": "1", "zstd": "1"}
    return {"codec": "none", "dictionary": "", "generation": number, "writer": writer} | numbers | facts


def _schema(*types: str) -> list[dict[str, str]]:
    names = ("id", "b", "c", "d")
    return [{"codec": "none", "name": name, "type": text} for name, text in zip(names, types, strict=False)]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"unknown": 1},
        {"num_samples": 8},
        {"num_samples": -7, "generations": [_generation(samples=-7)]},
        {"num_samples": 8, "generations": [_generation(), _generation(samples=0, number=2)]},
        {"num_bytes": -1},
        {"num_bytes": 1 << 63},
        {"num_shards": (1 << 26) + 1},
        {"version": 0},
        {"table": "AB" * 32},
        {"table": "../" + "a" * 61},
        {"table": "ab" * 32 + "\n"},
        {"generations": []},
        {"generations": [_generation(), _generation(samples=0)]},
        {"generations": [_generation(number=0)]},
        {"generations": [_generation(number=1 << 32)]},
        {"generations": [_generation(number=2), _generation(samples=0)]},
        {"generations": [_generation(shard_size=0)]},
        {"generations": [_generation(shard_size=1 << 63)]},
        {"generations": [_generation(num_units=-1)]},
        {"generations": [_generation(num_units=1 << 63)]},
        {"generations": [_generation(samples=8), _generation(samples=-1, number=2)]},
        {"generations": [_generation(fields=3)]},
        {"generations": [_generation(fields=5)]},
        {"generations": [_generation(fields=0), _generation(samples=0, number=2)]},
        {"generations": [_generation(fields=3), _generation(3, 0, 2)]},
        {"generations": [_generation(), _generation(3, 0, 2)]},
        {"generations": [_generation(3), _generation(2, 0, 2), _generation(4, 0, 3)]},
        {"generations": [_generation(2), _generation(4, 0, 2)]},  # the third field is not nullable
        {"generations": [_generation(dictionary="cd" * 32)]},  # without a codec
        {"generations": [_generation(codec="zstd:1", dictionary="CD" * 32)]},
        {"generations": [_generation(codec="zstd:1", dictionary="cd" * 31)]},
        {"generations": [_generation(codec="zstd:1", dictionary="cd" * 32 + "\n")]},
        {"generations": [_generation(extra=1)]},
        {"generations": [_generation(writer={"numpy": "2", "shardload": "1", "zstd": "1", "host": "x"})]},
        {"generations": [_generation(writer={"numpy": "2", "shardload": "1"})]},
        {"key": "other"},
        {"key": "x"},  # an array
        {"key": "t"},  # a field of a later generation, and ragged
        {"key": 7},
        {"schema": _schema("int8", "int8", "int8?", "str"), "key": "d", "generations": [_generation(2), _generation(4, 0, 2)]},
        {"schema": _schema("int8", "int8", "int8", "str?"), "key": "d", "generations": [_generation(3), _generation(4, 0, 2)]},
        {"schema": _schema("str?"), "generations": [_generation(1)]},  # the key may be missing
        {"schema": _schema("json"), "generations": [_generation(1)]},
        {"schema": [], "generations": [_generation(0)]},
        {"schema": [{"codec": "none", "name": "x", "type": "int8"}] * 4},
        *(
            {"schema": [{"codec": "none", "name": "id", "type": "str"} | entry], "generations": [_generation(1)]}
            for entry in (
                {"codec": "zstd", "type": "int8"}, {"codec": "zstd", "type": "png"}, {"type": " int8"}, {"type": "int8[3, 4]"},
                {"type": "int8[" + "9" * 5000 + "]"}, {"name": "_x"}, {"type": "float32[3,*]"}, {"type": "json[*]"},
                {"type": "uint16[ *]"}, {"type": "bytes[*,3]"}, {"type": "int8", "extra": 1},
            )
        ),
        {"metadata": {"a": 1.5}},
        {"metadata": {"a": {"b": "c"}}},
        {"metadata": {"a": [[1]]}},
        {"metadata": {"a": None}},
    ],
)  # fmt: skip
def test_breaks_of_the_rules(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        decode_manifest(sealed(built() | change), "here/manifest.json")
    assert type(caught.value) is FormatError and "here/manifest.json" in str(caught.value)


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 1 << 64, 10**300])
def test_facts_over_64_bits(number: int) -> None:
    for fact in (number, [number]):
        with pytest.raises(FormatError):
            decode_manifest(sealed(built() | {"metadata": {"a": fact}}), "m")


@pytest.mark.parametrize("name", list(json.loads(MANIFEST.encode())["manifest"]))
def test_each_field_must_be_there(name: str) -> None:
    manifest = built()
    del manifest[name]
    with pytest.raises(FormatError):
        decode_manifest(sealed(manifest), "m")


def test_forms_that_are_not_canonical() -> None:
    data = MANIFEST.encode()
    fingerprint = MANIFEST.fingerprint.encode()
    for other in (
        data[:-1],
        data + b"\n",
        b" " + data,
        b"\xef\xbb\xbf" + data,
        data.replace(b'"draft":2', b'"draft":2.0'),
        data.replace(b'"draft":2', b'"draft":2e0'),
        data.replace(b'"draft":2', b'"draft":2,"draft":2'),  # twice
        data.replace(b'"version":3', b'"version":2,"version":3'),
        data.replace(b'"fingerprint"', b'"fingerprint":"' + fingerprint + b'","fingerprint"'),
        data.replace("é".encode(), b"\\u00e9"),
        data.replace(b"\\n", b"\\u000a"),
        data.replace(b"shardload", b"shardlo\\u0061d"),
        data.replace(b'"required":[],', b""),
        data.replace(b'"required"', b'"Required"'),
        data.replace(b'"version":3', b'"version":NaN'),
        data.replace(b'"version":3', b'"version":Infinity'),
        data.replace(b'"year":2024', b'"year":02024'),
        data.replace(b'"year":2024', b'"year":-0'),
        data.replace("é".encode(), b"\xff"),
        data.replace("é".encode(), b"\\ud800"),
    ):
        assert other != data
        with pytest.raises(FormatError):
            decode_manifest(other, "m")


@pytest.mark.parametrize("place", ["draft", "version", "num_bytes", "num_shards"])
@pytest.mark.parametrize("digits", [20, 5000, 900_000])
def test_long_integers(place: str, digits: int) -> None:
    text = MANIFEST.encode().decode()
    before = f'"{place}":{built()[place]}'
    assert before in text
    with pytest.raises(FormatError):
        decode_manifest(text.replace(before, f'"{place}":' + "9" * digits).encode(), "m")


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"manifest":' * 100_000, b'{"manifest":{"metadata":' + b"[" * 100_000]
)
def test_deep_nesting(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_manifest(data, "m")
    text = MANIFEST.encode().replace(b'"year":2024', b'"year":' + b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(FormatError):
        decode_manifest(text, "m")


def test_over_one_mebibyte() -> None:
    data = MANIFEST.encode()
    with pytest.raises(FormatError, match="1 MiB"):
        decode_manifest(data[:-1] + b" " * ((1 << 20) - len(data) + 1) + b"\n", "m")
    longest = (1 << 20) - len(data) + len("é".encode()) + len("\\n")
    fitting = msgspec.structs.replace(MANIFEST, metadata=dict(MANIFEST.metadata) | {"note": "x" * longest})
    assert len(fitting.encode()) == 1 << 20
    assert decode_manifest(fitting.encode(), "m") == fitting
    with pytest.raises(FormatError, match="1 MiB"):
        msgspec.structs.replace(MANIFEST, metadata=dict(MANIFEST.metadata) | {"note": "x" * (longest + 1)}).encode()


def test_damage_and_wrong_form_are_told_apart() -> None:
    with pytest.raises(ChecksumError):
        decode_manifest(MANIFEST.encode().replace(b'"year":2024', b'"year":2025'), "m")
    with pytest.raises(ChecksumError):
        decode_manifest(MANIFEST.encode().replace(MANIFEST.fingerprint.encode(), b"0" * 64), "m")


@pytest.mark.parametrize(
    "metadata",
    [{"a": 1.5}, {"a": None}, {"a": {}}, {"a": [1.5]}, {"a": [[1]]}, {"a": [None]}, {1: "a"}, {"a": "\ud800"}, {"a": 1 << 63},
     {"a": [0, 1 << 63]}, {"a": -(1 << 63) - 1}, {"a": b"x"}, {"a": -(10**5000)}, {"a": float("nan")}, [],
     {"a": "x" * (1 << 20)}],
)  # fmt: skip
def test_metadata_that_could_not_be_read_back(metadata: Any) -> None:
    with pytest.raises(FormatError, match="metadata"):
        check_metadata(metadata)


def test_metadata() -> None:
    metadata = {
        "classes": ["a", "é\n"], "n": -(1 << 63), "m": (1 << 63) - 1, "": "\u2028", "yes": True, "mixed": [1, "a", False], "no": [],
    }  # fmt: skip
    checked = check_metadata(metadata)
    assert checked == metadata and checked["yes"] is True
    data = sealed(built() | {"metadata": metadata})
    assert decode_manifest(data, "m").metadata == metadata


NEWEST = msgspec.structs.replace(MANIFEST.generations[1], num_samples=0)
SCHEMA = parse_schema({"id": "str", "x": "float32[3,4]", "i": "png", "t": "uint16[*]?"}, "zstd", "id")
DESCRIPTION = describe(SCHEMA, 3, NEWEST, MANIFEST.metadata, MANIFEST.generations[:1])


def test_a_description_is_the_manifest_but_for_the_counts() -> None:
    data = DESCRIPTION.encode()
    described = built()
    for name in ("num_bytes", "num_samples", "num_shards", "table"):
        del described[name]
    assert data == canonical(described)
    assert decode_description(data, "s") == DESCRIPTION
    assert complete(DESCRIPTION, 12345, 2, 0, "ab" * 32) == MANIFEST
    full = complete(DESCRIPTION, 5, 3, 9, "ab" * 32)
    assert (full.num_samples, full.num_bytes, full.num_shards) == (16, 5, 3)
    assert [g.num_samples for g in full.generations] == [7, 9]
    assert decode_manifest(full.encode(), "m") == full
    assert (
        DESCRIPTION.schema_of(1) == SCHEMA.prefix(3) and DESCRIPTION.schema_of(3) == DESCRIPTION.parsed_schema == SCHEMA
    )


def test_descriptions_that_are_refused() -> None:
    data = DESCRIPTION.encode()
    for wrong in (
        data[:-1],
        data + b"\n",
        b" " + data,
        b"",
        b"{}",
        MANIFEST.encode(),
        canonical(built()),
        data.replace(b'"key":"id"', b'"key":"id","key":"id"'),
        data.replace("é".encode(), b"\\u00e9"),
        data.replace(b'"num_fields":3', b'"num_fields":5'),
        data.replace(b'"version":3', b'"version":0'),
        data.replace(b'"dictionary":"",', b'"dictionary":"' + b"ab" * 32 + b'",'),
        data.replace(b'"key":"id"', b'"key":"t"'),
    ):
        assert wrong != data
        with pytest.raises(FormatError, match="here"):
            decode_description(wrong, "here")
    with pytest.raises(UnsupportedVersionError, match=r"later version of the format \(its number is 3,.*update"):
        decode_description(data.replace(b'"draft":2', b'"draft":3'), "here")
    with pytest.raises(UnsupportedVersionError, match="needs 'encryption'"):
        decode_description(data.replace(b'"required":[]', b'"required":["encryption","external"]'), "here")
    external = data.replace(b'"required":[]', b'"required":["external"]')
    assert decode_description(external, "here").external and not decode_description(data, "here").external
    with pytest.raises(FormatError, match="twice"):
        decode_description(data.replace(b'"required":[]', b'"required":["external","external"]'), "here")


def test_the_longest_description() -> None:
    room = (1 << 20) - len(DESCRIPTION.encode()) - len(b',"x":""')
    metadata = MANIFEST.metadata | {"x": "x" * room}
    described = describe(SCHEMA, 3, NEWEST, metadata, MANIFEST.generations[:1])
    assert len(described.encode()) == 1 << 20
    assert decode_description(described.encode(), "s") == described
    with pytest.raises(FormatError, match="shorten the metadata"):
        describe(SCHEMA, 3, NEWEST, metadata | {"x": "x" * (room + 1)}, MANIFEST.generations[:1])


def test_a_description_has_no_samples_of_its_own_generation() -> None:
    data = DESCRIPTION.encode().replace(b'"num_samples":0', b'"num_samples":5')
    with pytest.raises(FormatError):
        decode_description(data, "s")
