"""A reader that also checks all that FORMAT.md says can be checked. It imports nothing of shardload and trusts nothing."""

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import zstandard

NONE, IN_RECORD = 2**32 - 1, ("bytes", "str", "json", "jpeg", "png", "audio", "video")
TABLE = list(range(256))
for _ in range(8):
    TABLE = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in TABLE]


def check(sound, what):
    if not sound:
        raise ValueError(f"{what} is not as the format page says")


def sha256(data):
    return hashlib.sha256(data).digest()


def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def checksum(identity, data):
    crc = NONE
    for byte in struct.pack("<5I", *identity) + bytes(data):
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ NONE


def read_dataset(path):
    """All samples of the dataset, in order: one dict a sample, None where a nullable field has no value."""
    path, samples, counts = Path(path), [], {}
    newest = max((int(p.name) for p in (path / "manifests").iterdir() if p.name.isdecimal()), default=None)
    file = path / "manifest.json" if (path / "manifest.json").exists() else path / "manifests" / str(newest)
    outer = json.loads(file.read_bytes())
    manifest = outer["manifest"]
    check(file.read_bytes() == canonical(outer) + b"\n" and len(canonical(outer)) < 2**20, "the manifest's form")
    check(outer == {"fingerprint": sha256(canonical(manifest)).hex(), "manifest": manifest}, "the fingerprint")
    check((manifest["format"], manifest["draft"], manifest["required"]) == ("shardload", 1, []), "the draft")
    table = (path / "tables" / manifest["table"]).read_bytes()
    check(sha256(table).hex() == manifest["table"], "the table's digest")
    check(struct.unpack_from("<8sIIQQ", table) == (b"SHRDTABL", 1, 88, (len(table) - 32) // 88, 0), "the table's head")
    entries = list(struct.iter_unpack("<IIIIQ32s32s", table[32:]))
    check([e[:3] for e in entries] == sorted({e[:3] for e in entries}), "the table's order")
    sums = {
        "num_shards": len(entries),
        "num_samples": sum(e[3] for e in entries),
        "num_bytes": sum(e[4] for e in entries),
    }
    check(sums.items() <= manifest.items(), "a sum over the table")
    for entry in entries:
        num_fields = next(g["num_fields"] for g in manifest["generations"] if g["generation"] == entry[0])
        data = (path / "shards" / "{:04}-{:06}-{:05}.shard".format(*entry[:3])).read_bytes()
        check(len(data) <= manifest["shard_size"] or entry[3] == 1, "the size of a shard")
        samples += read_shard(data, entry, manifest["schema"][:num_fields])
        counts[entry[0]] = counts.get(entry[0], 0) + entry[3]
    check(all(counts.get(g["generation"], 0) == g["num_samples"] for g in manifest["generations"]), "a generation")
    return samples


def read_shard(data, entry, schema):
    place, num_samples, size, head_digest, file_digest = entry[:3], *entry[3:]
    check(len(data) == size and sha256(data) == file_digest, "the file's digest")
    header, num_sections = data[:4096], struct.unpack_from("<I", data, size - 116)[0]
    directory = size - 128 - 64 * num_sections
    check(sha256(data[directory:]) == head_digest, "the head digest")
    footer = b"SHRDFOOT" + struct.pack("<IIQQ", 1, num_sections, num_samples, size) + sha256(header)
    check(data[-128:] == footer.ljust(120, b"\0") + b"SHRDFOOT", "the footer")
    check(header[:16] + header[20:] == (b"\x89SHRD\r\n\x1a" + struct.pack("<7I", 1, 0, *place, 1, 0)
                                        + sha256(canonical(schema))).ljust(4092, b"\0"), "the header")  # fmt: skip
    fields, in_record, nullable, wide = [], [], [], []  # a field: (name, dtype or type in the record, bfloat16?)
    for number, field in enumerate(schema):
        kind, shape, optional = re.fullmatch(r"(\w+)(?:\[([\d,]+)\])?(\??)", field["type"]).groups()
        dtype = kind if kind in IN_RECORD else np.dtype("uint16" if kind == "bfloat16" else kind).newbyteorder("<")
        dtype = dtype if shape is None else np.dtype((dtype, tuple(map(int, shape.split(",")))))
        fields.append((field["name"], dtype, kind == "bfloat16"))
        nullable += [number] if optional else []
        in_record += [number] if kind in IN_RECORD else []
        wide += [number] if kind not in IN_RECORD and dtype.itemsize >= 512 else []
    columns = [("place", "<u8"), ("stored", "<u4"), ("raw", "<u4")] if in_record else []
    columns += [(f"sum{n}", "<u4") for n in wide]
    columns += [(f"{n}", fields[n][1]) for n in range(len(fields)) if n not in in_record + wide]
    columns += [("validity", "u1", (len(nullable) + 7) // 8)] if nullable else []
    columns.sort(key=lambda column: -np.dtype(column[1]).base.itemsize)
    row_size, scalar = np.dtype(columns).itemsize, np.dtype(columns[0][1]).base.itemsize
    columns += [("padding", "u1", -row_size % scalar)] if row_size % scalar else []
    row_size = np.dtype(columns).itemsize
    kinds = [(1, NONE, 0)] * bool(in_record) + [(2, n, fields[n][1].itemsize) for n in wide]
    kinds += [(3, NONE, row_size), (4, NONE, 32)]
    sections, end = {}, 4096
    for expected, at in zip(kinds, range(directory, size - 128, 64), strict=True):
        kind, number, offset, length, item, digest = struct.unpack_from("<IIQQQ32s", data, at)
        section = sections[kind, number] = data[offset : offset + length]
        check((kind, number, item) == expected and offset == end + -end % (64 if kind == 4 else 4096), "the directory")
        check(digest == (sha256(section) if kind == 4 else bytes(32)), "the digest of a section")
        check(not any(data[end:offset]) and (item in (0, 32) or length == item * num_samples), "the padding")
        end = offset + length
    check(directory == end + -end % 64 and not any(data[end:directory]), "the padding before the directory")
    page = row_size * max(1, 16384 // row_size)
    pages = [sections[3, NONE][i : i + page] for i in range(0, num_samples * row_size, page)]
    check(b"".join(map(sha256, pages)) == sections[4, NONE], "a page's digest")
    rows = np.frombuffer(sections[3, NONE], np.dtype(columns))
    end, samples = 4096, []
    for i, row in enumerate(rows):
        check("padding" not in rows.dtype.names or not row["padding"].any(), "the row's padding")
        values = {n: row[str(n)] for n in range(len(fields)) if str(n) in rows.dtype.names}
        for n in wide:
            section, item = sections[2, n], fields[n][1].itemsize
            check(row[f"sum{n}"] == checksum((*place, n, i), section[i * item : i * item + item]), "a wide checksum")
            values[n] = np.frombuffer(section, fields[n][1].base, item // fields[n][1].base.itemsize, i * item)
            values[n] = values[n].reshape(fields[n][1].shape)
        if in_record:
            start, flags, stored = int(row["place"]) & 2**48 - 1, int(row["place"]) >> 48, int(row["stored"])
            check(start == end + -end % (64 if stored >= 1024 else 16) and flags < 2, "the place of a record")
            check(not any(data[end:start]), "the padding before a record")
            end = start + stored
            record, head = data[start:end], 4 + 4 * len(in_record)
            check(struct.unpack_from("<I", record)[0] == checksum((*place, NONE, i), record[4:]), "a record's checksum")
            lengths = dict(zip(in_record, struct.unpack_from(f"<{len(in_record)}I", record, 4), strict=True))
            packed = [n for n in in_record if schema[n]["codec"] == "zstd"]
            order = [n for n in in_record if n not in packed] + packed
            plain, body = sum(lengths[n] for n in order if n not in packed), record[head:]
            if flags:
                frame = zstandard.get_frame_parameters(body[plain:])
                check(frame.content_size == sum(lengths[n] for n in packed) and not frame.has_checksum, "a frame")
                check(len(body) - plain < frame.content_size, "a frame that is not smaller")
                body = body[:plain] + zstandard.ZstdDecompressor().decompress(body[plain:], allow_extra_data=False)
            check(head + len(body) == row["raw"] == head + sum(lengths.values()), "the length of a record")
            at = 0
            for n in order:
                values[n] = body[at : at + lengths[n]]
                at += lengths[n]
        check(not nullable or int.from_bytes(row["validity"], "little") < 1 << len(nullable), "the validity")
        missing = [n for k, n in enumerate(nullable) if not row["validity"][k // 8] >> k % 8 & 1]
        check(not any(np.frombuffer(bytes(values[n]), "u1").any() for n in missing), "a missing value")
        check(not any(len(values[n]) for n in missing if n in in_record), "the length of a missing value")
        samples.append(
            {fields[n][0]: None if n in missing else decode(values[n], *fields[n][1:]) for n in sorted(values)}
        )
    check(not in_record or end == 4096 + len(sections[1, NONE]), "the length of the heap")
    return samples


def decode(value, dtype, bfloat16):
    if bfloat16:
        return (np.asarray(value, "<u4") << 16).view("<f4")[()]
    return str(value, "utf-8") if dtype == "str" else json.loads(value) if dtype == "json" else value
