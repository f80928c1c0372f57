"""What is fuzzed: each target takes any bytes, and only typed errors may come of them.

Beyond that, what is accepted must be what was given: written again, it is the same bytes. A target with `-repaired` at the
end of its name makes digests and checksums right first, or nothing would get past the first comparison.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from forge import Forge, Shard, canonical, manifest_text
from hostile.base import SAMPLES, sample, write_base
from hostile.judge import alike

import shardload
from shardload.codecs import make_codec
from shardload.errors import FormatError, ShardloadError, StateMismatchError, StorageError
from shardload.format import layout
from shardload.format.checksum import block_sum, identity_sum
from shardload.format.keys import KEY_ENTRY, decode_keys, find_keys, key_digest
from shardload.format.manifest import Manifest, decode_description, decode_manifest
from shardload.format.ragged import decode_list, encode_list, join_ragged
from shardload.format.record import RecordPlaces, record_layout, record_lengths, record_places
from shardload.format.rows import row_layout
from shardload.format.shard import Expected, check_header, decode_head, encode_header, encode_tail, tail_bytes
from shardload.format.statistics import decode_statistics, encode_statistics
from shardload.format.table import decode_table
from shardload.importers import Reject, Sample
from shardload.importers.jsonl import _parse
from shardload.loader.state import STATE_KEY, OrderKey, Place, decode_state, encode_state
from shardload.order.epoch import Reseed
from shardload.reader.batch import decode_value
from shardload.reader.verify import verify_dataset

PLACE = "place"


@dataclass(frozen=True)
class Target:
    """One thing to be fuzzed."""

    name: str
    run: Callable[[bytes], None]
    """Takes the bytes; any exception is a finding."""
    seeds: Callable[[], list[bytes]]
    memory: Callable[[bytes], int] = lambda data: (64 << 10) + 4 * len(data)
    """Most bytes that a run may take."""
    text: bool = False
    """Whether the bytes are JSON, and are changed as such."""
    slow: bool = False
    """Whether a run writes files."""


@cache
def base() -> Path:
    """The sound dataset, made once a process."""
    return write_base(Path(tempfile.mkdtemp(prefix="fuzz-")) / "dataset")


@cache
def forged() -> Forge:
    return Forge(base())


@cache
def manifest() -> Manifest:
    return forged().sound


@cache
def shard_bytes() -> bytes:
    return (base() / forged().names[0]).read_bytes()


# Manifest, description and table.


def run_manifest(data: bytes) -> None:
    try:
        found = decode_manifest(data, PLACE)
    except FormatError as error:
        assert len(str(error)) < 2000
        return
    assert found.encode() == data


def run_manifest_repaired(data: bytes) -> None:
    run_manifest(manifest_text(data))


def run_description(data: bytes) -> None:
    try:
        found = decode_description(data, PLACE)
    except FormatError as error:
        assert len(str(error)) < 2000
        return
    assert found.encode() == data


def run_table(data: bytes) -> None:
    try:
        table = decode_table(data, manifest(), PLACE)
    except FormatError:
        return
    assert table.encode() == data


def run_table_repaired(data: bytes) -> None:
    """The manifest's sums are made those of the table as well, as far as they are in range."""
    found = msgspec.structs.replace(manifest(), table=hashlib.sha256(data).hexdigest())
    entry_bytes = manifest_entry_bytes()
    if len(data) >= 32 and (len(data) - 32) % entry_bytes == 0:
        entries = np.frombuffer(data, dtype=forged().entries.dtype, offset=32)
        sums = {name: sum(entries[name].tolist()) for name in ("num_samples", "num_bytes")}
        generations = [
            msgspec.structs.replace(
                one, num_samples=sum(entries["num_samples"][entries["generation"] == one.generation].tolist())
            )
            for one in found.generations
        ]
        found = msgspec.structs.replace(found, num_shards=len(entries), generations=generations, **sums)
    try:
        table = decode_table(data, found, PLACE)
    except FormatError:
        return
    assert table.encode() == data
    assert sum(entry.num_samples for entry in table) == int(table.first_sample_ids[-1])


def manifest_entry_bytes() -> int:
    return int(forged().entries.dtype.itemsize)


# The ends of a shard, and its rows.


@cache
def expected() -> Expected:
    entry = next(iter(decode_table((base() / "tables" / manifest().table).read_bytes(), manifest(), PLACE)))
    schema, dictionary = manifest().schema_of(1), manifest().generation(1).dictionary
    items = entry.num_items[: len(schema.stream_fields)]
    return Expected(schema, entry.num_samples, entry.num_bytes, entry.head_digest, items, dictionary)


def tail_of(data: bytes) -> bytes:
    return data[-tail_bytes(data, PLACE) :]


def run_tail(data: bytes) -> None:
    try:
        head = decode_head(data, expected(), PLACE)
    except FormatError:
        return
    assert (
        encode_tail(head.sections, head.num_samples, b"", head.last)[: -layout.FOOTER_BYTES]
        == (data[: -layout.FOOTER_BYTES])
    )


def run_tail_repaired(data: bytes) -> None:
    """The table says what the footer says, as far as it is asked: digest, samples, length of the file."""
    facts = replace(expected(), head_digest=hashlib.sha256(data).digest())
    try:
        if len(data) >= layout.FOOTER_BYTES:
            _, _, _, samples, num_bytes, *_ = layout.FOOTER.unpack(data[-layout.FOOTER_BYTES :])
            if samples <= layout.MAX_SHARD_SAMPLES and num_bytes <= layout.MAX_SHARD_BYTES:
                facts = replace(facts, num_samples=samples, num_bytes=num_bytes)
        head = decode_head(data, facts, PLACE)
    except FormatError:
        return
    assert head.sections[-1].stop <= facts.num_bytes


def run_header_repaired(data: bytes) -> None:
    data = data[: layout.HEADER_BYTES].ljust(layout.HEADER_BYTES, b"\0")
    head = decode_head(tail_of(shard_bytes()), expected(), PLACE)
    head = replace(head, header_digest=hashlib.sha256(data).digest())
    try:
        check_header(data, head, expected().schema, (1, 0, 0), PLACE)
    except FormatError:
        return
    good = encode_header(expected().schema, 1, 0, 0)
    assert data[:16] + data[20:] == good[:16] + good[20:]


def run_rows(data: bytes) -> None:
    """Rows are under page digests; these are right."""
    dtype = row_layout(expected().schema).dtype
    rows = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype=dtype)
    header_bytes = record_layout(expected().schema).header.size
    if not len(rows):
        return
    try:
        places = record_places(rows, 4096, 8192, header_bytes)
    except FormatError as error:
        assert error.sample_id is not None and 0 <= error.sample_id < len(rows)
        return
    assert (places.start >= 4096).all() and (places.start + places.stored <= 8192).all()
    assert (places.stored >= header_bytes).all() and (places.raw >= places.stored).all()


# Records and what is in them.


@cache
def codecs() -> tuple[Any, Any]:
    dictionary = bytes(forged().shards[0].section(layout.SECTION_DICTIONARY).data)
    return make_codec("zstd:3"), make_codec("zstd:3", dictionary)


def _record(data: bytes, repaired: bool) -> None:
    """Five bytes of the row (flag, length of all decompressed), then the record."""
    schema = expected().schema
    records = record_layout(schema)
    if len(data) < 5 + records.header.size:
        return
    framed, raw, record = bool(data[0] & 1), int.from_bytes(data[1:5], "little"), bytearray(data[5:])
    start = identity_sum(1, 0, 0, layout.NO_FIELD, 0)
    if repaired:
        record[:4] = block_sum(bytes(record[4:]), start).to_bytes(4, "little")
    if block_sum(bytes(record[4:]), start).to_bytes(4, "little") != record[:4] or raw < len(record):
        return
    try:
        places = RecordPlaces(*(np.array([n]) for n in (0, len(record), raw)), np.array([framed]))
        headers = np.frombuffer(record[: records.header.size], "<u4").reshape(1, -1)
        (lengths,), (size,) = record_lengths(headers, records, places)
        stop = records.header.size + int(lengths[list(records.plain)].sum())
        plain, packed = memoryview(record)[records.header.size : stop], memoryview(record)[stop:]
        if framed:
            packed = memoryview(codecs()[data[0] >> 1 & 1].decompress(packed, int(size)))
    except FormatError:
        return
    assert sum(lengths) + records.header.size == raw and len(packed) == size
    content, at = bytes(plain) + bytes(packed), 0
    for place in records.order:
        field, value = records.fields[place], content[at : at + lengths[place]]
        at += lengths[place]
        _value(field, value)


def _value(field: Any, value: bytes) -> None:
    try:
        if field.ragged:
            ragged = join_ragged(field, [value, value])
            assert ragged[0].tobytes() == value == ragged[1].tobytes()
        else:
            decode_value(field, value)
    except FormatError:
        pass
    except (ValueError, RecursionError):
        # The reader turns these into a FormatError with the sample; from arrays they would go through.
        assert not field.ragged


def run_record(data: bytes) -> None:
    _record(data, False)


def run_record_repaired(data: bytes) -> None:
    _record(data, True)


def record_memory(data: bytes) -> int:
    raw = int.from_bytes(data[1:5], "little")
    return (128 << 10) + 64 * len(data) + 4 * min(raw, len(data) << 15)


def run_frame(data: bytes) -> None:
    """Four bytes for the length that the row says, then a frame."""
    size, frame = int.from_bytes(data[:4], "little"), data[4:]
    for codec in codecs():
        try:
            assert len(codec.decompress(frame, size)) == size
        except FormatError:
            continue


def run_list(data: bytes) -> None:
    try:
        items = decode_list(data)
    except ValueError:
        return
    assert encode_list(items) == data


def run_keys(data: bytes) -> None:
    data = data[: len(data) // KEY_ENTRY.itemsize * KEY_ENTRY.itemsize]
    try:
        keys = decode_keys(data)
    except FormatError:
        return
    assert keys.tobytes() == data
    if len(keys):
        assert find_keys(keys, [data[:16]])[0] == keys["local_id"][0]
    find_keys(keys, [key_digest(b"a"), bytes(16), b"\xff" * 16])


def run_statistics(data: bytes) -> None:
    fields = expected().schema.fields
    data = data[: 64 * len(fields)].ljust(64 * len(fields), b"\0")
    try:
        found = decode_statistics(data, fields, 10)
    except FormatError:
        return
    assert all(one.num_missing + one.num_values == 10 for one in found)
    assert decode_statistics(encode_statistics(fields, found), fields, 10) == found or "nan" in repr(found)
    for one in found:
        assert (one + one).num_missing == 2 * one.num_missing


# Loader state, and lines of JSONL.

KEY = OrderKey("f" * 64, 1000, 7, True)


def run_state(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        saved = decode_state({STATE_KEY: text}, KEY)
    except StateMismatchError:
        return
    assert 0 <= saved.place.position <= 1000
    assert decode_state(encode_state(replace(KEY, seed=saved.seed), saved.place, saved.reseeds), KEY) == saved


def run_state_repaired(data: bytes) -> None:
    try:
        content = json.loads(data)
        content.pop("checksum", None)
        text = json.dumps(content, sort_keys=True)
        content["checksum"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        text = json.dumps(content, sort_keys=True)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    run_state(text.encode())


def run_jsonl(data: bytes) -> None:
    found = _parse(data, "file.jsonl line 1", len(data))
    assert found.place == "file.jsonl line 1" and found.num_bytes == len(data)
    if isinstance(found, Sample):
        assert type(found.values) is dict and all(type(name) is str for name in found.values)
    else:
        assert isinstance(found, Reject) and found.reason


# Whole datasets.


@cache
def _copy() -> Forge:
    return Forge.copy(base(), base().parent / "copy")


def _read(path: Path) -> bool:
    """Reads a dataset wholly; a wrong sample is told by False. Only typed errors come through."""
    right = True
    dataset = shardload.open(path, verify="always")
    for i in range(min(len(dataset), SAMPLES)):
        try:
            values = dataset[i]
        except (FormatError, StorageError):
            continue
        right = right and alike(values, {"late": None} | sample(i))
    for read in (
        dataset.record_sizes,
        dataset.statistics,
        lambda: dataset.lengths("text"),
        lambda: dataset.lengths("spans"),
    ):
        try:
            read()
        except (FormatError, StorageError):
            continue
    return right and len(dataset) == SAMPLES


def run_dataset(data: bytes) -> None:
    """A shard as it is: whatever is read is right, and verify tells of every change."""
    path = _copy().path
    (path / forged().names[0]).write_bytes(data)
    try:
        assert _read(path), "a wrong sample"
    except ShardloadError:
        raise AssertionError("the dataset did not open") from None
    assert data == shard_bytes() or verify_dataset(path, workers=1), "verify saw no change"


def run_dataset_repaired(data: bytes) -> None:
    """A shard with all sums made right: it may say anything, but nothing other than typed errors comes of it."""
    copy = _copy()
    try:
        shard = Shard.parse(data.ljust(8192, b"\0"), expected().schema, (1, 0, 0))
        shard.footer[:3] = layout.FOOTER_MAGIC, layout.FORMAT_NUMBER, 0
        copy.shards[0] = shard
        copy.save()
    except (struct.error, StopIteration, ValueError, IndexError, OverflowError, BufferError, MemoryError):
        # The forge, unlike the reader, may fail on bytes that are no shard.
        return
    finally:
        # What was set for one run is not left for the next.
        copy.entries = forged().entries.copy()
        copy.manifest = json.loads(canonical(forged().manifest))
    try:
        _read(copy.path)
    except ShardloadError:
        return
    verify_dataset(copy.path, workers=1)


# Seeds, made by code.


def _inner() -> list[bytes]:
    small = json.loads(canonical(forged().manifest))
    small["generations"] = small["generations"][:1] and [small["generations"][0] | {"num_fields": 1, "dictionary": ""}]
    small["schema"] = [{"codec": "zstd", "name": "name", "type": "str"}]
    small["num_samples"] = small["generations"][0]["num_samples"]
    small["metadata"] = {"a": [1, "b", True], "c": -5}
    return [canonical(forged().manifest), canonical(small)]


def _table() -> list[bytes]:
    return [(base() / "tables" / manifest().table).read_bytes()]


def _records() -> list[bytes]:
    shard, seeds = forged().shards[0], []
    heap, rows = shard.section(layout.SECTION_HEAP).data, shard.rows
    for i in range(shard.num_samples):
        start, stop = shard.record_at(i)
        flag = 2 | bool(int(rows["_place"][i]) >> 48)
        seeds.append(bytes([flag]) + int(rows["_raw"][i]).to_bytes(4, "little") + bytes(heap[start:stop]))
    return seeds


def _frames() -> list[bytes]:
    texts = [b"", b"x", b"text " * 100, bytes(200_000)]
    return [len(t).to_bytes(4, "little") + codec.compress(t) for t in texts for codec in codecs()]


def _state() -> list[bytes]:
    states = [encode_state(KEY, place) for place in (Place(), Place(3, 999, 17), Place(0, 1000))]
    states.append(encode_state(KEY, Place(3, 999, 17), [Reseed(1, 5, 9), Reseed(3, 900, 2**64 - 1)]))
    return [state[STATE_KEY].encode() for state in states]


_LINES = [
    b'{"a": 1, "b": "text", "c": [1.5, null, true], "d": {"e": {}}}',
    '{"ä": "\\ud83d\\ude00", "n": -1e5, "m": 9223372036854775807}'.encode(),
    b'{"a": 1, "a": 2}',
    b"[1]",
    b'{"a": NaN, "b": 1e999}',
]


def _section(kind: int, name: str = "") -> Callable[[], list[bytes]]:
    return lambda: [bytes(forged().shards[0].section(kind, name).data)]


def json_memory(data: bytes) -> int:
    return (256 << 10) + 200 * len(data)


TARGETS = {
    target.name: target
    for target in (
        Target("manifest", run_manifest, lambda: [manifest_text(one) for one in _inner()], json_memory, True),
        Target("manifest-repaired", run_manifest_repaired, _inner, json_memory, True),
        Target("description", run_description, _section(layout.SECTION_DESCRIPTION), json_memory, True),
        Target("table", run_table, _table, lambda data: (256 << 10) + 64 * len(data)),
        Target("table-repaired", run_table_repaired, _table, lambda data: (256 << 10) + 64 * len(data)),
        Target("tail", run_tail, lambda: [tail_of(shard_bytes())], lambda data: (256 << 10) + 16 * len(data)),
        Target("tail-repaired", run_tail_repaired, lambda: [tail_of(shard_bytes())], lambda d: (256 << 10) + 16 * len(d)),
        Target("header-repaired", run_header_repaired, lambda: [shard_bytes()[:128]], lambda data: 256 << 10),
        Target("rows", run_rows, _section(layout.SECTION_ROWS), lambda data: (128 << 10) + 16 * len(data)),
        Target("record", run_record, _records, record_memory),
        Target("record-repaired", run_record_repaired, _records, record_memory),
        Target("frame", run_frame, _frames, lambda data: (128 << 10) + (len(data) << 16)),
        Target("list", run_list, lambda: [encode_list([b"a", b"", b"bcd"]), encode_list([])], lambda d: (64 << 10) + 64 * len(d)),
        Target("keys", run_keys, _section(layout.SECTION_KEYS, "name"), lambda data: (128 << 10) + 16 * len(data)),
        Target("statistics", run_statistics, _section(layout.SECTION_STATISTICS), lambda data: 128 << 10),
        Target("state", run_state, _state, json_memory, True),
        Target("state-repaired", run_state_repaired, _state, json_memory, True),
        Target("jsonl", run_jsonl, lambda: _LINES, json_memory, True),
        Target("dataset", run_dataset, lambda: [shard_bytes()], lambda data: 64 << 20, slow=True),
        Target("dataset-repaired", run_dataset_repaired, lambda: [shard_bytes()], lambda data: 64 << 20, slow=True),
    )
}  # fmt: skip
