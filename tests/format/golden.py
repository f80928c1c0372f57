"""How the golden files of the format, version 1, were made: `PYTHONPATH=.:tests python tests/format/golden.py`.

For each dataset there are `golden/<name>.zip`, its files as the writer left them, and `golden/<name>.json`, what every reader
must find in it. The values come from this file, never from a reader. What is there is never made anew: a dataset once written
is read for ever, so new features are new names in `DATASETS`. `test_golden.py` reads the files, and compares what the writer
of today makes of the same values.
"""

from __future__ import annotations

import base64
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tars import END, member

import shardload

GOLDEN = Path(__file__).parent / "golden"
Sample = dict[str, Any]
Samples = list[Sample]

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
KINDS = ["bool", *INTEGERS, "float16", "float32", "float64", "bfloat16"]
EDGES: dict[str, list[float]] = {
    "bool": [1, 0, 0],
    "float16": [float("nan"), -0.0, 65504, 2.0**-24, float("-inf")],
    "float32": [float("inf"), float("nan"), -0.0, 2.0**-149, (2 - 2.0**-23) * 2.0**127],
    "float64": [5e-324, float("nan"), -1.7976931348623157e308, -0.0, 0.1],
    # The upper halves of a float32 hold these exactly.
    "bfloat16": [float("nan"), -0.0, float("inf"), 2.0**-133, -(2 - 2.0**-7) * 2.0**127, 0.15625],
}
"""Numbers that go wrong first, beside the ends of the integers."""
TEXTS = ["", "plain", "äöü 中文 \U0001f600\n\0\t\u2028", "the same words again and again " * 9]
JSONS: list[Any] = [
    {"b": [1, None, True, 1.5], "a": {"": "\u2028é\x01"}, "big": 1 << 70},
    [],
    "text",
    {"deep": [[[[{}]]]], "e": 1e300},
]
MAGICS = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "audio": b"", "video": b""}
PLACES = ["number", "row", "wide", "items", "packed"]


def numbers(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers of a kind by a rule, ends and special ones among them; of bfloat16 as float32."""
    dtype = np.dtype({"bfloat16": "f4"}.get(kind, kind))
    edges = EDGES.get(kind) or [np.iinfo(dtype).min, np.iinfo(dtype).max, 0]
    cycle = [*edges, *(range(2) if kind == "bool" else range(23))]
    return np.array([cycle[(i + seed) % len(cycle)] for i in range(int(np.prod(shape)))], dtype=dtype).reshape(shape)


def value(kind: str, place: str, seed: int) -> Any:
    """A value of a kind of number in a place."""
    # 512 bytes and more are wide; ragged ones of no items too, and of several blocks.
    wide = -(-513 // np.dtype({"bfloat16": "u2"}.get(kind, kind)).itemsize)
    shape = {"number": (1,), "row": (2, 3), "wide": (wide,), "packed": (7 * seed % 9, 2)}
    shape["items"] = ((0, 5, 1300, 3)[seed % 4], 2) if kind == "uint32" else (3 * seed % 5, 2)
    array = numbers(kind, shape[place], seed)
    return array[0].item() if place == "number" else array


def type_of(kind: str, place: str) -> Any:
    """The type of such values."""
    wide = -(-513 // np.dtype({"bfloat16": "u2"}.get(kind, kind)).itemsize)
    texts = {"number": kind, "row": f"{kind}[2,3]", "wide": f"{kind}[{wide}]", "items": f"{kind}[*,2]"}
    return texts.get(place) or {"type": f"{kind}[*,2]", "compression": "zstd"}


def variable(i: int) -> Sample:
    """A value of each kind that is stored in the record."""
    sample: Sample = {"bytes": bytes(range(i * 50 % 256)), "str": TEXTS[i % 4], "json": JSONS[i % 4]}
    sample |= {name: magic + bytes([i] * (i * 700 % 1500)) for name, magic in MAGICS.items()}
    return sample | {"bytes[*]": [bytes([i]) * n for n in range(i % 4)], "str[*]": TEXTS[: i % 5]}


def write(path: Path, types: Any, samples: Samples, **options: Any) -> Samples:
    """Writes one generation."""
    with shardload.ShardWriter(path, types, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return samples


def kinds(path: Path) -> Samples:
    """Every kind of field in every place; zstd without a dictionary, fields of bytes with and without it."""
    types = {f"{kind} {place}": type_of(kind, place) for place in PLACES for kind in KINDS}
    types |= {name: name for name in variable(0)}
    types |= {f"{name} plain": {"type": name, "compression": "none"} for name in ("bytes", "str", "json", "str[*]")}
    samples = []
    for i in range(4):
        sample = {f"{kind} {place}": value(kind, place, i) for place in PLACES for kind in KINDS} | variable(i)
        samples.append(sample | {f"{name} plain": variable(i + 1)[name] for name in ("bytes", "str", "json", "str[*]")})
    return write(path, types, samples, compression="zstd:3")


def nullable(path: Path) -> Samples:
    """Missing values of every kind and place; nothing compressed; names that JSON escapes, and facts of every type."""
    types = {f"{kind} number": f"{kind}?" for kind in KINDS}
    some = [("int64", "row"), ("float16", "wide"), ("bfloat16", "wide"), ("bool", "items"), ("float32", "items")]
    types |= {f"{kind} {place}": f"{type_of(kind, place)}?" for kind, place in some}
    types |= {name: f"{name}?" for name in variable(0)}
    types |= {'q"\\/ü\u2028': "int32[*]?", "there": "uint16", "never": "str?"}
    samples: Samples = []
    for i in range(6):
        sample = {f"{kind} number": value(kind, "number", i) for kind in KINDS} | variable(i)
        sample |= {f"{kind} {place}": value(kind, place, i) for kind, place in some}
        sample |= {'q"\\/ü\u2028': np.arange(i, dtype=np.int32) - 2, "there": 65535 - i}
        # The last sample but one has all, the last nothing.
        gone = [name for n, name in enumerate(types) if name != "there" and (i == 5 or (i < 4 and (n + i) % 3 == 0))]
        samples.append(sample | dict.fromkeys(gone) | {"never": None})
    facts = {"text": "ä\u2028\x1f", "yes": True, "least": -(1 << 63), "most": (1 << 63) - 1, "mixed": ["a", 1, False]}
    return write(path, types, samples, metadata=facts)


def generations(path: Path) -> Samples:
    """Three generations: with a dictionary, with another codec and more fields in every place, and not compressed.

    A text key, several shards a unit, frames and records that zstd did not make smaller, and a sample larger than a shard.
    """
    first = {"id": "str", "label": "int8", "words": "uint16[*]", "text": "str", "image": "jpeg?"}
    later = {"score": "float64?", "vector": "float32[130]?", "box": "int16[2,2]?", "spans": "int64[*,2]?"}
    later |= {"note": "str?", "tags": "str[*]?", "mask": {"type": "bool[*]?", "compression": "zstd"}}  # type: ignore[dict-item]

    def sample(i: int, more: bool) -> Sample:
        one: Sample = {
            "id": f"sample-{i}",
            "label": i - 20,
            "words": np.arange(i * 97 % 900, dtype=np.uint16) * 3 + i,
            "text": f"Sample number {i} of the golden files has a text that is much like those of the others. "
            * (i % 3),
            "image": None if i % 3 == 1 else MAGICS["jpeg"] + bytes([i]) * (i * 130 % 1100),
        }
        if more:
            one |= {"score": None if i % 2 else i / 7, "vector": None if i % 3 == 2 else numbers("float32", (130,), i)}
            one |= {
                "box": None if i % 4 == 0 else np.full((2, 2), -i, np.int16),
                "note": None if i % 3 == 0 else f"{i}",
            }
            one |= {"spans": None if i % 5 == 0 else np.arange(i % 4 * 2, dtype=np.int64).reshape(-1, 2) - i}
            one |= {"tags": None if i % 4 == 1 else ["tag"] * (i % 3), "mask": None if i % 2 else np.arange(i) % 3 == 0}
        return one

    options = {"shard_size": "32KiB"}
    samples = [sample(i, False) for i in range(24)]
    samples[20]["image"] = MAGICS["jpeg"] + bytes(range(256)) * 130  # larger than a shard
    write(path, first, samples, key="id", compression="zstd:3", dictionary="on", metadata={"a": 1}, **options)
    middle = [sample(i, True) for i in range(24, 36)]
    write(
        path, first | later, middle, append=True, compression="zstd:-5", dictionary="off", metadata={"b": 2}, **options
    )
    last = [sample(i, True) for i in range(36, 44)]
    write(path, None, last, append=True, compression="none", **options)
    return [*(one | dict.fromkeys(later) for one in samples), *middle, *last]


def units(path: Path) -> Samples:
    """Several units, one of them of several shards and one of none; a key of integers."""
    lines = [{"id": i * i - 50, "text": "some more text " * (i % 7)} for i in range(90)]
    lines[30]["text"] = "".join(f"{i * i % 9973:x}" for i in range(3000))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "lines.jsonl")
        texts = [json.dumps(line) for line in lines]
        source.write_text("\n".join([*texts[:80], "\n" * 5000, *texts[80:], ""]))
        types = {"id": "int32", "text": {"type": "str", "compression": "zstd"}}
        options: dict[str, Any] = {"compression": "zstd:1", "dictionary": "off", "workers": 1}
        shardload.pack(source, path, schema=types, key="id", shard_size="10KiB", unit_size=4096, **options)
    return lines  # type: ignore[return-value]


def external(path: Path) -> Samples:
    """Records in two tars and, of a second generation, in a third."""
    samples: Samples = []
    path.mkdir()
    for number in range(3):
        data = b""
        for i in range(4):
            place = len(samples)
            one: Sample = {
                "key": f"folder/{place:03d}",
                "cls": place - 4,
                "jpg": MAGICS["jpeg"] + bytes([place]) * (place * 90),
                "json": JSONS[place % 4],
                "txt": None if i == 1 else f"text {place} äöü"[: place * 3],
                "vec": np.arange(place, dtype=np.int32) - 1,
            }
            samples.append(one)
            members: list[tuple[str, bytes]] = [("jpg", one["jpg"]), ("cls", b"%d" % one["cls"])]
            members += [("json", json.dumps(one["json"]).encode())]
            members += [] if one["txt"] is None else [("txt", one["txt"].encode())]
            members += [("vec", one["vec"].astype("<i4").tobytes())]
            data += b"".join(member(f"{one['key']}.{suffix}", content) for suffix, content in members)
        (path / f"part-{number}.tar").write_bytes(data + END)
        if number:
            types = {"key": "str", "cls": "int64", "jpg": "jpeg", "json": "json", "txt": "str?", "vec": "bytes"}
            # Of the first call are two tars.
            options: dict[str, Any] = {"key": "key", "schema": types} if number == 1 else {"append": True}
            shardload.index(path, workers=1, unit_size=1 << 20, **options)
    return [one | {"vec": one["vec"].astype("<i4").tobytes()} for one in samples]


def pages(path: Path) -> Samples:
    """A row table of three pages, the last one shorter; nothing but packed rows."""
    samples: Samples = [
        {"number": (i * 2654435761) % (1 << 32), "part": None if i % 7 == 3 else numbers("int8", (8,), i)}
        for i in range(2100)
    ]
    return write(path, {"number": "uint32", "part": "int8[8]?"}, samples)


def large_rows(path: Path) -> Samples:
    """Packed rows that are each larger than a page."""
    samples = [{f"field {n}": numbers("uint8", (505,), i + n) for n in range(33)} for i in range(3)]
    return write(path, {f"field {n}": "uint8[505]" for n in range(33)}, samples)


def empty(path: Path) -> Samples:
    """No sample and no shard."""
    return write(path, {"text": "str", "tokens": "uint16[*]"}, [], metadata={"classes": []})


DATASETS: dict[str, Callable[[Path], Samples]] = {
    made.__name__: made for made in (kinds, nullable, generations, units, external, pages, large_rows, empty)
}


def neutral(type_text: str, one: Any) -> Any:
    """A value in a form that needs nothing of shardload: see `read_value` of `test_golden.py`."""
    kind = type_text.rstrip("?").partition("[")[0]
    if one is None or isinstance(one, str):
        return {"json": one} if kind == "json" and one is not None else one
    if kind == "json":
        return {"json": one}
    if isinstance(one, bytes):
        return {"bytes": _text(one)}
    if kind in ("bytes", "str"):
        return {"list": [item if isinstance(item, str) else {"bytes": _text(item)} for item in one]}
    array = np.asarray(one, dtype=np.dtype({"bfloat16": "f4"}.get(kind, kind)).newbyteorder("<"))
    stored = (array.view("<u4") >> 16).astype("<u2") if kind == "bfloat16" else array
    return {"kind": kind, "shape": list(array.shape), "bytes": _text(stored.tobytes())}


def column(type_text: str, values: list[Any]) -> Any:
    """All values of a field; of many numbers one array, and which are missing."""
    if len(values) < 1000:
        return [neutral(type_text, one) for one in values]
    there = next(one for one in values if one is not None)
    filled = np.array([np.zeros_like(there) if one is None else one for one in values])
    return {"all": neutral(type_text, filled), "missing": [i for i, one in enumerate(values) if one is None]}


def _text(data: bytes) -> str:
    """Bytes in hexadecimal, or long ones, after a tilde, compressed by zlib and in base 64."""
    return data.hex() if len(data) <= 64 else "~" + base64.b64encode(zlib.compress(data, 9)).decode()


def files_of(path: Path) -> dict[str, bytes]:
    """The files of a dataset by name, but for what readers never look at."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return {name: (path / name).read_bytes() for name in names if name not in ("packed.json", "rejects.jsonl")}


def make(name: str, folder: Path) -> tuple[dict[str, bytes], Any]:
    """Writes a dataset; returns its files, and what readers must find in it."""
    path = folder / name
    samples = DATASETS[name](path)
    files = files_of(path)
    manifests = [json.loads(data) for file, data in files.items() if file.startswith("manifests/")]
    manifest = json.loads(files["manifest.json"])["manifest"]
    types = {entry["name"]: entry["type"] for entry in manifest["schema"]}
    facts = {
        "about": (DATASETS[name].__doc__ or "").strip(),
        "fingerprints": {str(one["manifest"]["version"]): one["fingerprint"] for one in manifests},
        "key": manifest["key"],
        "metadata": manifest["metadata"],
        "num_samples": len(samples),
        "types": types,
        "columns": {name: column(text, [one[name] for one in samples]) for name, text in types.items()},
    }
    return files, facts


def main() -> None:
    """Writes the datasets that are not there yet."""
    for name in DATASETS:
        if (GOLDEN / f"{name}.json").exists():
            print(f"{name}: there, and stays as it is")
            continue
        with tempfile.TemporaryDirectory() as folder:
            files, facts = make(name, Path(folder))
        with zipfile.ZipFile(GOLDEN / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file, data in files.items():
                archive.writestr(zipfile.ZipInfo(file), data, zipfile.ZIP_DEFLATED, 9)
        (GOLDEN / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {len(facts['columns'])} fields, {len(files)} files")


if __name__ == "__main__":
    main()
