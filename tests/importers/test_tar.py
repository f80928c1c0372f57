"""Tars written by the webdataset package, and what they become."""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import pickle
import random
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import same
from tars import END, header, member, packed
from webdataset.tariterators import group_by_keys, tar_file_iterator

import shardload
from shardload.errors import PackError
from shardload.importers import Reject, Sample, open_source, tar
from shardload.importers.tar_values import BadValue, decoder

pytestmark = pytest.mark.usefixtures("quick_workers")

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def wds_samples(seed: int, count: int) -> list[dict[str, object]]:
    """Samples in the words of webdataset, bytes as its readers give them; some lack members."""
    words = random.Random(seed)
    samples: list[dict[str, object]] = []
    for i in range(count):
        sample: dict[str, object] = {
            "__key__": f"d{i % 3}/s{i:05d}",
            "cls": b"%d" % (i - 5),
            "json": b'{"n": [%d, null]}' % i,
            "jpg": JPEG + words.randbytes(words.randrange(5000)),
            "npy": npy(np.full((2, 3), i, np.float32)),
            "pth": pickle.dumps(i),
            "seg.png": PNG + words.randbytes(20),
            "txt": f"ä{i}".encode(),
        }
        for name in words.sample(["json", "jpg", "txt"], words.randrange(3)) if i % 4 else []:
            del sample[name]
        samples.append(sample)
    return samples


def write_tar(path: Path, samples: list[dict[str, object]]) -> None:
    if path.suffix == ".zst":
        file = io.BytesIO()
        with webdataset.TarWriter(file) as writer:
            for sample in samples:
                writer.write(sample)
        path.write_bytes(packed(file.getvalue(), ".zst"))
        return
    with webdataset.TarWriter(str(path), compress="gz" if path.suffix in (".gz", ".tgz") else None) as writer:
        for sample in samples:
            writer.write(sample)


def as_read_by_webdataset(path: Path) -> list[dict[str, object]]:
    """What webdataset itself reads, not decoded; it cannot read zstd."""
    if path.suffix == ".zst":
        import zstandard

        with zstandard.open(path) as file:
            data = file.read()
        path = path.with_suffix("")
        path.write_bytes(data)
    with warnings.catch_warnings():
        # It leaves its files for the garbage collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        gc.collect()
    return [
        {name: value for name, value in one.items() if name not in ("__url__", "__local_path__")} for one in samples
    ]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_packed_samples_equal_what_webdataset_reads(tmp_path: Path, suffix: str) -> None:
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"train-{number}{suffix}")
        write_tar(paths[-1], wds_samples(number, 60))
    expected = [sample for path in paths for sample in as_read_by_webdataset(path)]
    assert len(expected) == 120 and expected[0].keys() == wds_samples(0, 1)[0].keys()

    raw = {"key": "str"} | {name: "bytes?" for name in expected[0] if name != "__key__"}
    summary = shardload.pack(paths, tmp_path / "raw", schema=raw, workers=1)
    assert summary.num_samples == 120 and summary.source_bytes == sum(path.stat().st_size for path in paths)
    dataset = shardload.open(tmp_path / "raw")
    for i, one in enumerate(expected):
        sample = dataset[i]
        assert sample["key"] == one["__key__"]
        assert {name: value for name, value in sample.items() if name != "key"} == {
            name: one.get(name) for name in raw if name != "key"
        }

    summary = shardload.pack(paths, tmp_path / "typed", workers=1)
    assert summary.types == {
        "key": "str",
        "cls": "int64",
        "jpg": "jpeg?",
        "json": "json?",
        "npy": "float32[2,3]",
        "pth": "bytes",
        "seg.png": "png",
        "txt": "str?",
    }
    dataset = shardload.open(tmp_path / "typed")
    for i in range(120):
        sample, one, n = dataset[i], expected[i], i % 60
        assert (sample["key"], sample["cls"], sample["jpg"]) == (one["__key__"], n - 5, one.get("jpg"))
        assert sample["json"] == ({"n": [n, None]} if "json" in one else None)
        assert sample["txt"] == (f"ä{n}" if "txt" in one else None)
        assert same(sample["npy"], np.full((2, 3), n, np.float32))
        assert (sample["pth"], sample["seg.png"]) == (one["pth"], one["seg.png"])


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", ".", "/", "_", "T", "__x__"]), min_size=1, max_size=6).map("".join),
    max_size=12,
    unique=True,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(NAMES)
@example(["a.aa", "/.", "a.a"])
def test_samples_are_those_of_webdataset_or_are_named(tmp_path: Path, names: list[str]) -> None:
    names = [name for name in names if not name.endswith("/")]
    path = tmp_path / "t.tar"
    path.write_bytes(b"".join(member(name, name.encode()) for name in names) + END)
    # Names that start with a dot are left out here. There they part the members of a sample where they stand between them.
    members = (
        {**one, "__url__": ""}
        for one in tar_file_iterator(io.BytesIO(path.read_bytes()), handler=lambda e: False)
        if not re.search(r"(^|/)\.[^/]*$", one["fname"])
    )
    theirs, keys = [], set()
    for one in group_by_keys(members, handler=lambda error: True):
        if one["__key__"] not in keys:
            theirs.append({("key" if name == "__key__" else name): one[name] for name in one if name != "__url__"})
        keys.add(one["__key__"])
    reader = open_source([str(path)]).plan({"key": "str"}, None).reader
    reader = dataclasses.replace(reader, chosen=False)
    [unit] = open_source([str(path)]).plan({"key": "str"}, None).units
    ours, rejected = [], []
    for one in reader.read(unit):
        (ours if isinstance(one, Sample) else rejected).append(one)
    assert [sample.values for sample in ours] == [
        one for one in theirs if one["key"] in {sample.values["key"] for sample in ours}
    ]
    rejects = " ".join(map(str, (reject.place for reject in rejected)))
    for one in theirs:
        if one not in [sample.values for sample in ours]:
            assert f"sample {one['key']!r}" in rejects


def arrays(*values: object) -> list[dict[str, bytes]]:
    return [{"npy": npy(value)} for value in values]


INFERRED = [
    ([{"JPG": JPEG}, {"jpg": JPEG}], {"jpg": "jpeg"}),
    ([{"jpeg": JPEG, "a.png": PNG}], {"a.png": "png", "jpeg": "jpeg"}),
    (
        [{"txt": b"", "text": b"", "transcript": b"", "caption": b""}],
        dict.fromkeys(["caption", "text", "transcript", "txt"], "str"),
    ),
    ([{"json": b"1", "jsn": b"[]"}], {"jsn": "json", "json": "json"}),
    (
        [{"cls": b" 7\n", "id": b"-1", "inx": b"1", "index": b"+3", "count": b"0"}],
        dict.fromkeys(["cls", "count", "id", "index", "inx"], "int64"),
    ),
    ([{"cls": b"cat"}, {"cls": b"dog"}], {"cls": "str"}),
    ([{"cls": b"cat"}, {"cls": b"1"}], {"cls": "int64"}),
    (
        [{"mp4": b"", "webm": b"", "wav": b"", "flac": b""}],
        {"flac": "audio", "mp4": "video", "wav": "audio", "webm": "video"},
    ),
    (
        [{"pth": b"", "pkl": b"", "npz": b"", "x.y.z": b"", "json.gz": b""}],
        dict.fromkeys(["json.gz", "npz", "pkl", "pth", "x.y.z"], "bytes"),
    ),
    ([{"txt": b""}, {"cls": b"1"}, {"txt": b"", "cls": b"1"}], {"cls": "int64?", "txt": "str?"}),
    (arrays(np.zeros((2, 3), "f2"), np.ones((2, 3), "f2")), {"npy": "float16[2,3]"}),
    (arrays(np.zeros(4, ">u4")), {"npy": "uint32[4]"}),
    (arrays(np.zeros(4, bool)), {"npy": "bool[4]"}),
    (arrays(np.float64(3)), {"npy": "float64"}),
    ([*arrays(np.zeros(4, "u1")), {"txt": b""}], {"npy": "uint8[4]?", "txt": "str?"}),
    ([*arrays(np.zeros(4, "u1")), {"npy": b"broken"}], {"npy": "uint8[4]"}),
    (arrays(np.zeros(4, "u1"), np.zeros(4, "u2")), {"npy": "bytes"}),
    (arrays(np.zeros(4, "u1"), np.uint8(1)), {"npy": "bytes"}),
    (arrays(np.zeros((4, 2), "u1"), np.zeros((4, 3), "u1")), {"npy": "bytes"}),
    (arrays(np.zeros((4, 2), "u1"), np.zeros((4, 2, 1), "u1")), {"npy": "bytes"}),
    (arrays(np.zeros((2, 0), "u1")), {"npy": "bytes"}),
    (arrays(np.zeros(4, complex)), {"npy": "bytes"}),
    ([{"npy": b"broken"}], {"npy": "bytes"}),
    (arrays(np.zeros(4, "u2"), np.zeros(7, "u2")), {"npy": "uint16[*]"}),
    (arrays(np.zeros((4, 80), "f4"), np.zeros((0, 80), "f4")), {"npy": "float32[*,80]"}),
    (arrays(np.zeros(0, "f4")), {"npy": "float32[*]"}),
]


def tar_of(samples: list[dict[str, bytes]], first: int = 0) -> bytes:
    rows = enumerate(samples, first)
    return b"".join(member(f"{i:06d}.{name}", data) for i, one in rows for name, data in one.items()) + END


@pytest.mark.parametrize(("samples", "types"), INFERRED, ids=[str(types) for _, types in INFERRED])
def test_inferred_types(tree, samples: list[dict[str, bytes]], types: dict[str, str]) -> None:
    plan = open_source([tree({"a.tar": tar_of(samples)})]).plan(None, None)
    assert list(plan.types.items()) == [("key", "str"), *types.items()]


def test_ragged_arrays_are_packed(tree, tmp_path: Path) -> None:
    values = [np.arange(4, dtype="u2"), np.arange(0, dtype="u2"), np.arange(7, dtype="u2")]
    shardload.pack(tree({"a.tar": tar_of(arrays(*values))}), tmp_path / "out", workers=1)
    dataset = shardload.open(tmp_path / "out")
    assert [dataset[i]["npy"].tolist() for i in range(3)] == [value.tolist() for value in values]


def test_types_are_inferred_from_the_starts_of_many_tars(tree, monkeypatch) -> None:
    monkeypatch.setattr(tar, "INFERRED_TARS", 4)
    monkeypatch.setattr(tar, "INFERRED_SAMPLES", 8)
    files = {f"{i}.tar": tar_of([{"txt": b""}] * 2 + [{"late": b""}]) for i in range(8)}
    files["6.tar"] = tar_of([{"txt": b"", "json": b"1"}])
    plan = open_source([tree(files)]).plan(None, None)
    assert plan.types == {"key": "str", "json": "json?", "txt": "str"}
    assert plan.hint == (
        "the types were inferred from the first samples of 4 tars, 7 together; give others with --schema, with a ? after "
        "the types of members that some samples lack"
    )


def test_inference_reads_no_more_than_its_bytes(tree, monkeypatch) -> None:
    monkeypatch.setattr(tar, "INFERRED_BYTES", 100_000)
    samples = [{"npy": npy(np.zeros(2000))}] * 10 + [{"late": b""}]
    assert "late" not in open_source([tree({"a.tar": tar_of(samples)})]).plan(None, None).types
    # What is passed over by seeking does not count.
    samples = [{"bin": bytes(20_000)}] * 50 + [{"late": b""}]
    assert "late" in open_source([tree({"a.tar": tar_of(samples)})]).plan(None, None).types


def test_a_member_that_the_inferred_types_lack_is_an_error_with_advice(tree, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tar, "INFERRED_SAMPLES", 2)
    root = tree({"a.tar": tar_of([{"txt": b""}] * 3 + [{"txt": b"", "json": b"{}"}])})
    message = (
        re.escape(f"{root}/a.tar sample '000003': field 'json' is not in the schema") + ".*give others with --schema"
    )
    with pytest.raises(PackError, match=message):
        shardload.pack(root, tmp_path / "out", workers=1)
    assert not os.path.exists(tmp_path / "out" / "manifest.json")


def test_given_types_choose_members_and_say_how_they_are_read(tree, read_all) -> None:
    one = {"txt": b"1.5", "cls": b"7", "npy": npy(np.arange(2)), "key": b"x", "_meta": b"", "json": b"broken"}
    data = header("000000.mp4", kind=b"2") + tar_of([one])
    root = tree({"a.tar": data})
    types = {"txt": "float32", "npy": "bytes", "cls": "str", "nope": "bytes?", "key": "str"}
    plan, [[sample]] = read_all(root, types=types)
    assert plan.types == types and plan.hint == ""
    assert sample == {"key": "000000", "txt": 1.5, "npy": one["npy"], "cls": "7"}
    _, [[sample]] = read_all(root, types={"cls": "uint8", "npy": "int64[2]?"})
    assert same(sample, {"cls": 7, "npy": np.arange(2)})


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"key": "int64"}, "field 'key' is the key of a sample and cannot be int64: give it str"),
        ({"txt": "float32[3]"}, "field 'txt' cannot be float32[3]: of members of a tar only .npy files become arrays"),
        ({"a.npy": "json"}, "field 'a.npy' cannot be json: an npy file is an array, or bytes as they are"),
        ({"txt": "bool"}, "field 'txt' cannot be bool"),
        ({"JPG": "jpeg"}, "field 'JPG' would stay empty: extensions are taken in lower case, so give 'jpg'"),
    ],
)
def test_types_that_members_cannot_have(tree, types: dict[str, str], message: str) -> None:
    root = tree({"a.tar": tar_of([{"txt": b""}])})
    with pytest.raises(PackError, match=re.escape(f"{root}: {message}")):
        open_source([root]).plan(types, None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.tar": END}, "source holds no sample of a WebDataset tar"),
        ({"a.tar": member("README") + END}, "no sample of a WebDataset tar; the first thing in them that is none: "),
        ({"a.tar": b""}, "source/a.tar is damaged or was cut short: it is empty"),
        (
            {"a.tar": END, "a.parquet": b""},
            "holds 1 WebDataset tars and 1 others (such as a.parquet): choose with include",
        ),
        ({"a.tgz": END, "a.jsonl": b""}, "holds 1 JSON Lines files and 1 others (such as a.tgz)"),
    ],
)
def test_nothing_that_can_be_packed(tree, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(PackError, match=re.escape(message)):
        open_source([tree(files)]).plan(None, None)


def test_tars_of_a_folder_files_in_their_order_and_no_mixture(tree, read_all) -> None:
    files = {f"{name}.tar": tar_of([{"txt": name.encode()}]) for name in "cab"}
    root = tree(files | {"stats.json": b"{}", "x.jsonl": b"{}"})
    _, units = read_all(root, include=["*.tar"])
    assert [sample["txt"] for unit in units for sample in unit] == ["a", "b", "c"]
    _, units = read_all(f"{root}/c.tar", f"{root}/b.tar", unit_size=1)
    assert [[sample["txt"] for sample in unit] for unit in units] == [["c"], ["b"]]
    # The same keys in several tars are the rule.
    assert [sample["key"] for unit in units for sample in unit] == ["000000", "000000"]
    with pytest.raises(PackError, match="JSON Lines files and WebDataset tars are different sources"):
        open_source([f"{root}/c.tar", f"{root}/x.jsonl"])
    with pytest.raises(
        PackError, match=r"a\.rst is not a source: give a folder, or JSON Lines files .* or WebDataset tars"
    ):
        open_source([tree({"a.rst": b""}) + "/a.rst"])


def test_nothing_is_unpickled_extracted_or_run(tree, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    trap = pickle.dumps(Trap())
    file = io.BytesIO()
    np.save(file, np.array([Trap()], object), allow_pickle=True)
    names = ("pth", "pt", "pickle", "pkl", "pyd", "ten", "npz", "npy")
    one = {name: file.getvalue() if name == "npy" else trap for name in names}
    data = tar_of([one]).removesuffix(END) + member("../outside.txt") + member(f"{tmp_path}/absolute.txt") + END
    # webdataset's opener of URLs would run this.
    name = "pipe:mkdir trapped #.tar"
    root = Path(tree({name: data}))
    (root / name).rename(name)
    before = sorted(os.listdir(tmp_path))
    shardload.pack([name], tmp_path / "out", schema={"key": "str"} | dict.fromkeys(one, "bytes?"), workers=1)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out"])
    dataset = shardload.open(tmp_path / "out")
    assert dataset[0] == {"key": "000000"} | one
    assert [dataset[i]["key"] for i in (1, 2)] == ["../outside", f"{tmp_path}/absolute"]
    plan = open_source([name]).plan(None, None)
    assert {plan.types[name] for name in names} == {"bytes?"}
    assert all(isinstance(one, Sample) for one in plan.reader.read(plan.units[0]))


def test_any_number_of_workers_packs_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for number, path in enumerate(paths):
        write_tar(path, wds_samples(number, 40))
    prints = {
        shardload.pack(paths, tmp_path / f"out{workers}", workers=workers, unit_size=1).fingerprint
        for workers in (1, 2)
    }
    assert len(prints) == 1


def test_a_tar_of_another_program_with_pax_headers(tree, tmp_path: Path) -> None:
    path = tmp_path / "p.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as writer:
        for name in ("ä/1.txt", "ä/1.cls", "n" * 200 + ".txt", "n" * 200 + ".cls"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 1, 1.5
            writer.addfile(info, io.BytesIO(b"7"))
    plan = open_source([str(path)]).plan(None, None)
    samples = [sample.values for sample in plan.reader.read(plan.units[0]) if not isinstance(sample, Reject)]
    assert samples == [{"key": "ä/1", "txt": "7", "cls": 7}, {"key": "n" * 200, "txt": "7", "cls": 7}]


@pytest.mark.timeout(20)
def test_a_name_twice_among_many_in_json() -> None:
    """Found in one pass: a pass for each name would take hours."""
    names = ",".join(f'"k{i}":1' for i in range(200_000))
    with pytest.raises(BadValue, match="field 'z' stands in an object twice"):
        decoder("json", "json")(f'{{{names},"z":1,"z":2}}'.encode())
