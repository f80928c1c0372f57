"""Delivery to a CUDA device: the same batches as in host memory, copied ahead, and never from or to memory in use."""

from __future__ import annotations

import collections
import io
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import EVERY_SAMPLES, write_everything

import shardload
from shardload.loader import ShardLoader
from shardload.loader.collate import moved, to_device
from shardload.loader.ragged import joined
from shardload.loader.transfer import masks, widened_to_int64

WITHOUT = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
gpu_skip = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here (python -m bench.gpu runs it)"
)


def gpu(test: Any) -> Any:
    return pytest.mark.gpu(gpu_skip(test))


NUMBERS: dict[str, Any] = {
    "number": "int64",
    "byte": "uint8[3]",
    "short": "uint16",
    "shorts": "uint16[5,2]?",
    "word": "uint32",
    "long": "uint64[2]",
    "half": "float16[3]",
    "brain": "bfloat16[300]",
    "flag": "bool",
    "flags": "bool[700]",
    "score": "float64?",
    "ids": "uint16[*]",
    "words": {"type": "uint32[*]?", "compression": "zstd"},
    "frames": "float32[*,3]",
    "text": "str?",
    "data": "bytes",
}
ROWS, ROW = 400, 4096


def numbers_sample(i: int) -> dict[str, Any]:
    return {
        "number": i,
        "byte": np.array([i % 256, 255, 0], np.uint8),
        "short": 65535 - i,
        "shorts": None if i % 4 == 1 else np.arange(10, dtype=np.uint16).reshape(5, 2) + 65000,
        "word": (1 << 32) - 1 - i,
        "long": np.array([(1 << 63) - 1 - i, i], np.uint64),
        "half": np.array([i, -i, 0.5], np.float16),
        "brain": np.full(300, i % 256, np.float32),
        "flag": i % 3 == 0,
        "flags": np.arange(700) % (i + 2) == 0,
        "score": None if i % 5 == 0 else i / 7,
        "ids": (np.arange(i * 31 % 90) + 65_400).astype(np.uint16),
        "words": None if i % 3 == 0 else np.full(i % 5, (1 << 32) - 1 - i, np.uint32),
        "frames": np.full((i % 4, 3), i, np.float32),
        "text": None if i % 4 == 0 else f"sample {i}",
        "data": bytes([i]) * i,
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 50 samples of all kinds of numbers, some text and bytes. Read only."""
    path = tmp_path_factory.mktemp("kinds") / "dataset"
    with shardload.ShardWriter(path, NUMBERS, compression="zstd:1", shard_size="64KiB") as writer:
        for i in range(50):
            writer.write(numbers_sample(i))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 400 wide samples, each with its own number in all of its items. Read only."""
    path = tmp_path_factory.mktemp("rows") / "dataset"
    with shardload.ShardWriter(path, {"row": f"int32[{ROW}]"}, shard_size="4MiB") as writer:
        for i in range(ROWS):
            writer.write({"row": np.full(ROW, i, np.int32)})
    return path


def make(path: Path, batch_size: int, **options: Any) -> ShardLoader:
    return ShardLoader(shardload.open(path), batch_size, **{"shuffle": True, "with_ids": True, **options})


def assert_same(got: Any, want: Any, device: str, name: str = "") -> None:
    """Compares batches part by part, tensors to the last bit."""
    if isinstance(want, torch.Tensor):
        assert got.device.type == device, name
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        left, right = (part.detach().cpu().contiguous().numpy(force=True) for part in (as_bytes(got), as_bytes(want)))
        assert np.array_equal(left, right), name
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key, value in want.items():
            assert_same(got[key], value, device, key)
    elif isinstance(want, list):
        assert type(got) is list and len(got) == len(want), name
        for one, other in zip(got, want):
            assert_same(one, other, device, name)
    else:
        assert type(got) is type(want) and got == want, name


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_rows(batch: dict[str, torch.Tensor]) -> list[int]:
    """Checks that all items of each row are its id; returns the ids."""
    ids = batch["_sample_id"].cpu()
    assert torch.equal(batch["row"].cpu(), ids.to(torch.int32)[:, None].expand(-1, ROW))
    return ids.tolist()


# What needs no device.


@WITHOUT
@pytest.mark.parametrize(
    ("options", "name"),
    [({"device": "cuda"}, "device='cuda'"), ({"device": "cuda:5"}, "device='cuda:5'"), ({"pin_memory": True}, "pin_memory=True")],
)  # fmt: skip
def test_a_missing_device_is_told_by_the_first_iter(rows, options, name):
    with make(rows, 8, **options) as loader:
        assert len(loader) == ROWS // 8
        state = loader.state_dict()
        with pytest.raises(RuntimeError, match=f"{name} needs a CUDA device, and torch sees none here: leave it out"):
            iter(loader)
        assert loader.state_dict() == state


def test_delivery_to_the_host_says_so(kinds):
    with make(kinds, 8) as plain, make(kinds, 8, device="cpu") as named:
        for got, want in zip(named, plain, strict=True):
            assert_same(got, want, "cpu")
        stats = named.stats()
        assert (stats.device, stats.pinned) == ("", False)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4)])
def test_widening_keeps_every_value(dtype, shape):
    info = {torch.uint16: np.uint16, torch.uint32: np.uint32, torch.uint64: np.uint64}[dtype]
    most = min(np.iinfo(info).max, np.iinfo(np.int64).max)
    edges = np.resize(np.array([0, 1, most, most - 1, most // 2, most // 2 + 1], info), shape)
    wide = widened_to_int64(torch.from_numpy(edges), masks(torch.device("cpu")))
    assert wide.dtype is torch.int64 and wide.shape == shape
    assert np.array_equal(wide.numpy(), edges.astype(np.int64))


def test_widening_all_16_bits():
    every = torch.arange(1 << 16).to(torch.uint16)
    assert torch.equal(widened_to_int64(every, masks(torch.device("cpu"))), torch.arange(1 << 16))


def test_integers_stay_narrow_only_where_nobody_sees_them(kinds):
    """What a function of the user's gets is the same wherever its batches go."""

    def narrow(**options: Any) -> bool:
        return make(kinds, 8, **options)._course.recipe.narrow

    assert narrow(device="cuda")
    assert not narrow() and not narrow(device="cpu")
    for name in ("transform", "collate_fn", "batch_transform"):
        assert not narrow(device="cuda", **{name: lambda batch: batch})


def test_lists_in_one_memory_move_as_one():
    whole = torch.arange(12.0).view(6, 2)
    batch = {"a": list(torch.split(whole, [1, 0, 3, 2])), "b": ["x", None, b"y"], "c": [torch.ones(2), None]}
    parts: list[torch.Tensor] = []

    def move(part: torch.Tensor) -> torch.Tensor:
        parts.append(part)
        return part + 1

    result = moved(batch, move)
    assert [part.shape for part in parts] == [(6, 2), (2,)]
    assert [len(value) for value in result["a"]] == [1, 0, 3, 2]
    assert torch.equal(torch.cat(result["a"]), whole + 1)
    assert shardload.packed(result["a"])[0].data_ptr() == result["a"][0].data_ptr()
    assert result["b"] == ["x", None, b"y"] and result["c"][1] is None


def test_what_only_looks_like_one_memory_moves_by_itself():
    whole = torch.arange(12)
    assert joined([whole[:4], whole[5:]]) is None
    assert joined([whole[4:], whole[:4]]) is None
    assert joined([whole[:4].view(2, 2), whole[4:]]) is None
    assert joined([whole[:4], whole[4:8].view(torch.float64)]) is None
    assert joined([torch.zeros(0), torch.zeros(0)]) is None
    # One item: any stride counts as contiguous.
    odd = torch.arange(40).as_strided((1, 4), (9, 1))
    assert odd.is_contiguous()
    both = joined([odd, torch.as_strided(odd, (2, 4), (4, 1), 4)])
    assert both is not None and torch.equal(both, torch.arange(12).view(3, 4))
    scalars = [torch.tensor(1), torch.tensor(2)]
    assert to_device(scalars, torch.device("cpu")) == scalars


def test_batch_classes_move_themselves():
    Pair = collections.namedtuple("Pair", "left right")
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    result = to_device({"pair": Pair(torch.ones(1), "x"), "packed": packed, "map": collections.OrderedDict(a=torch.ones(1))},
                       torch.device("meta"))  # fmt: skip
    assert type(result["pair"]) is Pair and result["pair"].left.device.type == "meta" and result["pair"].right == "x"
    assert result["packed"].data.device.type == "meta"
    # It would refuse lengths elsewhere, and knows that itself.
    assert result["packed"].batch_sizes.device.type == "cpu"
    assert type(result["map"]) is collections.OrderedDict and result["map"]["a"].device.type == "meta"


# What needs one.


@gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"prefetch_batches": 0}, {"pin_memory": False}, {"num_threads": 0}, {"num_processes": 2}, {"reuse": True},
     {"tail": "mask"}, {"on_error": "mask"}, {"dtypes": {"short": torch.uint16, "ids": torch.int32, "half": torch.float32}},
     {"collate_fn": shardload.collate}],
    ids=lambda options: "-".join(options) or "plain",
)  # fmt: skip
def test_all_kinds_of_fields_arrive_as_they_are(kinds, options):
    with make(kinds, 8, **options) as host, make(kinds, 8, device="cuda", **options) as loader:
        # Processes take seconds to start, for each epoch anew.
        for _ in range(1 if "num_processes" in options else 2):
            for got, want in zip(loader, host, strict=True):
                assert_same(got, want, "cuda")
        stats = loader.stats()
        assert (stats.device, stats.pinned) == ("cuda:0", options.get("pin_memory", True))
        assert stats.num_bytes == host.stats().num_bytes


@gpu
def test_one_of_everything_arrives(tmp_path):
    path = write_everything(tmp_path / "dataset")
    with make(path, 5, tail="short") as host, make(path, 5, tail="short", device="cuda") as loader:
        batches = list(loader)
        for got, want in zip(batches, host, strict=True):
            assert_same(got, want, "cuda")
    assert sum(len(batch["text"]) for batch in batches) == EVERY_SAMPLES


@gpu
def test_ragged_fields_are_packed_without_a_copy(kinds):
    with make(kinds, 8, device="cuda") as loader:
        for batch in loader:
            for name in ("ids", "words", "frames"):
                values, starts = shardload.packed(batch[name])
                first = next(value for value in batch[name] if len(value))
                assert values.data_ptr() == first.data_ptr()
                assert torch.equal(values.cpu(), torch.cat(batch[name]).cpu())
                assert int(starts[-1]) == len(values)


@gpu
@pytest.mark.parametrize("crop", [None, "center"])
def test_decoded_images_arrive(tmp_path, crop):
    image = pytest.importorskip("PIL.Image")
    with shardload.ShardWriter(tmp_path / "out", {"image": "png", "label": "int64"}) as writer:
        for i in range(20):
            file = io.BytesIO()
            # Of two sizes: without a crop a batch is a list.
            image.fromarray(np.full((20 + i % 2, 30, 3), i, np.uint8)).save(file, "PNG")
            writer.write({"image": file.getvalue(), "label": i})
    decode = {"image": shardload.ImageDecode() if crop is None else shardload.ImageDecode(16, crop=crop)}
    options: dict[str, Any] = {"decode": decode}
    with make(tmp_path / "out", 4, **options) as host, make(tmp_path / "out", 4, device="cuda", **options) as loader:
        for got, want in zip(loader, host, strict=True):
            assert_same(got, want, "cuda")


@gpu
@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("options", [{}, {"prefetch_batches": 0}, {"reuse": True}, {"num_threads": 0}], ids=str)
def test_a_slow_training_step_reads_what_it_was_given(rows, options, keep, own_stream):
    """The consumer's stream is far behind: memory that was used again before it is done would hold another batch."""
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    kept: list[Any] = []
    behind = 0
    with torch.cuda.stream(stream), make(rows, 8, device="cuda", **options) as loader:
        for batch in loader:
            behind += not stream.query()
            torch.cuda._sleep(10_000_000)
            kept.append(batch if keep else {name: value.clone() for name, value in batch.items()})
            del batch
        assert behind >= 10
        ids = [i for batch in kept for i in assert_rows(batch)]
    assert sorted(ids) == list(range(ROWS))


@gpu
@pytest.mark.parametrize("drop", [False, True])
def test_slow_copies_are_waited_for(rows, drop):
    """The copies are far behind: a page-locked buffer that was filled again before would be another batch on arrival."""
    got: list[Any] = []
    with make(rows, 8, device="cuda", prefetch_batches=4) as loader:
        batches = iter(loader)
        got.append(next(batches))
        copies = loader._course.transfer.stream
        with torch.cuda.stream(copies):
            torch.cuda._sleep(1_000_000_000)
        # The sixth from here at the latest is behind that.
        for batch in batches:
            got.append({name: value.clone() for name, value in batch.items()} if drop else batch)
            del batch
        ids = [i for batch in got for i in assert_rows(batch)]
    assert sorted(ids) == list(range(ROWS))


@gpu
def test_nothing_waits_for_the_device_on_the_host(rows):
    with make(rows, 8, device="cuda") as loader, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        next(iter(loader))
        torch.cuda.set_sync_debug_mode("error")
        try:
            kept = list(loader)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len({i for batch in kept for i in assert_rows(batch)}) == ROWS


@gpu
def test_buffers_go_round(rows):
    with make(rows, 8, device="cuda", num_threads=0) as loader:
        for _ in range(6):
            for batch in loader:
                torch.cuda.current_stream().synchronize()
                del batch
        stats = loader.stats()
        assert stats.num_buffers_new < 40 < stats.num_buffers_reused


@gpu
def test_a_state_counts_what_was_delivered(rows):
    with make(rows, 8, device="cuda") as loader, make(rows, 8) as host:
        batches = iter(loader)
        for _ in range(7):
            next(batches)
        state = loader.state_dict()
        assert state == host.state_at(7)
        rest = [batch["_sample_id"].tolist() for batch in batches]
        with make(rows, 8, device="cuda") as resumed:
            resumed.load_state_dict(state)
            assert [batch["_sample_id"].tolist() for batch in resumed] == rest


@gpu
@pytest.mark.parametrize("prefetch_batches", [None, 0])
def test_errors_come_in_their_turn(rows, prefetch_batches):
    calls = 0

    def fails(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ValueError("no more")
        return batch

    with make(rows, 8, device="cuda", batch_transform=fails, prefetch_batches=prefetch_batches) as loader:
        got = []
        with pytest.raises(ValueError, match="no more"):
            for batch in loader:
                got.append(batch)
        assert len(got) == 4 and all(map(assert_rows, got))


@gpu
def test_numbers_beyond_int64_are_an_error(tmp_path):
    with shardload.ShardWriter(tmp_path / "out", {"hash": "uint64"}) as writer:
        for i in range(8):
            writer.write({"hash": (1 << 63) + i})
    with make(tmp_path / "out", 4, device="cuda") as loader, pytest.raises(ValueError, match="field 'hash'"):
        next(iter(loader))
    with make(tmp_path / "out", 4, device="cuda", dtypes={"hash": torch.uint64}) as loader:
        assert next(iter(loader))["hash"].dtype is torch.uint64


@gpu
def test_leaving_in_the_middle_keeps_what_was_given(rows):
    with make(rows, 8, device="cuda") as loader:
        batches = iter(loader)
        torch.cuda._sleep(200_000_000)
        kept = [next(batches) for _ in range(3)]
    with pytest.raises(shardload.LoaderClosedError):
        next(batches)
    with make(rows, 8, device="cuda", seed=1) as other:
        list(other)
    assert all(map(assert_rows, kept))


class Boxed:
    """As the batch classes of frameworks: it knows how to move itself."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def to(self, device: torch.device) -> Boxed:
        return Boxed(self.tensor.to(device))


@gpu
def test_what_transforms_return_moves_too(rows):
    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        row = batch["row"]
        torch.cuda._sleep(5_000_000)
        return {
            "row": row,
            "boxed": Boxed(row),
            "there": row.to("cuda") + 1,
            "even": row[:, ::2],
            "tuple": (row[:1], "x"),
            "leaf": torch.ones(2, requires_grad=True),
        }

    ids = []
    with make(rows, 8, device="cuda", batch_transform=transform) as loader:
        for batch in loader:
            ids += assert_rows(batch)
            assert torch.equal(batch["boxed"].tensor, batch["row"])
            assert torch.equal(batch["there"], batch["row"] + 1)
            assert torch.equal(batch["even"], batch["row"][:, ::2])
            assert torch.equal(batch["tuple"][0], batch["row"][:1]) and batch["tuple"][1] == "x"
            assert batch["leaf"].is_cuda
    assert sorted(ids) == list(range(ROWS))


@gpu
def test_pinned_batches_without_a_device(kinds, rows):
    with make(kinds, 8) as host, make(kinds, 8, pin_memory=True) as loader:
        for got, want in zip(loader, host, strict=True):
            assert_same(got, want, "cpu")
            assert got["number"].is_pinned() and all(value.is_pinned() for value in got["frames"] if len(value))
        assert loader.stats().pinned
    stream, kept, ids = torch.cuda.Stream(), [], []
    # A loop that copies on a stream of its own and drops the batch at once.
    with make(rows, 8, pin_memory=True, reuse=True) as loader:
        for batch in loader:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(5_000_000)
                kept.append({name: value.to("cuda", non_blocking=True) for name, value in batch.items()})
            del batch
        stream.synchronize()
    for batch in kept:
        ids += assert_rows(batch)
    assert sorted(ids) == list(range(ROWS))


@gpu
def test_a_device_that_is_not_there_is_told(rows):
    with (
        make(rows, 8, device="cuda:99") as loader,
        pytest.raises(RuntimeError, match="'cuda:99' is not there: torch sees"),
    ):
        iter(loader)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, to see that one stays untouched")
@pytest.mark.parametrize(
    "options", ["device='cuda:1'", "device='cuda:1', num_processes=1", "device='cuda:1', prefetch_batches=0"]
)
def test_no_other_device_gets_a_context(rows, options):
    program = f"""
        import torch, shardload
        if __name__ == "__main__":
            loader = shardload.ShardLoader(shardload.open({str(rows)!r}), 8, shuffle=True, {options})
            for batch in loader:
                assert batch["row"].get_device() == 1
            loader.close()
            assert torch._C._cuda_hasPrimaryContext(1)
            assert not torch._C._cuda_hasPrimaryContext(0)
    """
    file = rows.parent / f"program{len(options)}.py"
    file.write_text(textwrap.dedent(program))
    subprocess.run([sys.executable, str(file)], check=True, timeout=100)
