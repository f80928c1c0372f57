"""A reader that also checks all that FORMAT.md says can be checked. It imports nothing of shardload and trusts nothing."""

import hashlib
import itertools
import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import zstandard

NONE, NOTHING = 2**32 - 1, bytes(32)
KINDS = {"bool": "u1", "bfloat16": "<u2"} | {
    k: np.dtype(k).newbyteorder("<") for k in ("float16", "float32", "float64")
}
KINDS |= {
    f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").newbyteorder("<") for sign in ("", "u") for bits in (8, 16, 32, 64)
}
IN_RECORD = ("bytes", "str", "json", "jpeg", "png", "audio", "video")
DIMENSIONS = r"[1-9][0-9]*(?:,[1-9][0-9]*)*"
TYPE = re.compile(rf"([a-z]+[0-9]*)(?:\[(\*(?:,{DIMENSIONS})?|{DIMENSIONS})\])?(\?)?")
DESCRIBED = ("draft", "format", "generations", "key", "metadata", "required", "schema", "version")
GENERATION = ("codec", "dictionary", "generation", "num_fields", "num_samples", "num_units", "shard_size", "writer")
HEX = re.compile("[0-9a-f]{64}")
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


class Field:
    """A field of the schema, as sections 3 and 6 tell it."""

    def __init__(self, number, entry):
        check(sorted(entry) == ["codec", "name", "type"], "an entry of the schema")
        self.number, self.name, self.codec = number, entry["name"], entry["codec"]
        match = TYPE.fullmatch(entry["type"])
        check(match is not None, "a type")
        self.kind, dimensions, self.nullable = match[1], (match[2] or "").split(","), bool(match[3])
        self.starred = dimensions[0] == "*"
        self.shape = tuple(map(int, dimensions[self.starred :])) if match[2] and dimensions != ["*"] else ()
        self.dtype = np.dtype(KINDS[self.kind]) if self.kind in KINDS else None
        check(self.dtype is not None or self.kind in IN_RECORD, "a type")
        check(self.dtype is not None or not match[2] or (self.kind in ("bytes", "str") and match[2] == "*"), "a list")
        check(len(self.shape) + self.starred <= 16, "the number of dimensions")
        self.size = None if self.dtype is None else self.dtype.itemsize * math.prod(self.shape)
        check(self.size is None or self.size < 2**32, "the size of a value")
        check(self.codec == "none" or (self.codec == "zstd" and (self.starred or self.kind in ("bytes", "str", "json"))),
              "a codec")  # fmt: skip
        self.ragged = self.starred and self.dtype is not None
        self.streamed = self.ragged and self.codec == "none"
        self.in_record = self.dtype is None or (self.ragged and not self.streamed)
        self.wide = not self.starred and self.dtype is not None and self.size >= 512
        check(re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]+", self.name) and self.name == self.name.strip(" "), "a name")
        check(not self.name.startswith("_") and len(self.name.encode()) <= 128, "a name")

    def decode(self, data):
        """What a value means, from its bytes as stored."""
        if self.dtype is not None:
            check(len(data) % self.size == 0, "the length of a ragged value")
            array = np.frombuffer(data, self.dtype).reshape((*[-1] * self.starred, *self.shape))
            check(self.kind != "bool" or (array < 2).all(), "a bool")
            array = array.astype("?") if self.kind == "bool" else array
            return (array.astype("u4") << 16).view("f4") if self.kind == "bfloat16" else array
        return [text(self.kind, item) for item in items_of(data)] if self.starred else text(self.kind, data)


def text(kind, data):
    return data.decode() if kind == "str" else json.loads(data.decode()) if kind == "json" else data


def items_of(data):
    check(len(data) >= 4, "the length of a list")
    count = int.from_bytes(data[:4], "little")
    ends = np.cumsum([4 + 4 * count, *struct.unpack_from(f"<{count}I", data[4:])]).tolist()
    check(ends[-1] == len(data), "the lengths of a list")
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def read_dataset(path):
    """All samples of the dataset, in order: one dict a sample, None where a nullable field has no value."""
    path, samples, keys, parts, counts = Path(path), [], set(), {}, {}
    newest = max((int(p.name) for p in (path / "manifests").iterdir() if p.name.isdecimal()), default=None)
    file = path / "manifest.json" if (path / "manifest.json").exists() else path / "manifests" / str(newest)
    outer = json.loads(file.read_bytes())
    manifest = outer["manifest"]
    check(file.read_bytes() == canonical(outer) + b"\n" and len(canonical(outer)) < 2**20, "the manifest's form")
    check(outer == {"fingerprint": sha256(canonical(manifest)).hex(), "manifest": manifest}, "the fingerprint")
    check(set(manifest) == {*DESCRIBED, "num_bytes", "num_samples", "num_shards", "table"}, "the manifest")
    fields = check_description(manifest)
    entries = read_table((path / "tables" / manifest["table"]).read_bytes(), manifest, fields)
    generations = {g["generation"]: g for g in manifest["generations"]}
    for entry in entries:
        generation = generations[entry[0]]
        data = (path / "shards" / "{:04}-{:06}-{:05}.shard".format(*entry[:3])).read_bytes()
        check(len(data) <= generation["shard_size"] or entry[3] == 1, "the size of a shard")
        check(entry[1] < generation["num_units"], "the number of a unit")
        values, last, digests = read_shard(data, entry, manifest, generation, fields[: generation["num_fields"]], path)
        later = {field.name: None for field in fields[generation["num_fields"] :]}
        samples += [sample | later for sample in values]
        check(keys.isdisjoint(digests), "a key that stands in two shards")
        keys |= digests
        parts.setdefault(entry[:2], []).append((entry[2], last))
        counts[entry[0]] = counts.get(entry[0], 0) + entry[3]
    check(all(counts.get(number, 0) == g["num_samples"] for number, g in generations.items()), "a generation")
    for numbers in parts.values():
        check(numbers == [(n, n == len(numbers) - 1) for n in range(len(numbers))], "the parts of a unit")
    return samples


def check_description(one):
    """Checks what manifest and description have in common, and returns the fields."""
    check((one["format"], one["draft"]) == ("shardload", 2) and one["required"] in ([], ["external"]), "the draft")
    generations, fields = one["generations"], [Field(n, entry) for n, entry in enumerate(one["schema"])]
    check(1 <= len(fields) <= 1024 and len({field.name for field in fields}) == len(fields), "the schema")
    check(type(one["version"]) is int and one["version"] >= 1, "the version")
    for generation in generations:
        check(sorted(generation) == list(GENERATION), "a generation")
        check(sorted(generation["writer"]) == ["numpy", "shardload", "zstd"], "a writer")
        level = re.fullmatch("zstd:(-?[0-9]{1,3})", generation["codec"])
        check(generation["codec"] == "none" or (level and -100 <= int(level[1]) <= 22), "a codec")
        named = HEX.fullmatch(generation["dictionary"]) and generation["codec"] != "none"
        check(not generation["dictionary"] or named, "a dictionary")
        check(all(type(generation[name]) is int and generation[name] >= 0 for name in GENERATION[2:7]), "a generation")
        check(generation["shard_size"] >= 1, "a shard size")
    numbers, sizes = ([g[name] for g in generations] for name in ("generation", "num_fields"))
    check(numbers and numbers == sorted(set(numbers)) and numbers[0] >= 1, "the order of generations")
    check(sizes == sorted(sizes) and sizes[0] >= 1 and sizes[-1] == len(fields), "the number of fields")
    check(all(field.nullable for field in fields[sizes[0] :]), "a field that came later")
    if one["key"]:
        key = next((field for field in fields[: sizes[0]] if field.name == one["key"]), None)
        check(key is not None and not key.nullable and not key.starred and not key.shape, "the key")
        check(key.kind in ("str", "bytes") or "int" in key.kind, "the key")
    for fact in one["metadata"].values():
        for part in fact if isinstance(fact, list) else [fact]:
            check(type(part) in (str, bool) or (type(part) is int and -(2**63) <= part < 2**63), "the metadata")
    return fields


def read_table(table, manifest, fields):
    streams = sum(field.streamed for field in fields)
    check(sha256(table).hex() == manifest["table"], "the table's digest")
    form = struct.Struct(f"<IIIIQ32s32s{streams}Q")
    head = (b"SHRDTABL", 2, 88 + 8 * streams, (len(table) - 32) // form.size, 0)
    check(struct.unpack_from("<8sIIQQ", table) == head, "the table's head")
    entries = list(form.iter_unpack(table[32:]))
    check([e[:3] for e in entries] == sorted({e[:3] for e in entries}), "the table's order")
    check(all(e[3] >= 1 and e[4] < 2**48 for e in entries), "an entry of the table")
    sums = {
        "num_shards": len(entries),
        "num_samples": sum(e[3] for e in entries),
        "num_bytes": sum(e[4] for e in entries),
    }
    check(sums.items() <= manifest.items(), "a sum over the table")
    return entries


def read_shard(data, entry, manifest, generation, fields, folder):
    """The samples of a shard, whether it is the last part of its unit, and the digests of its keys."""
    place, num_samples, size, head_digest, file_digest = entry[:3], *entry[3:7]
    items = dict(zip((f.number for f in fields if f.streamed), entry[7:], strict=False))
    check(not any(entry[7 + len(items) :]), "the items of a field that the generation has not")
    check(len(data) == size and sha256(data) == file_digest, "the file's digest")
    header, num_sections = data[:4096], struct.unpack_from("<I", data, size - 116)[0]
    directory, flags = size - 128 - 64 * num_sections, struct.unpack_from("<I", data, size - 64)[0]
    check(sha256(data[directory:]) == head_digest and flags in (0, 1), "the head digest")
    footer = b"SHRDFOOT" + struct.pack("<IIQQ", 2, num_sections, num_samples, size) + sha256(header)
    check(data[-128:] == (footer + struct.pack("<I", flags)).ljust(120, b"\0") + b"SHRDFOOT", "the footer")
    schema = manifest["schema"][: generation["num_fields"]]
    check(header[:16] + header[20:] == (b"\x89SHRD\r\n\x1a" + struct.pack("<7I", 2, 0, *place, 1, 0)
                                        + sha256(canonical(schema))).ljust(4092, b"\0"), "the header")  # fmt: skip
    columns = row_columns(fields)
    row_size = np.dtype(columns).itemsize
    sections = read_sections(data, directory, fields, generation, manifest["key"], num_samples, items, row_size)
    page = row_size * max(1, 16384 // row_size)
    pages = [sections[3, NONE][i : i + page] for i in range(0, num_samples * row_size, page)]
    check(b"".join(map(sha256, pages)) == sections[4, NONE], "a page's digest")
    check_sums(sections, place)
    rows = np.frombuffer(sections[3, NONE], columns)
    files = read_files(sections[9, NONE], folder) if (9, NONE) in sections else []
    check(not files or (manifest["required"] and any(f.in_record for f in fields)), "what is required")
    values, named = read_values(data, rows, sections, fields, generation, place, files)
    check(named == list(range(len(files))), "the order of external files")
    missing = read_validity(rows, values, fields)
    facts = [statistics(field, values[field.number], missing[field.number]) for field in fields]
    check(sections[8, NONE] == b"".join(facts), "the statistics")
    check_own_description(sections[11, NONE], manifest, generation, schema)
    digests = check_keys(sections, fields, manifest["key"], values)
    samples = [
        {f.name: None if missing[f.number][i] else f.decode(values[f.number][i]) for f in fields}
        for i in range(num_samples)
    ]
    return samples, bool(flags), digests


def row_columns(fields):
    columns = [("place", "<u8"), ("stored", "<u4"), ("raw", "<u4")] if any(f.in_record for f in fields) else []
    columns += [(f"sum{f.number}", "<u4") for f in fields if f.wide]
    for field in fields:
        columns += [(f"start{field.number}", "<u8"), (f"count{field.number}", "<u4")] if field.streamed else []
    columns += [(f"{f.number}", f.dtype, f.shape) for f in fields if f.dtype is not None and not (f.starred or f.wide)]
    nullable = sum(f.nullable for f in fields)
    columns += [("validity", "u1", ((nullable + 7) // 8,))] if nullable else []
    columns.sort(key=lambda column: -np.dtype(column[1]).itemsize)
    return [*columns, ("padding", "u1", (-np.dtype(columns).itemsize % np.dtype(columns[0][1]).itemsize,))]


def read_sections(data, directory, fields, generation, key, num_samples, items, row_size):
    """The content of the sections by kind and field; their order, places, lengths, padding and digests are checked."""
    pages = -(-num_samples // max(1, 16384 // row_size))
    streams = [(f.number, f.size, items[f.number] * f.size) for f in fields if f.streamed]
    expected = [(1, NONE, 0, None)] * any(f.in_record for f in fields)
    expected += [(2, f.number, f.size, f.size * num_samples) for f in fields if f.wide]
    expected += [(5, *stream) for stream in streams]
    expected += [(3, NONE, row_size, row_size * num_samples), (4, NONE, 32, 32 * pages)]
    expected += [(10, number, 4, 4 * -(-length // 4096)) for number, _, length in streams]
    expected += [(6, NONE, 0, None)] * bool(generation["dictionary"])
    expected += [(7, f.number, 20, 20 * num_samples) for f in fields if f.name == key]
    external = 9 in (struct.unpack_from("<I", data, at)[0] for at in range(directory, len(data) - 128, 64))
    expected += [(8, NONE, 64, 64 * len(fields)), *[(9, NONE, 0, None)] * external, (11, NONE, 0, None)]
    sections, end = {}, 4096
    check(len(expected) * 64 == len(data) - 128 - directory, "the number of sections")
    for want, at in zip(expected, range(directory, len(data) - 128, 64), strict=True):
        kind, number, offset, length, item, digest = struct.unpack_from("<IIQQQ32s", data, at)
        section = sections[kind, number] = data[offset : offset + length]
        check((kind, number, item, want[3] if want[3] is None else length) == want, "the directory")
        check(offset == end + -end % (4096 if kind in (1, 2, 3, 5) else 64), "the place of a section")
        check(digest == (sha256(section) if kind in (4, 6, 7, 8, 9, 11) else NOTHING), "the digest of a section")
        check(not any(data[end:offset]) and len(section) == length, "the padding")
        end = offset + length
    check(directory == end + -end % 64 and not any(data[end:directory]), "the padding before the directory")
    dictionary = sections.get((6, NONE), b"")
    check(not dictionary or sha256(dictionary).hex() == generation["dictionary"], "the dictionary")
    check(len(dictionary) <= 2**20 and len(sections[11, NONE]) <= 2**20, "the length of dictionary or description")
    return sections


def read_files(section, folder):
    """The content of the external files that a shard names."""
    named, files = json.loads(section), []
    check(section == canonical(named) and len({one["name"] for one in named}) == len(named) > 0, "the external files")
    for one in named:
        check(sorted(one) == ["name", "num_bytes", "sha256"], "an external file")
        scheme = re.match("[A-Za-z][A-Za-z0-9+.-]*:", one["name"])
        check(not scheme and one["name"] not in (".", "..") and len(one["name"].encode()) in range(1, 256), "a name")
        check(not re.search(r"[/\\\x00-\x1f\x7f-\x9f]", one["name"]), "a name")
        files.append((folder / one["name"]).read_bytes())
        check((len(files[-1]), sha256(files[-1]).hex()) == (one["num_bytes"], one["sha256"]), "an external file")
    return files


def check_sums(sections, place):
    for (kind, number), stream in sections.items():
        if kind == 5:
            blocks = enumerate(stream[start : start + 4096] for start in range(0, len(stream), 4096))
            sums = b"".join(struct.pack("<I", checksum((*place, number, n), block)) for n, block in blocks)
            check(sums == sections[10, number], "a sum of a stream's block")


def read_values(data, rows, sections, fields, generation, place, files):
    """The bytes of every value by the number of the field, checked against all sums of rows and records; the files named."""
    named, taken = [], []
    values = {field.number: [] for field in fields}
    check(not rows["padding"].any(), "the padding of a row")
    for field in fields:
        n, ends = field.number, 0
        for i, row in enumerate(rows):
            if field.wide:
                value = sections[2, n][i * field.size : (i + 1) * field.size]
                check(row[f"sum{n}"] == checksum((*place, n, i), value), "a wide checksum")
            elif field.streamed:
                check(row[f"start{n}"] == ends, "where the items of a sample start")
                start, ends = ends, ends + int(row[f"count{n}"])
                value = sections[5, n][start * field.size : ends * field.size]
                check(len(value) < 2**32, "the length of a sample's items")
            elif not field.in_record:
                value = row[f"{n}"].tobytes()
            else:
                continue
            values[n].append(value)
        check(not field.streamed or ends * field.size == len(sections[5, n]), "the length of a stream")
    recorded = [field for field in fields if field.in_record]
    end = 4096
    for i, row in enumerate(rows if recorded else []):
        end, found, (number, spans) = read_record(data, end, row, recorded, (place, i), sections, generation, files)
        named += [number] if spans and number not in named else []
        taken += [(number, *span) for span in spans]
        for field in recorded:
            values[field.number].append(found[field.number])
    check(not recorded or end == 4096 + len(sections[1, NONE]), "the length of the heap")
    taken.sort()
    check(all(a[0] < b[0] or a[2] <= b[1] for a, b in itertools.pairwise(taken)), "the ranges of external files")
    return values, named


def read_record(data, end, row, recorded, identity, sections, generation, files):
    start, flags, stored = int(row["place"]) & 2**48 - 1, int(row["place"]) >> 48, int(row["stored"])
    check(start == end + -end % (64 if stored >= 1024 else 16) and flags < 3, "the place of a record")
    check(not any(data[end:start]), "the padding before a record")
    record, head = data[start : start + stored], 4 + 4 * len(recorded)
    number, places = None, []
    if flags == 2:
        number, *places = struct.unpack_from(f"<I{len(recorded)}Q", record, head)
    lengths = {f.number: n for f, n in zip(recorded, struct.unpack_from(f"<{len(recorded)}I", record, 4), strict=True)}
    packed = [f.number for f in recorded if f.codec == "zstd"]
    order = [f.number for f in recorded if f.codec == "none"] + packed
    outside = {f.number: at for f, at in zip(recorded, places, strict=False) if at != 2**64 - 1}
    spans = sorted((at, at + lengths[n]) for n, at in outside.items())
    check(
        flags != 2 or (spans and number < len(files) and all(a < b <= len(files[number]) for a, b in spans)), "a range"
    )
    elsewhere = b"".join(files[number][a:b] for a, b in spans)
    total = checksum((*identity[0], NONE, identity[1]), record[4:] + elsewhere)
    check(struct.unpack_from("<I", record)[0] == total, "a record's sum")
    plain, body = sum(lengths[n] for n in order if n not in packed), record[head:]
    if flags == 2:
        rest, body = body[4 + 8 * len(recorded) :], b""
        for n in order:
            at = outside.get(n, 0)
            body += files[number][at : at + lengths[n]] if n in outside else rest[: lengths[n]]
            rest = rest if n in outside else rest[lengths[n] :]
        check(not rest, "the length of an external record")
    if flags == 1:
        frame = zstandard.get_frame_parameters(body[plain:])
        check(generation["codec"] != "none", "a frame of a generation that is not compressed")
        check(frame.content_size == sum(lengths[n] for n in packed) and not frame.has_checksum, "a frame")
        check(frame.dict_id == 0 and len(body) - plain < frame.content_size, "a frame")
        dictionary = zstandard.ZstdCompressionDict(sections[6, NONE]) if generation["dictionary"] else None
        decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
        body = body[:plain] + decompressor.decompress(body[plain:], allow_extra_data=False)
    check(head + len(body) == row["raw"] == head + sum(lengths.values()), "the length of a record")
    ends = np.cumsum([0, *[lengths[n] for n in order]]).tolist()
    found = {n: body[a:b] for n, (a, b) in zip(order, itertools.pairwise(ends), strict=True)}
    return start + stored, found, (number, spans)


def read_validity(rows, values, fields):
    """Which samples lack a value, by the number of the field; that nothing stands in the place of one is checked."""
    missing, nullable = {field.number: [False] * len(rows) for field in fields}, [f for f in fields if f.nullable]
    for i, row in enumerate(rows if nullable else []):
        bits = int.from_bytes(row["validity"].tobytes(), "little")
        check(bits < 1 << len(nullable), "the validity")
        for k, field in enumerate(nullable):
            missing[field.number][i] = not bits >> k & 1
    for field in fields:
        for value, gone in zip(values[field.number], missing[field.number], strict=True):
            check(not gone or not any(value), "a missing value")
            check(not gone or not (field.in_record or field.streamed) or not value, "the length of a missing value")
    return missing


def statistics(field, values, missing):
    """The entry of a field in the section of statistics, worked out from the values."""
    present = [value for value, gone in zip(values, missing, strict=True) if not gone]
    varying = field.in_record or field.streamed
    lengths = [len(value) // (field.size if field.ragged else 1) for value in present] if varying else []
    facts = struct.pack("<4Q", sum(missing), sum(lengths), min(lengths, default=0), max(lengths, default=0))
    if field.in_record:
        return facts.ljust(64, b"\0")
    numbers = np.frombuffer(b"".join(present), field.dtype)
    if field.kind == "bfloat16":
        numbers = (numbers.astype("u4") << 16).view("f4")
    code = {"f": "<d", "i": "<q", "u": "<Q"}[numbers.dtype.kind]
    sound = [number + 0 for number in numbers.tolist() if number == number]
    bounds = struct.pack(code, min(sound)) + struct.pack(code, max(sound)) if sound else bytes(16)
    flags = bool(sound) + 2 * (len(sound) < len(numbers))
    return (facts + bounds + struct.pack("<I", flags)).ljust(64, b"\0")


def check_own_description(section, manifest, generation, schema):
    """Checks that the shard says of the dataset what was to be when it was written."""
    said = json.loads(section)
    check(section == canonical(said) and sorted(said) == sorted(DESCRIBED), "the form of the description")
    check_description(said)
    generations = manifest["generations"][: manifest["generations"].index(generation) + 1]
    check(said["generations"] == [*generations[:-1], generation | {"num_samples": 0}], "the generations described")
    check((said["schema"], said["key"]) == (schema, manifest["key"]), "the schema described")
    newest = generation == manifest["generations"][-1]
    check(said["version"] == manifest["version"] if newest else said["version"] < manifest["version"], "the version")
    check(said["metadata"].items() <= manifest["metadata"].items(), "the metadata described")
    check(not newest or said["metadata"] == manifest["metadata"], "the metadata described")


def check_keys(sections, fields, name, values):
    key = next((field.number for field in fields if field.name == name), None)
    if key is None:
        return set()
    wanted = sorted((sha256(value)[:16], i) for i, value in enumerate(values[key]))
    check(sections[7, key] == b"".join(digest + struct.pack("<I", i) for digest, i in wanted), "the keys")
    check(len({digest for digest, _ in wanted}) == len(wanted), "a key that stands twice")
    return {digest for digest, _ in wanted}
