"""The shortest reader of shardload datasets, written from FORMAT.md: numpy and zstandard, no check of any kind."""

import itertools
import json
import re
import struct
from pathlib import Path

import numpy as np
import zstandard

IN_RECORD, NO_FIELD = ("bytes", "str", "json", "jpeg", "png", "audio", "video"), 2**32 - 1


def read_dataset(path):
    manifest = json.loads((Path(path) / "manifest.json").read_bytes())["manifest"]
    schema, samples = manifest["schema"], []
    fields_of = {generation["generation"]: generation["num_fields"] for generation in manifest["generations"]}
    table = (Path(path) / "tables" / manifest["table"]).read_bytes()
    for at in range(32, len(table), int.from_bytes(table[12:16], "little")):
        generation, unit, part = struct.unpack_from("<III", table, at)
        data = (Path(path) / "shards" / f"{generation:04}-{unit:06}-{part:05}.shard").read_bytes()
        later = {entry["name"]: None for entry in schema[fields_of[generation] :]}
        samples += [sample | later for sample in read_shard(data, schema[: fields_of[generation]], Path(path))]
    return samples


def read_shard(data, schema, folder):
    num_sections = struct.unpack_from("<I", data, len(data) - 116)[0]
    directory = struct.iter_unpack("<IIQQ40x", data[len(data) - 128 - 64 * num_sections : -128])
    sections = {(kind, number): data[start : start + size] for kind, number, start, size in directory}
    fields = [re.fullmatch(r"(\w+)(\[\*?)?,?(?:([\d,]+))?\]?(\??)", entry["type"]).groups() for entry in schema]
    kinds, shapes = [f[0] for f in fields], [tuple(map(int, f[2].split(","))) if f[2] else () for f in fields]
    types = [None if k in IN_RECORD else np.dtype({"bfloat16": "<u2"}.get(k, k)).newbyteorder("<") for k in kinds]
    sizes = [dtype and int(dtype.itemsize * np.prod(shape, dtype=int)) for dtype, shape in zip(types, shapes)]
    stars = [n for n, field in enumerate(fields) if field[1] == "[*"]
    stream = [n for n in stars if types[n] and schema[n]["codec"] == "none"]
    record = [n for n, dtype in enumerate(types) if dtype is None or (n in stars and n not in stream)]
    wide = [n for n, size in enumerate(sizes) if n not in record + stream and size >= 512]
    small = [n for n in range(len(fields)) if n not in record + stream + wide]
    nullable = [n for n, field in enumerate(fields) if field[3]]
    columns = [("place", "<u8"), ("stored", "<u4"), ("raw", "<u4")] if record else []
    columns += [(f"sum {n}", "<u4") for n in wide]
    columns += [column for n in stream for column in ((f"start {n}", "<u8"), (f"count {n}", "<u4"))]
    columns += [(f"{n}", types[n], shapes[n]) for n in small]
    columns += [("validity", "u1", (-(-len(nullable) // 8),))] if nullable else []
    columns.sort(key=lambda column: -np.dtype(column[1]).itemsize)
    columns += [("padding", "u1", (-np.dtype(columns).itemsize % np.dtype(columns[0][1]).itemsize,))]
    dictionary = zstandard.ZstdCompressionDict(sections[6, NO_FIELD]) if (6, NO_FIELD) in sections else None
    files = [(folder / file["name"]).read_bytes() for file in json.loads(sections.get((9, NO_FIELD), b"[]"))]
    for i, row in enumerate(np.frombuffer(sections[3, NO_FIELD], columns)):
        stored = read_record(data, row, record, schema, dictionary, files) if record else {}
        stored |= {n: sections[2, n][i * sizes[n] : (i + 1) * sizes[n]] for n in wide}
        for n in stream:
            start, stop = int(row[f"start {n}"]), int(row[f"start {n}"]) + int(row[f"count {n}"])
            stored[n] = sections[5, n][start * sizes[n] : stop * sizes[n]]
        stored |= {n: row[f"{n}"].tobytes() for n in small}
        missing = [n for k, n in enumerate(nullable) if not row["validity"][k // 8] >> k % 8 & 1]
        values = [decode(kinds[n], types[n], shapes[n], n in stars, stored[n]) for n in range(len(schema))]
        yield {entry["name"]: None if n in missing else values[n] for n, entry in enumerate(schema)}


def read_record(data, row, record, schema, dictionary, files):
    start, framed, external = int(row["place"]) & 2**48 - 1, int(row["place"]) >> 48 & 1, int(row["place"]) >> 49 & 1
    lengths = dict(zip(record, struct.unpack_from(f"<{len(record)}I", data, start + 4), strict=True))
    body = data[start + 4 + 4 * len(record) : start + int(row["stored"])]
    plain, packed = ([n for n in record if schema[n]["codec"] == codec] for codec in ("none", "zstd"))
    if framed:
        end = sum(lengths[n] for n in plain)
        body = body[:end] + zstandard.ZstdDecompressor(dict_data=dictionary).decompress(body[end:])
    if external:
        number, *places = struct.unpack_from(f"<I{len(record)}Q", body)
        outside = {n: place for n, place in zip(record, places) if place != 2**64 - 1}
        here, body = body[4 + 8 * len(record) :], b""
        for n in plain + packed:
            start, source = (outside[n], files[number]) if n in outside else (0, here)
            body, here = body + source[start : start + lengths[n]], here if n in outside else here[lengths[n] :]
    ends = np.cumsum([lengths[n] for n in plain + packed])
    return {n: body[end - lengths[n] : end] for n, end in zip(plain + packed, ends, strict=True)}


def decode(kind, dtype, shape, starred, data):
    if dtype is not None:
        array = np.frombuffer(data, dtype).reshape((*[-1] * starred, *shape))
        return (array.astype("u4") << 16).view("f4") if kind == "bfloat16" else array
    if starred:
        count = int.from_bytes(data[:4], "little")
        ends = np.cumsum([4 + 4 * count, *struct.unpack_from(f"<{count}I", data[4:])])
        return [decode(kind, None, (), False, data[start:end]) for start, end in itertools.pairwise(ends)]
    return data.decode() if kind == "str" else json.loads(data or "null") if kind == "json" else data
