"""Hostile JSON: the manifest, the description in a shard, and values (F8, F10, F11), fingerprints made right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
from collections.abc import Callable

import pytest
from forge import canonical, manifest_text
from hostile.judge import bounded_memory, check_error, refused

import shardload
from shardload.format import layout
from shardload.format.manifest import decode_description, decode_manifest

DEEP = 100_000


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    """Puts other text in the place of some; the rest stays as it was."""

    def edit(text: bytes) -> bytes:
        assert text.count(old.encode()) >= 1, old
        return text.replace(old.encode(), new.encode("utf-8", "surrogatepass"), 1)

    return edit


def facts(value: str) -> Callable[[bytes], bytes]:
    """Puts a value of any kind into the metadata."""
    return replaced('"metadata":{}', f'"metadata":{{"a":{value}}}')


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda text: b"",
    "null": lambda text: b"null",
    "an array": lambda text: b"[" + text + b"]",
    "a string": lambda text: json.dumps(text.decode()).encode(),
    "a number": lambda text: b"1",
    "an empty object": lambda text: b"{}",
    "cut": lambda text: text[:-1],
    "something behind": lambda text: text + b"{}",
    "white space": lambda text: text.replace(b":", b": "),
    "keys unsorted": lambda text: (
        b'{"version":' + text[text.rindex(b":") + 1 : -1] + b"," + text[1 : text.rindex(b",")] + b"}"
    ),
    "a key twice": replaced('"key":"name"', '"key":"name","key":"name"'),
    "a key twice, differing": replaced('"key":"name"', '"key":"text","key":"name"'),
    "a key that is not known": replaced('"key":"name"', '"key":"name","kez":1'),
    "a key less": replaced('"key":"name",', ""),
    "escapes not needed": replaced('"key":"name"', '"key":"n\\u0061me"'),
    "a slash escaped": facts('"\\/"'),
    "NUL in a string": facts('"\0"'),
    "nesting in the metadata": facts("[" * DEEP + "]" * DEEP),
    "nesting that does not end": facts("[" * DEEP),
    "objects nested": facts('{"a":' * DEEP),
    "nesting in an unknown key": replaced('"key"', '"a":' + "[" * DEEP + "]" * DEEP + ',"key"'),
    "nesting for the schema": replaced('"schema":[', '"schema":[' + "[" * DEEP),
    "a list of lists": facts("[[1]]"),
    "an object": facts('{"b":1}'),
    "null in metadata": facts("null"),
    "a fraction": facts("1.5"),
    "NaN": facts("NaN"),
    "Infinity": facts("Infinity"),
    "-Infinity": facts("[-Infinity]"),
    "1e999": facts("1e999"),
    "1e3": facts("1e3"),
    "-0": facts("-0"),
    "a leading zero": facts("01"),
    "2^63": facts(str(1 << 63)),
    "2^64": facts(str(1 << 64)),
    "-2^63-1": facts(str(-(1 << 63) - 1)),
    "30 digits": facts("9" * 30),
    "5,000 digits": facts("9" * 5000),
    "500,000 digits": facts("9" * 500_000),
    "5,000 digits in a list": facts("[" + "9" * 5000 + "]"),
    "a lone surrogate, escaped": facts('"\\ud800"'),
    "a lone surrogate, as bytes": facts('"\ud800"'),
    "surrogates the wrong way round": facts('"\\udc00\\ud800"'),
    "a surrogate as a key": replaced('"metadata":{}', '"metadata":{"\\ud800":1}'),
    "version 4,000 digits": lambda text: text[: text.rindex(b":") + 1] + b"9" * 4000 + b"}",
    "version 5,000 digits": lambda text: text[: text.rindex(b":") + 1] + b"9" * 5000 + b"}",
    "version 20,000 digits": lambda text: text[: text.rindex(b":") + 1] + b"9" * 20_000 + b"}",
    "fields that are true": replaced('"num_fields":15', '"num_fields":true'),
    "draft 2.0": replaced('"draft":2', '"draft":2.0'),
    "draft true": replaced('"draft":2', '"draft":true'),
    "draft as text": replaced('"draft":2', '"draft":"2"'),
    "a long name": replaced('"name":"number"', f'"name":"{"n" * 500_000}"'),
    "a long type": replaced('"type":"int64"', f'"type":"int64[{"1," * 300_000}1]"'),
    "a long codec": replaced('"codec":"none"', f'"codec":"{"z" * 500_000}"'),
    "a long format": replaced('"format":"shardload"', f'"format":"{"s" * 500_000}"'),
    "a long key": replaced('"key":"name"', f'"key":"{"s" * 500_000}"'),
    "a long required": replaced('"required":[]', f'"required":["{"s" * 500_000}"]'),
    "100,000 required": replaced('"required":[]', '"required":[' + ",".join(['"a"'] * 100_000) + "]"),
    "no schema": lambda text: re.sub(rb'"schema":\[.*?\]', b'"schema":[]', text),
    "15,000 fields": replaced('"schema":[', '"schema":[' + '{"codec":"none","name":"a","type":"bool"},' * 15_000),
    "no generations": lambda text: text[: text.index(b'"generations":[') + 15] + text[text.index(b'],"key"') :],
}


@pytest.mark.parametrize("name", TEXTS)
def test_manifests(forge, name):
    forged = forge()
    text = TEXTS[name](canonical(forged.manifest))
    forged.write_manifest(manifest_text(text))
    refused(forged.path, "open", shardload.FormatError)


def _files(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "a byte": b"{",
        "zeros": bytes(len(good)),
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-16 without mark": good.decode().encode("utf-16-le"),
        "UTF-32": good.decode().encode("utf-32"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "Latin-1": good[:-2] + b',"\xe4":1}\n',
        "no line feed": good[:-1],
        "two line feeds": good + b"\n",
        "CR LF": good[:-1] + b"\r\n",
        "a space before": b" " + good,
        "NUL behind": good + b"\0",
        "twice": good * 2,
        "the inner one alone": json.dumps(json.loads(good)["manifest"]).encode(),
        "a third key": good[:-2] + b',"z":1}\n',
        "the fingerprint twice": good.replace(b'"manifest"', b'"fingerprint":"","manifest"', 1),
        "the manifest twice": good[:-2] + b',"manifest":{}}\n',
        "no fingerprint": b'{"manifest"' + good[good.index(b'"manifest"') + 10 :],
        "a fingerprint in capitals": good[:16] + good[16:80].upper() + good[80:],
        "another fingerprint": good[:16] + b"0" * 64 + good[80:],
        "brackets": b"[" * DEEP,
        "objects": b'{"a":' * DEEP,
        "brackets to the limit": b"[" * layout.MAX_MANIFEST_BYTES,
        "a large array": b"[" + b"1," * (layout.MAX_MANIFEST_BYTES // 2 - 2) + b"1]",
        "a large array of strings": b"[" + b'"",' * (layout.MAX_MANIFEST_BYTES // 3 - 2) + b'""]',
        "an object of many keys": b"{" + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}",
        "one over the limit": good + b" " * (layout.MAX_MANIFEST_BYTES - len(good) + 1),
        "a long string": b'"' + b"\\u0041" * 170_000 + b'"',
        "a number": b"9" * 1_000_000,
    }


@pytest.mark.parametrize("name", _files(manifest_text(b'{"manifest":1}')))
def test_manifest_files(forge, commands, name):
    forged = forge()
    files = _files((forged.path / "manifest.json").read_bytes())
    forged.write_manifest(files[name])
    refused(forged.path, "open", shardload.FormatError)
    commands(forged.path)


@pytest.mark.parametrize("size", [layout.MAX_MANIFEST_BYTES + 1, 1 << 30, 1 << 40])
@pytest.mark.parametrize("name", ["manifest.json", "table"])
def test_sparse_files(forge, name, size):
    """A file's size costs nothing to fake; nobody takes memory for it."""
    forged = forge()
    path = forged.path / (name if name != "table" else f"tables/{forged.sound.table}")
    os.truncate(path, size)
    refused(forged.path, "open", shardload.FormatError)


NUMBERS = (
    -(1 << 64),
    -(1 << 63),
    -1,
    0,
    1,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
    10**30,
)
MANIFEST_NUMBERS = ["num_bytes", "num_samples", "num_shards", "version", "draft"]
GENERATION_NUMBERS = ["generation", "num_fields", "num_samples", "num_units", "shard_size"]


def _put(target: dict, name: str, value: object, forged) -> None:
    forged.same = target[name] == value
    target[name] = value


@pytest.mark.parametrize("value", [*NUMBERS, True, 1.0, "1", None, [], {}], ids=str)
@pytest.mark.parametrize("name", MANIFEST_NUMBERS)
def test_numbers_of_a_manifest(forge, name, value):
    forged = forge()
    forged.edit_manifest = lambda manifest: _put(manifest, name, value, forged)
    forged.save_above()
    if name == "version" and type(value) is int and 1 <= value < 1 << 63:
        return
    refused(forged.path, "open", shardload.FormatError)


@pytest.mark.parametrize("value", [*NUMBERS, True, 1.0, "1", None], ids=str)
@pytest.mark.parametrize("name", GENERATION_NUMBERS)
@pytest.mark.parametrize("number", [0, 1])
def test_numbers_of_a_generation(forge, name, value, number):
    forged = forge()
    forged.edit_manifest = lambda manifest: _put(manifest["generations"][number], name, value, forged)
    forged.save_above()
    harmless = name in ("num_units", "shard_size") and type(value) is int and 0 < value < 1 << 63
    if not forged.same and not harmless and (name, value) != ("num_units", 0):
        refused(forged.path, "", shardload.FormatError)


@pytest.mark.parametrize(
    "numbers", [[], [1], [2], [1, 1], [2, 1], [1, 3], [0, 1], [1, 1 << 32], [-1, 2], [1, 2, 3], list(range(1, 4000))]
)  # fmt: skip
def test_lists_of_generations(forge, numbers):
    """Not those of the shards, not ascending, or far too many."""
    forged = forge()

    def edit(manifest):
        like = manifest["generations"]
        manifest["generations"] = [dict(like[min(i, 1)], generation=n) for i, n in enumerate(numbers)]

    forged.edit_manifest = edit
    refused(forged.save_above(), "open", shardload.FormatError)


def _set(name: str, value: object) -> Callable:
    return lambda manifest: manifest.__setitem__(name, value)


def _set_field(number: int, **values: str) -> Callable:
    return lambda manifest: manifest["schema"][number].update(values)


VERSIONS = {
    "draft 0": _set("draft", 0),
    "draft 1": _set("draft", 1),
    "draft 3": _set("draft", 3),
    "draft 2^63": _set("draft", 1 << 63),
    "encryption": _set("required", ["encryption", "external"]),
    "an unknown feature": _set("required", ["encryption", "x" * 1000]),
    "codec lz4": lambda manifest: manifest["generations"][0].__setitem__("codec", "lz4:1"),
    "codec zstd of no level": lambda manifest: manifest["generations"][0].__setitem__("codec", "zstd"),
    "codec zstd:23": lambda manifest: manifest["generations"][0].__setitem__("codec", "zstd:23"),
    "codec zstd:-101": lambda manifest: manifest["generations"][0].__setitem__("codec", "zstd:-101"),
    "codec of a field": _set_field(0, codec="brotli"),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_versions_of_a_manifest(forge, commands, name):
    forged = forge()
    forged.edit_manifest = VERSIONS[name]
    refused(forged.save_above(), "open", shardload.UnsupportedVersionError)
    commands(forged.path)


@pytest.mark.parametrize("at, value", [(8, 0), (8, 1), (8, 3), (8, 1 << 31), (8, 2 << 24), (12, 1), (12, 1 << 31)])
def test_versions_of_a_header(forge, judge, at, value):
    forged = forge()
    forged.shards[0].header[at : at + 4] = struct.pack("<I", value)
    refused(forged.save(), "", shardload.UnsupportedVersionError)


@pytest.mark.parametrize(
    "magic",
    [
        layout.HEADER_MAGIC[::-1],
        b"\x89SHRD\n\n\x1a",
        b"\x89SHRD\r\r\n",
        bytes(8),
        b"PK\3\4\0\0\0\0",
        b"\x09SHRD\r\n\x1a",
    ],
    ids=["big-endian", "line ends changed", "line ends added", "zeros", "zip", "seven bits"],
)
def test_magics(forge, magic):
    forged = forge()
    forged.shards[0].header[:8] = magic
    refused(forged.save(), "", shardload.FormatError)


@pytest.mark.parametrize("draft", [0, 1, 3, 1 << 25, (1 << 32) - 1])
def test_versions_of_a_footer(forge, draft):
    forged = forge()
    forged.shards[0].edit_footer = lambda footer: footer.__setitem__(1, draft)
    refused(forged.save(), "", shardload.UnsupportedVersionError)


# What the description allows to differ from the manifest's own forms.
DESCRIPTIONS = TEXTS | {
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "a line feed behind": lambda text: text + b"\n",
    "another schema": replaced('"type":"int64"', '"type":"int32"'),
    "another version": replaced('"version":1', '"version":7'),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions(forge, judge, name):
    """Only a reader of shards without a manifest looks at them, and verify."""
    forged = forge()
    section = forged.shards[0].section(layout.SECTION_DESCRIPTION)
    section.data = bytearray(DESCRIPTIONS[name](bytes(section.data)))
    if name not in ("another schema", "another version"):
        with bounded_memory(), pytest.raises(shardload.FormatError) as caught:
            decode_description(bytes(section.data), "place")
        assert len(str(caught.value)) < 2000
    if len(section.data) <= layout.MAX_DESCRIPTION_BYTES:
        judge(forged.save(), ways=("item 0",))


VALUES = {
    "no UTF-8": b'"\xff"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "nothing": b"",
    "cut": b'{"a":',
    "two": b"1 2",
    "NaN": b"NaN",
    "Infinity": b"[Infinity]",
    "-Infinity": b'{"a":-Infinity}',
    "5,000 digits": b"9" * 5000,
    "brackets": b"[" * DEEP,
    "brackets closed": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "single quotes": b"{'a':1}",
    "a comma behind": b"[1,]",
    "a control character": b'"\x01"',
}


@pytest.mark.parametrize("name", VALUES)
def test_json_values(forge, judge, commands, name):
    forged = forge()
    shard, value = forged.shards[0], VALUES[name]
    shard.set_last_record(struct.pack("<7I", 0, 0, 0, len(value), 4, 0, 0) + value + bytes(4))
    last = shard.num_samples - 1
    path = forged.save()
    with bounded_memory(), pytest.raises(shardload.FormatError, match=rf"'facts' of sample {last} is") as caught:
        shardload.open(path)[last]
    check_error(caught.value, path)
    assert shardload.open(path)[0]["number"] == 0
    judge(path, by=f"item {last}")


PATHS = [
    "..", "../..", "../outside", "../../outside", "shards/../../outside", "./outside", "/outside", "//outside",
    "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "~", "~/outside", "~root/outside", "$HOME/outside",
    "${HOME}/outside", "%2e%2e%2foutside", "%2e%2e/outside", "..%c0%afoutside", "..\\outside", "..\\..\\outside",
    "C:\\outside", "C:outside", "C:/outside", "\\\\host\\share", "\\\\?\\C:\\outside", "NUL", "CON", "outside\0",
    "\0", "a\0b", "outside::$DATA", "file:///outside", "http://127.0.0.1:9/outside", "s3://bucket/outside",
    "pipe:touch outside", "|touch outside", "$(touch outside)", "`touch outside`", "outside\n", "..\u2215outside",
    "\uff0e\uff0e/outside", "-rf", "*", "." * 300, "a/" * 2000,
]  # fmt: skip
SYSTEM_FACTS = ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/proc/self/mountinfo", "/proc/sys/vm/max_map_count")
"""What any process may read of the machine."""

PLACES: dict[str, Callable[[dict, str], object]] = {
    "format": lambda m, text: m.__setitem__("format", text),
    "key": lambda m, text: m.__setitem__("key", text),
    "required": lambda m, text: m.__setitem__("required", [text]),
    "table": lambda m, text: m.__setitem__("table", text),
    "table after a digest": lambda m, text: m.__setitem__("table", m["table"] + "/" + text),
    "name of a fact": lambda m, text: m["metadata"].__setitem__(text, 1),
    "fact": lambda m, text: m["metadata"].__setitem__("a", text),
    "facts": lambda m, text: m["metadata"].__setitem__("a", [text]),
    "codec": lambda m, text: m["generations"][0].__setitem__("codec", text),
    "dictionary": lambda m, text: m["generations"][0].__setitem__("dictionary", text),
    "writer": lambda m, text: m["generations"][0]["writer"].__setitem__("numpy", text),
    "field name": lambda m, text: m["schema"][1].__setitem__("name", text),
    "field type": lambda m, text: m["schema"][1].__setitem__("type", text),
    "field codec": lambda m, text: m["schema"][1].__setitem__("codec", text),
    "version": lambda m, text: m.__setitem__("version", text),
}
_seen: list[tuple[str, str]] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _seen is not None and event in (
        "open",
        "os.mkdir",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.remove",
        "os.listdir",
    ):
        _seen.append((event, str(arguments[0])))
    elif _seen is not None and event in (
        "socket.connect",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "pickle.find_class",
    ):
        _seen.append((event, "elsewhere"))


@pytest.fixture(scope="session")
def watched():
    """Tells what is opened or made while a function runs; an audit hook cannot be taken away, only be told to rest."""
    sys.addaudithook(_watch)

    def call(work: Callable[[], object]) -> list[tuple[str, str]]:
        global _seen
        _seen = []
        try:
            work()
            return _seen
        finally:
            _seen = None

    return call


@pytest.mark.parametrize("place", PLACES)
def test_no_string_of_a_manifest_is_a_path(forge, watched, place):
    forged = forge()
    shardload.open(forged.path)[0]
    table = forged.path / "tables" / forged.sound.table

    def work():
        try:
            dataset = shardload.open(forged.path)
            for sample_id in (*range(0, len(dataset), 2), -1):
                dataset[sample_id]
        except shardload.FormatError as error:
            check_error(error, forged.path)

    assert table.exists()
    for text in PATHS:
        manifest = json.loads(json.dumps(json.loads(canonical(forged.manifest))))
        PLACES[place](manifest, text)
        forged.write_manifest(manifest_text(canonical(manifest)))
        for event, path in watched(work):
            inside = path.startswith(f"{forged.path}{os.sep}") and os.pardir not in path.split(os.sep)
            facts = path in SYSTEM_FACTS
            assert event == "open" and (inside or facts), (text, event, path)
    assert not list(forged.path.parent.rglob("outside*"))


def test_the_watch_sees_what_is_opened(watched, tmp_path):
    assert ("open", str(tmp_path / "a")) in watched(lambda: (tmp_path / "a").write_bytes(b""))


def test_the_means_are_sound(forge):
    """What the cases start from reads: they are refused for what was changed."""
    forged = forge()
    data = manifest_text(canonical(forged.manifest))
    assert data == (forged.path / "manifest.json").read_bytes()
    assert decode_manifest(data, "place").fingerprint == hashlib.sha256(canonical(forged.manifest)).hexdigest()
    assert decode_manifest(manifest_text(facts('"a"')(canonical(forged.manifest))), "place").metadata == {"a": "a"}
