"""A packed dataset as torch's map-style dataset: right values, lazily opened, fit for any start method."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from programs import Program
from samples import mixed_sample, same, write_mixed
from torch.utils.data import DataLoader

import shardload
from shardload.format.layout import SECTION_ROWS, SECTION_WIDE
from shardload.reader.transform import takes_rng
from shardload.storage import FileReader, MappedFiles


def open_descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


def test_every_sample_equals_its_source(mixed):
    dataset = shardload.open(mixed)
    assert len(dataset) == 500
    assert len(dataset.table) > 3
    for i in range(500):
        assert same(dataset[i], mixed_sample(i)), i


@pytest.mark.parametrize("verify", ["auto", "once", "always", "off"])
def test_batches_in_any_order_with_repeats(mixed, verify):
    dataset = shardload.open(mixed, verify=verify)
    ids = np.random.default_rng(1).integers(0, 500, 300)
    for _ in range(2):
        batch = dataset.__getitems__(ids.tolist())
        assert len(batch) == 300
        for i, sample in zip(ids.tolist(), batch, strict=True):
            assert same(sample, mixed_sample(i))


def test_arrays_are_owned_and_writable(mixed):
    dataset = shardload.open(mixed)
    batch = dataset.__getitems__([3, 4])
    first, again = batch[0], batch[0]
    first["wide"][:] = -1
    first["small"][:] = -1
    assert same(again, mixed_sample(3))
    assert same(batch[0], mixed_sample(3))


def test_batch_is_a_sequence(mixed):
    batch = shardload.open(mixed, fields=["number"]).__getitems__([5, 6, 7])
    assert [s["number"] for s in batch] == [5, 6, 7]
    assert batch[-1] == {"number": 7}
    assert batch[:2] == [{"number": 5}, {"number": 6}]
    with pytest.raises(IndexError):
        batch[3]


def test_fields(mixed):
    dataset = shardload.open(mixed, fields=["text", "number"])
    assert dataset[9] == {"number": 9, "text": mixed_sample(9)["text"]}
    with pytest.raises(ValueError, match="no field 'txt'; the fields are number"):
        shardload.open(mixed, fields=["txt"])
    with pytest.raises(TypeError, match="list of names"):
        shardload.open(mixed, fields="text")


def test_columns_and_lengths(mixed):
    dataset = shardload.open(mixed)
    assert dataset.column("number").tolist() == list(range(500))
    assert dataset.column("flag").dtype == np.bool_
    assert dataset.column("half").dtype == np.float32
    assert np.array_equal(dataset.column("wide")[:, 0], np.arange(500))
    score = dataset.column("score")
    assert score.mask.tolist() == [i % 5 == 0 for i in range(500)]
    assert score[7] == 1.0
    assert dataset.lengths("data").tolist() == [i % 700 for i in range(500)]
    assert dataset.lengths("text").tolist() == [len(mixed_sample(i)["text"].encode()) for i in range(500)]
    for call, name in ((dataset.column, "text"), (dataset.lengths, "number"), (dataset.column, "none")):
        with pytest.raises(ValueError, match=r"fixed field|not a field"):
            call(name)


def test_lengths_of_a_single_record_field(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"text": "str"}, compression="zstd:3") as writer:
        for i in range(300):
            writer.write({"text": "x" * i})
    assert shardload.open(tmp_path / "d").lengths("text").tolist() == list(range(300))


def test_transform(mixed):
    dataset = shardload.open(mixed, transform=lambda sample: sample["number"] * 2)
    assert dataset[4] == 8
    assert dataset.__getitems__([1, 2]) == [2, 4]


def test_rng_needs_ids_that_know_their_epoch(mixed):
    dataset = shardload.open(mixed, transform=lambda sample, rng: float(rng.random()))
    with pytest.raises(ValueError, match="batch_sampler"):
        dataset[4]


@pytest.mark.parametrize("index", [500, -501, 1 << 70, -(1 << 70)])
def test_index_out_of_range_names_it(mixed, index):
    with pytest.raises(IndexError, match="out of range"):
        shardload.open(mixed)[index]


@pytest.mark.parametrize("index", [1.0, "1", None])
def test_index_of_another_type(mixed, index):
    with pytest.raises(TypeError, match="integers"):
        shardload.open(mixed)[index]


def test_numpy_and_torch_integers_are_indices(mixed):
    dataset = shardload.open(mixed, fields=["number"])
    assert dataset[np.int32(7)] == dataset[torch.tensor(7)] == dataset[-493] == {"number": 7}


def test_iteration(mixed):
    assert [sample["number"] for sample in shardload.open(mixed, fields=["number"])] == list(range(500))


def test_empty_dataset(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"text": "str", "n": "int64"}):
        pass
    dataset = shardload.open(tmp_path / "d")
    assert len(dataset) == 0
    assert list(dataset) == []
    assert len(dataset.column("n")) == len(dataset.lengths("text")) == 0
    with pytest.raises(IndexError):
        dataset[0]


def test_opening_leaves_nothing_open(mixed):
    before, threads = open_descriptors(), threading.active_count()
    dataset = shardload.open(mixed)
    shardload.ShardLoader(dataset, 8, shuffle=True)
    shardload.ShardSampler(dataset).batch_sampler(8)
    assert open_descriptors() == before
    assert threading.active_count() == threads


def test_opening_looks_at_no_shard(mixed, tmp_path):
    copy = shutil.copytree(mixed, tmp_path / "copy")
    shutil.rmtree(copy / "shards")
    dataset = shardload.open(copy)
    assert len(dataset) == 500
    with pytest.raises(shardload.StorageError, match=r"00000.shard is missing"):
        dataset[0]


def test_pickle_is_small(mixed):
    dataset = shardload.open(mixed, fields=["number"])
    dataset[0]
    data = pickle.dumps(dataset)
    # Of a store it has the options too.
    assert len(data) < 2000 or (dataset.far and len(data) < 4000)
    assert pickle.loads(data)[3] == {"number": 3}


def test_pickle_pins_the_content(tmp_path):
    copy = write_mixed(tmp_path / "d", 20)
    data = pickle.dumps(shardload.open(copy))
    shutil.rmtree(copy)
    write_mixed(copy, 21)
    with pytest.raises(shardload.StateMismatchError, match="another dataset"):
        len(pickle.loads(data))


def test_pickle_stays_on_its_version(tmp_path):
    path = write_mixed(tmp_path / "d", 20)
    old = shardload.open(path)
    data = pickle.dumps(old)
    write_mixed(path, 30, replace=True)
    assert len(shardload.open(path)) == 30
    assert len(pickle.loads(data)) == len(old) == 20
    assert same(pickle.loads(data)[19], mixed_sample(19))
    assert same(old[19], mixed_sample(19))
    assert len(shardload.open(path, version=1)) == 20


def test_fingerprint_is_pinned(mixed):
    fingerprint = shardload.open(mixed).fingerprint
    assert len(shardload.open(mixed, fingerprint=fingerprint)) == 500
    with pytest.raises(shardload.StateMismatchError, match="0000"):
        shardload.open(mixed, fingerprint="0" * 64)


def test_a_commit_without_its_copy_opens(tmp_path):
    path = write_mixed(tmp_path / "d", 5)
    (path / "manifest.json").unlink()
    assert len(shardload.open(path)) == 5


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_dataset(tmp_path, make):
    make(tmp_path / "d")
    with pytest.raises(shardload.StorageError, match=r"not a dataset|cannot be read"):
        shardload.open(tmp_path / "d")


def test_unknown_verify_mode(mixed):
    with pytest.raises(ValueError, match="verify must be one of auto, always, once, off"):
        shardload.open(mixed, verify="sometimes")


def test_threads_read_one_dataset(mixed):
    dataset = shardload.open(mixed)
    wrong = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(500)[:200].tolist():
            if not same(dataset[i], mixed_sample(i)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_row_tables_read_by_page(mixed, monkeypatch):
    """A budget below the row tables reads pages, keeps few of them, and gives the same samples."""
    by_page(monkeypatch)
    dataset = shardload.open(mixed)
    for i in np.random.default_rng(0).permutation(500).tolist():
        assert same(dataset[i], mixed_sample(i))


FEW_FILES = """
import resource, sys
import numpy as np
import shardload

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
dataset = shardload.open(sys.argv[1])
assert len(dataset.table) > 100
ids = np.random.default_rng(0).permutation(len(dataset))
assert [s["number"] for s in dataset.__getitems__(ids)] == ids.tolist()
print("fine")
"""


def test_more_shards_than_descriptors(tmp_path):
    with shardload.ShardWriter(tmp_path / "d", {"number": "int64"}, shard_size="4500B") as writer:
        for i in range(3000):
            writer.write({"number": i})
    program = Program(FEW_FILES, tmp_path / "d", torch=False)
    output, errors = program.communicate(timeout=60)
    assert output == "fine\n", errors


@pytest.mark.parametrize(
    ("method", "read_before"),
    [
        *(("fork", True), ("fork", False), ("forkserver", True), ("spawn", True)),
        # They inherit nothing, so that it is the same pickle that comes to them.
        *(pytest.param(method, False, marks=pytest.mark.slow) for method in ("forkserver", "spawn")),
    ],
)
def test_worker_processes(mixed, method, read_before):
    """Under every start method, with open files, caches and a live prefetch thread in the parent."""
    dataset = shardload.open(mixed)
    loader = shardload.ShardLoader(dataset, 16, shuffle=True)
    batches = iter(loader)
    if read_before:
        dataset[0]
        next(batches)
    # One that is not forked takes seconds to import torch.
    num_workers = 2 if method == "fork" else 1
    options = {"num_workers": num_workers, "multiprocessing_context": method, "timeout": 60}
    workers = DataLoader(dataset, batch_size=50, collate_fn=shardload.collate, **options)
    numbers = []
    for batch in workers:
        for slot, i in enumerate(batch["number"].tolist()):
            assert batch["text"][slot] == mixed_sample(i)["text"]
            assert batch["data"][slot] == mixed_sample(i)["data"]
            assert batch["wide"][slot, 0] == i
            numbers.append(i)
    assert numbers == list(range(500))
    loader.close()


EMPTY_SCHEMAS = [{"wide": "float32[64,2]"}, {"small": "int16[3]"}, {"one": "int64"}, {"text": "str", "data": "bytes"}]


@pytest.mark.parametrize("verify", ["once", "always", "off"])
@pytest.mark.parametrize("schema", EMPTY_SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_a_batch_of_no_samples(tmp_path, schema, verify):
    sample = {
        "wide": np.zeros((64, 2), np.float32),
        "small": np.zeros(3, np.int16),
        "one": 1,
        "text": "a",
        "data": b"b",
    }
    with shardload.ShardWriter(tmp_path / "d", schema) as writer:
        writer.write({name: sample[name] for name in schema})
    dataset = shardload.open(tmp_path / "d", verify=verify)
    batch = dataset.__getitems__([])
    assert len(batch) == 0 and list(batch) == []
    collated = shardload.collate(batch)
    assert all(len(values) == 0 for values in collated.values())
    if "wide" in schema:
        assert collated["wide"].shape == (0, 64, 2)


def test_ranks_that_get_nothing_of_a_short_tail(tmp_path):
    schema = {"number": "int64", "wide": "int32[300]", "small": "int16[3]", "text": "str"}
    with shardload.ShardWriter(tmp_path / "d", schema) as writer:
        for i in range(9):
            writer.write({"number": i, "wide": [i] * 300, "small": [i] * 3, "text": str(i)})
    seen = []
    for rank in range(4):
        loader = shardload.ShardLoader(
            shardload.open(tmp_path / "d"), 2, shuffle=True, tail="short", num_replicas=4, rank=rank
        )
        for batch in loader:
            assert batch["wide"].shape == (len(batch["text"]), 300)
            seen += batch["wide"][:, 0].tolist()
    assert sorted(seen) == list(range(9))


def by_page(monkeypatch):
    """Has row tables read by page, of which hardly any is kept."""
    import shardload.reader.access as access

    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", 1000)


def test_hints_of_a_table_that_is_not_held_whole_read_nothing(mixed, monkeypatch):
    by_page(monkeypatch)
    dataset = shardload.open(mixed, engine="pread")
    access = dataset._process_access()
    for shard_id in range(len(dataset.table)):
        access.shard(shard_id)
    read, hinted = [], []
    monkeypatch.setattr(FileReader, "read_into", lambda self, buffer, start: read.append(start))
    monkeypatch.setattr(FileReader, "will_need", lambda self, start, num_bytes: hinted.append((start, num_bytes)))
    dataset.will_need(np.array([3, 3, 4, 17]))
    assert read == []
    head = access.shard(0).head
    rows, wide = head.section(SECTION_ROWS), head.section(SECTION_WIDE, dataset.schema.number("wide"))
    for start, num_bytes in ((wide.start + 3 * 1024, 1024), (wide.start + 17 * 1024, 1024)):
        assert any(at <= start and start + num_bytes <= at + size for at, size in hinted)
    assert any(rows.start <= at < rows.stop for at, _ in hinted)


def test_hints_by_page_leave_what_is_read_right(mixed, monkeypatch):
    by_page(monkeypatch)
    dataset = shardload.open(mixed)
    for start in range(0, 500, 100):
        dataset.will_need(np.arange(start, start + 100))
        for i, sample in enumerate(dataset.__getitems__(range(start, start + 100)), start):
            assert same(sample, mixed_sample(i))


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_hint_that_fails_is_no_error(mixed, monkeypatch, whole, engine):
    def refuse(*arguments):
        raise OSError(22, "Invalid argument")

    if not whole:
        by_page(monkeypatch)
    dataset = shardload.open(mixed, engine=engine)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    monkeypatch.setattr(MappedFiles, "will_need", refuse)
    dataset.will_need(np.arange(500))
    assert same(dataset[3], mixed_sample(3))


def test_a_generator_that_is_bound_already_is_kept(mixed):
    def draw(sample, rng):
        return sample["number"], rng

    class Drawer:
        bound = functools.partialmethod(draw_of_self, rng="mine")

    @functools.wraps(draw)
    def wrapped(*arguments, **keywords):
        return draw(*arguments, **keywords)

    for transform in (
        functools.partial(draw, rng="mine"),
        functools.partial(functools.partial(draw, rng="mine")),
        functools.wraps(draw)(functools.partial(wrapped, rng="mine")),
        Drawer().bound,
    ):
        assert not takes_rng(transform)
        dataset = shardload.open(mixed, fields=["number"], transform=transform)
        assert dataset[4] == (4, "mine")
        assert next(iter(shardload.ShardLoader(dataset, 500, shuffle=False, collate_fn=list)))[4] == (4, "mine")
    assert takes_rng(draw) and takes_rng(functools.partial(draw)) and takes_rng(wrapped)


def draw_of_self(self, sample, rng):
    return sample["number"], rng
