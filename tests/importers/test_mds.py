"""MDS datasets: written by MosaicML's own package where it is installed, and here from its layout, which is public."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

import shardload
from shardload.errors import PackError
from shardload.importers import Reject, open_source
from shardload.packing import pack

pytestmark = pytest.mark.usefixtures("quick_workers")

JPEG, PNG = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"
PACKINGS = {"": bytes, "zstd": zstandard.ZstdCompressor().compress, "gz": gzip.compress}
SIZES = {"int": 8, "uint8": 1, "float32": 4, "float16": 2, "ndarray:int32:2,3": 24}
ENCODINGS = {
    "a_int": "int",
    "b_small": "uint8",
    "c_float": "float32",
    "d_half": "float16",
    "e_text": "str",
    "f_bytes": "bytes",
    "g_json": "json",
    "h_fixed": "ndarray:int32:2,3",
    "i_ragged": "ndarray:uint16",
    "j_any": "ndarray",
    "k_digits": "str_int",
}
TYPES = {
    "a_int": "int64",
    "b_small": "uint8",
    "c_float": "float32",
    "d_half": "float16",
    "e_text": "str",
    "f_bytes": "bytes",
    "g_json": "json",
    "h_fixed": "int32[2,3]",
    "i_ragged": "uint16[*]",
    "j_any": "float32[*,2]",
    "k_digits": "int64",
}
WRITER = f"""
import sys, types
for name in ("streaming.vision", "streaming.multimodal", "streaming.text"):
    sys.modules[name] = types.ModuleType(name)  # they need torchvision, and the writer needs none of them
sys.path[:0] = sys.argv[2:]
from streaming import MDSWriter
from test_mds import row
for packing in ("", "zstd", "gz"):
    with MDSWriter(out=sys.argv[1] + "/" + (packing or "plain"), columns={ENCODINGS!r}, compression=packing or None,
                   hashes=["sha1"], size_limit=3000) as writer:
        for i in range(100):
            writer.write(row(i))
"""


def row(i: int) -> dict:
    return {
        "a_int": i - 50,
        "b_small": i,
        "c_float": i / 4,
        "d_half": np.float16(i / 2),
        "e_text": "é" * i,
        "f_bytes": bytes(range(i)),
        "g_json": {"i": [i, None]},
        "h_fixed": np.arange(i, i + 6, dtype=np.int32).reshape(2, 3),
        "i_ragged": np.arange(i % 7 + 1, dtype=np.uint16),
        "j_any": np.full((i % 3 + 1, 2), i, np.float32),
        "k_digits": i * 1000,
    }


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def forge(folder: Path, encodings: dict[str, str], rows, packing: str = "", per_shard: int = 3) -> Path:
    """Writes rows of encoded values."""
    folder.mkdir(exist_ok=True)
    sizes = [SIZES.get(encoding) for encoding in encodings.values()]
    shards = []
    for number in range(-(-len(rows) // per_shard)):
        records = []
        for values in rows[number * per_shard : (number + 1) * per_shard]:
            lengths = [len(value) for value, size in zip(values, sizes, strict=True) if size is None]
            records.append(np.array(lengths, "<u4").tobytes() + b"".join(values))
        config = json.dumps({"version": 2, "format": "mds"}).encode()
        start = 4 + 4 * (len(records) + 1) + len(config)
        offsets = np.cumsum([start, *map(len, records)]).astype("<u4")
        data = np.uint32(len(records)).tobytes() + offsets.tobytes() + config + b"".join(records)
        name = f"shard.{number:05}.mds"
        shard = {
            "samples": len(records),
            "raw_data": {"basename": name, "bytes": len(data), "hashes": {}},
            "zip_data": None,
        }
        stored = PACKINGS[packing](data)
        if packing:
            name += f".{packing}"
            shard["zip_data"] = {"basename": name, "bytes": len(stored), "hashes": {}}
        (folder / name).write_bytes(stored)
        shard |= {"version": 2, "format": "mds", "compression": packing or None, "column_names": list(encodings)}
        shards.append({**shard, "column_encodings": list(encodings.values()), "column_sizes": sizes})
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def items_of(folder, types=None, unit_size=None):
    plan = open_source([str(folder)]).plan(types, unit_size)
    reader = pickle.loads(pickle.dumps(plan.reader))
    return plan, [item for unit in plan.units for item in reader.read(unit)]


@pytest.mark.skipif(
    importlib.util.find_spec("streaming") is None,
    reason="NOT CHECKED against MosaicML's own writer: pip install mosaicml-streaming",
)
def test_what_mosaicml_wrote(tmp_path) -> None:
    paths = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), *paths], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    for packing in ("plain", "zstd", "gz"):
        plan, samples = items_of(tmp_path / packing, unit_size=1000)
        assert plan.types == TYPES and len(plan.units) > 3
        assert [{name: plain(value) for name, value in sample.values.items()} for sample in samples] == [
            {name: plain(value) for name, value in row(i).items()} for i in range(100)
        ]
        one, two = (
            pack(tmp_path / packing, tmp_path / f"{packing}{workers}", workers=workers, unit_size=1000)
            for workers in (1, 2)
        )
        assert one.fingerprint == two.fingerprint and one.num_samples == 100
    assert shardload.open(tmp_path / "zstd2")[7]["e_text"] == "é" * 7


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_each_record_is_a_sample_with_its_place(tmp_path, packing: str) -> None:
    encodings = {"n": "int", "image": "jpeg", "p": "png", "t": "str", "d": "str_decimal", "f": "str_float"}
    rows = [[np.int64(i).tobytes(), JPEG, PNG, b"x" * i, b"1.50", b"2.5"] for i in range(10)]
    forge(tmp_path, encodings, rows, packing)
    plan, samples = items_of(tmp_path, unit_size=1)
    assert plan.types == {"n": "int64", "image": "jpeg", "p": "png", "t": "str", "d": "str", "f": "float64"}
    assert len(plan.units) == 4
    suffix = f".{packing}" if packing else ""
    for i, sample in enumerate(samples):
        assert sample.values == {"n": i, "image": JPEG, "p": PNG, "t": "x" * i, "d": "1.50", "f": 2.5}
        assert sample.place == f"{tmp_path}/shard.{i // 3:05}.mds{suffix} sample {i % 3}"
    _, samples = items_of(tmp_path, types={"t": "bytes", "n": "int8", "more": "str?"})
    assert samples[2].values == {"t": b"xx", "n": 2}
    if packing:
        # Where a reader of streaming has decompressed a shard and thrown the compressed one away.
        opener = {"gz": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompress}[packing]
        first = tmp_path / f"shard.00000.mds{suffix}"
        first.with_suffix("").write_bytes(opener(first.read_bytes()))
        first.unlink()
        assert len(items_of(tmp_path)[1]) == 10


@pytest.mark.parametrize("encoding", ["pkl", "pil", "list[jpeg]", "jpeg_array", "ndarray:complex64", "ndarray:int8:0"])
def test_encodings_that_are_refused_may_be_taken_as_bytes(tmp_path, encoding: str) -> None:
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "unpickled").encode() + b"'\ntR."
    forge(tmp_path, {"x": encoding, "y": "str"}, [[evil, b"a"]])
    with pytest.raises(PackError, match=re.escape(f"its column 'x' is encoded as {encoding!r}")):
        items_of(tmp_path)
    with pytest.raises(PackError, match="its column 'x' is encoded as"):
        items_of(tmp_path, types={"x": "json"})
    assert items_of(tmp_path, types={"x": "bytes"})[1][0].values == {"x": evil}
    assert items_of(tmp_path, types={"y": "str"})[1][0].values == {"y": "a"}
    assert not (tmp_path / "unpickled").exists()


def test_values_that_are_none_are_rejects(tmp_path) -> None:
    array = bytes([33, 1 << 2, 2]) + bytes(8)
    good = [b"a", b"{}", b"1", array]
    forge(tmp_path, {"t": "str", "j": "json", "i": "str_int", "n": "ndarray"}, [good, [b"\xff", *good[1:]], good])
    plan, items = items_of(tmp_path)
    assert plan.types["n"] == "int32[*]"
    assert [type(item) for item in items].count(Reject) == 1 and len(items) == 3
    assert items[1].message.endswith("shard.00000.mds sample 1: field 't' is not UTF-8: byte 0 is 0xff")
    for column, bad in ((1, b"{"), (1, b'{"a": NaN}'), (2, b"1.5"), (3, array[:-1]), (3, b"\x01" + array[1:])):
        values = list(good)
        values[column] = bad
        forge(tmp_path, {"t": "str", "j": "json", "i": "str_int", "n": "ndarray"}, [good, values])
        _, items = items_of(tmp_path, types=plan.types)
        assert isinstance(items[1], Reject) and "sample 1: field" in items[1].message, bad
    forge(tmp_path, {"n": "ndarray:int8"}, [[bytes([1 << 2, 1, 0])], [bytes([2 << 2, 1, 1, 0])]])
    with pytest.raises(PackError, match="the arrays of column 'n' differ"):
        items_of(tmp_path)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_damaged_shards_are_errors_that_name_them(tmp_path, packing: str) -> None:
    forge(tmp_path, {"n": "int", "t": "str"}, [[np.int64(i).tobytes(), b"x" * 5] for i in range(3)], packing)
    [path] = tmp_path.glob("shard*")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(PackError, match=f"{path}.* (is damaged|sample)"):
            items_of(tmp_path, types={"t": "str"})
    data = {"": bytes, "gz": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompress}[packing](whole)
    for at in range(0, 20):
        flipped = data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]
        path.write_bytes(PACKINGS[packing](flipped))
        with pytest.raises(PackError, match=f"{path}.* is damaged"):
            items_of(tmp_path, types={"t": "str"})
    path.write_bytes(PACKINGS[packing](data + b"x"))
    with pytest.raises(PackError, match="longer than the"):
        items_of(tmp_path, types={"t": "str"})


def test_an_index_that_is_not_sound(tmp_path) -> None:
    forge(tmp_path, {"t": "str"}, [[b"a"], [b"b"]], per_shard=1)
    index = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"version": 3}, "its shard 1 cannot be read: it is of format 'mds', version 3"),
        ({"column_names": ["u"]}, r"shard.00001.mds is of other columns than shard.00000.mds"),
        ({"column_sizes": []}, "its columns have not one name, encoding and size each"),
        ({"raw_data": {"basename": "../a", "bytes": 1}}, "which cannot be its own"),
        ({"raw_data": {"basename": "shard.00000.mds", "bytes": 1}}, r"names shard.00000.mds twice"),
        ({"raw_data": {"basename": "gone.mds", "bytes": 1}}, r"gone.mds does not exist"),
        ({"raw_data": {"bytes": 1}}, "it has no 'basename'"),
        (
            {"compression": "br:3", "zip_data": {"basename": "shard.00001.mds"}},
            "compressed by 'br'; zstd and gz are read",
        ),
    ):
        shards = [index["shards"][0], {**index["shards"][1], **change}]
        (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
        with pytest.raises(PackError, match=message):
            open_source([str(tmp_path)])
    # Any other index.json is a file as all others.
    (tmp_path / "index.json").write_text('{"shards": []}')
    assert open_source([str(tmp_path)], ["*.json"]).plan(None, None).types["text"] == "str"
