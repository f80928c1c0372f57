"""The shortest reader of shardload datasets, written from FORMAT.md: numpy and zstandard, no check of any kind."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import zstandard

IN_RECORD = ("bytes", "str", "json", "jpeg", "png", "audio", "video")


def read_dataset(path):
    manifest = json.loads((Path(path) / "manifest.json").read_bytes())["manifest"]
    table = (Path(path) / "tables" / manifest["table"]).read_bytes()[32:]
    names = ["{:04}-{:06}-{:05}.shard".format(*entry[:3]) for entry in struct.iter_unpack("<IIIIQ64x", table)]
    return [s for name in names for s in read_shard((Path(path) / "shards" / name).read_bytes(), manifest["schema"])]


def read_shard(data, schema):
    num_sections, num_samples = struct.unpack_from("<IQ", data, len(data) - 116)
    directory = data[len(data) - 128 - 64 * num_sections : -128]
    sections = {(kind, field): (start, size) for kind, field, start, size in struct.iter_unpack("<IIQQ40x", directory)}
    fields = [re.fullmatch(r"(\w+)(?:\[([\d,]+)\])?(\??)", field["type"]).groups() for field in schema]
    shapes = [tuple(map(int, shape.split(","))) if shape else () for _, shape, _ in fields]
    types = {n: np.dtype({"bfloat16": "<u2"}.get(k, k)) for n, (k, _, _) in enumerate(fields) if k not in IN_RECORD}
    wide = [n for n, dtype in types.items() if dtype.itemsize * np.prod(shapes[n], dtype=int) >= 512]
    record = [n for n in range(len(fields)) if n not in types]
    nullable = [n for n, (_, _, optional) in enumerate(fields) if optional]
    columns = [("place", "<u8"), ("stored", "<u4"), ("raw", "<u4")] if record else []
    columns += [(f"sum {n}", "<u4") for n in wide] + [(str(n), types[n], shapes[n]) for n in types if n not in wide]
    columns += [("validity", "u1", (-(-len(nullable) // 8),))] if nullable else []
    columns.sort(key=lambda column: -np.dtype(column[1]).itemsize)
    unpadded, scalar = np.dtype(columns).itemsize, np.dtype(columns[0][1]).itemsize
    rows = np.frombuffer(
        data, [*columns, ("padding", "u1", -unpadded % scalar)], num_samples, sections[3, 2**32 - 1][0]
    )
    fixed = {n: rows[str(n)] for n in types if n not in wide}
    for n in wide:
        values = np.frombuffer(data, types[n], num_samples * np.prod(shapes[n], dtype=int), sections[2, n][0])
        fixed[n] = values.reshape(num_samples, *shapes[n])
    for i, row in enumerate(rows):
        values = {
            n: (column[i].astype("u4") << 16).view("f4") if fields[n][0] == "bfloat16" else column[i]
            for n, column in fixed.items()
        }
        values |= read_record(data, row, record, schema) if record else {}
        valid = {n: row["validity"][k // 8] >> k % 8 & 1 for k, n in enumerate(nullable)}
        yield {
            field["name"]: decode(fields[n][0], values[n]) if valid.get(n, 1) else None
            for n, field in enumerate(schema)
        }


def read_record(data, row, record, schema):
    start, framed = int(row["place"]) & 2**48 - 1, int(row["place"]) >> 48 & 1
    lengths = dict(zip(record, struct.unpack_from(f"<{len(record)}I", data, start + 4), strict=True))
    body = data[start + 4 + 4 * len(record) : start + int(row["stored"])]
    plain, packed = ([n for n in record if schema[n]["codec"] == codec] for codec in ("none", "zstd"))
    if framed:
        end = sum(lengths[n] for n in plain)
        body = body[:end] + zstandard.decompress(body[end:])
    ends = np.cumsum([lengths[n] for n in plain + packed])
    return {n: body[end - lengths[n] : end] for n, end in zip(plain + packed, ends, strict=True)}


def decode(kind, value):
    return value.decode() if kind == "str" else json.loads(value) if kind == "json" else value
