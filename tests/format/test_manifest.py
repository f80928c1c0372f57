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
    decode_manifest,
)

MANIFEST = Manifest(
    codec="zstd:3",
    generations=[Generation(1, 3, 7)],
    metadata={"classes": ["cat", "dög"], "note": "é\n", "year": 2024},
    num_bytes=12345,
    num_samples=7,
    num_shards=2,
    schema=[
        FieldEntry("zstd", "text", "str?"),
        FieldEntry("none", "x", "float32[3,4]"),
        FieldEntry("none", "i", "png"),
    ],
    shard_size=65536,
    table="ab" * 32,
    version=1,
    writer=Writer("2.0.0", "0.1.0", "1.5.6"),
)
GOLDEN = (
    '{"fingerprint":"f7b3","manifest":{"codec":"zstd:3","draft":1,"format":"shardload","generations":[{"generation":1,'
    '"num_fields":3,"num_samples":7}],"metadata":{"classes":["cat","dög"],"note":"é\\n","year":2024},"num_bytes":12345,'
    '"num_samples":7,"num_shards":2,"required":[],"schema":[{"codec":"zstd","name":"text","type":"str?"},{"codec":"none",'
    '"name":"x","type":"float32[3,4]"},{"codec":"none","name":"i","type":"png"}],"shard_size":65536,"table":"' + "ab" * 32
    + '","version":1,"writer":{"numpy":"2.0.0","shardload":"0.1.0","zstd":"1.5.6"}}}\n'
)  # fmt: skip
FINGERPRINT = "a74f83d6dfb61db50079040acea6765cbdd896c60031bbaa4d7fa8a235c73e58"


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
FREE = ("metadata", "writer")


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=lambda path: ".".join(map(str, path)))
def test_another_type_in_each_place(path: tuple[str | int, ...]) -> None:
    was = dict(LEAVES)[path]
    for value in (True, None, 1.5, 1e300, "text", "../../etc/passwd", "9", 7, -1, [], {}, [[]], [7], [None], {"a": {}}):
        free = path[0] == "metadata" and (len(path) > 1 or value == {})
        if type(value) is type(was) and (path[0] in FREE or path[-1] == "name" or isinstance(was, int)):
            continue
        if value == was and type(value) is type(was):
            continue
        if free and (isinstance(value, str) or value == [] or (isinstance(value, int) and not isinstance(value, bool))):
            continue
        with pytest.raises(FormatError):
            decode_manifest(sealed(replaced(*path, value=value)), "m")


@pytest.mark.parametrize("path", [path for path, value in LEAVES if isinstance(value, str)], ids=str)
def test_a_path_in_each_text(path: tuple[str | int, ...]) -> None:
    """Names and facts may hold any text, as no path is made of them; all else is refused."""
    data = sealed(replaced(*path, value="../" * 9))
    if path[0] in FREE or path[-1] == "name":
        assert decode_manifest(data, "m").version == 1
    else:
        error = UnsupportedVersionError if path[-1] == "codec" else FormatError
        with pytest.raises(error):
            decode_manifest(data, "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"draft": 2},
        lambda m: {"format": "shardload", "draft": 2, "new": [1.5]},
        lambda m: m | {"required": ["streams"]},
        lambda m: m | {"required": ["../"]},
        lambda m: m | {"codec": "lz4"},
        lambda m: m | {"codec": "zstd"},
        lambda m: m | {"codec": "zstd:3x"},
        lambda m: m | {"codec": "../"},
        lambda m: m | {"codec": "zstd:999"},
        lambda m: m | {"codec": "zstd:23"},
        lambda m: m | {"codec": "zstd:-101"},
        lambda m: m | {"schema": [{"codec": "lz4", "name": "x", "type": "str"}], "generations": [_generation(1)]},
    ],
)
def test_unknown_versions(change: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedVersionError, match=r"draft|needs|codec"):
        decode_manifest(sealed(change(built())), "m")


@pytest.mark.parametrize("codec", ["none", "zstd:-100", "zstd:0", "zstd:22"])
def test_codecs(codec: str) -> None:
    schema = [{"codec": "none", "name": "x", "type": "str"}]
    data = sealed(built() | {"codec": codec, "schema": schema, "generations": [_generation(1)]})
    assert decode_manifest(data, "m").codec == codec


def _generation(fields: int = 3, samples: int = 7, number: int = 1) -> dict[str, int]:
    return {"generation": number, "num_fields": fields, "num_samples": samples}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"unknown": 1},
        {"num_samples": 8},
        {"num_samples": -7, "generations": [_generation(samples=-7)]},
        {"num_bytes": -1},
        {"num_bytes": 1 << 63},
        {"num_shards": (1 << 26) + 1},
        {"version": 0},
        {"shard_size": 0},
        {"table": "AB" * 32},
        {"table": "../" + "a" * 61},
        {"table": "ab" * 32 + "\n"},
        {"generations": []},
        {"generations": [_generation(), _generation(samples=0)]},
        {"generations": [_generation(number=0)]},
        {"generations": [_generation(number=1 << 32)]},
        {"generations": [_generation(number=2), _generation(samples=0, number=1)]},
        {"generations": [_generation(fields=2)]},
        {"schema": []},
        {"schema": [{"codec": "none", "name": "x", "type": "int8"}] * 3},
        {"schema": [{"codec": "zstd", "name": "x", "type": "int8"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "zstd", "name": "x", "type": "png"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "x", "type": " int8"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "x", "type": "int8[3, 4]"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "x", "type": "int8[" + "9" * 5000 + "]"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "_x", "type": "int8"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "x", "type": "float32[*]"}], "generations": [_generation(1)]},
        {"schema": [{"codec": "none", "name": "x", "type": "int8", "extra": 1}], "generations": [_generation(1)]},
        {"metadata": {"a": 1.5}},
        {"metadata": {"a": {"b": "c"}}},
        {"writer": {"numpy": "2", "shardload": "1", "zstd": "1", "host": "x"}},
    ],
)  # fmt: skip
def test_breaks_of_the_rules(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        decode_manifest(sealed(built() | change), "here/manifest.json")
    assert type(caught.value) is FormatError and "here/manifest.json" in str(caught.value)


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
        data.replace(b'"draft":1', b'"draft":1.0'),
        data.replace(b'"draft":1', b'"draft":1e0'),
        data.replace(b'"draft":1', b'"draft":1,"draft":1'),  # twice
        data.replace(b'"version":1', b'"version":2,"version":1'),
        data.replace(b'"fingerprint"', b'"fingerprint":"' + fingerprint + b'","fingerprint"'),
        data.replace("é".encode(), b"\\u00e9"),
        data.replace(b"\\n", b"\\u000a"),
        data.replace(b"shardload", b"shardlo\\u0061d"),
        data.replace(b'"required":[],', b""),
        data.replace(b'"required"', b'"Required"'),
        data.replace(b'"version":1', b'"version":NaN'),
        data.replace(b'"version":1', b'"version":Infinity'),
        data.replace(b'"year":2024', b'"year":02024'),
        data.replace(b'"year":2024', b'"year":-0'),
        data.replace("é".encode(), b"\xff"),
        data.replace("é".encode(), b"\\ud800"),
    ):
        assert other != data
        with pytest.raises(FormatError):
            decode_manifest(other, "m")


@pytest.mark.parametrize("place", ["draft", "version", "num_bytes", "num_samples", "num_shards", "shard_size"])
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
    [{"a": True}, {"a": 1.5}, {"a": None}, {"a": {}}, {"a": [1]}, {1: "a"}, {"a": "\ud800"}, {"a": 1 << 63}, {"a": b"x"},
     {"a": -(10**5000)}, {"a": float("nan")}, [], {"a": "x" * (1 << 20)}],
)  # fmt: skip
def test_metadata_that_could_not_be_read_back(metadata: Any) -> None:
    with pytest.raises(FormatError, match="metadata"):
        check_metadata(metadata)


def test_metadata() -> None:
    metadata = {"classes": ["a", "é\n"], "n": -(1 << 63), "m": (1 << 63) - 1, "": "\u2028"}
    assert check_metadata(metadata) == metadata
