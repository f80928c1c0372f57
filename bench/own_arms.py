"""Arms of P4 that need only our own requirements: shardload itself, what a user writes by hand, and webdataset."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.peer_form import SHARD_BYTES, TOKENS, Arm, Samples


def listed(values: list[Any]) -> list[Any]:
    """Collates bytes: leaves the list as it is."""
    return values


def stacked(rows: list[bytes]) -> torch.Tensor:
    """Collates the bytes of rows of tokens: one copy of all."""
    return torch.frombuffer(bytearray().join(rows), dtype=torch.int32).view(-1, TOKENS)


def unchanged(data: bytes) -> bytes:
    return data


def unpacker(samples: Samples) -> Callable[[bytes], bytes]:
    """Returns what a user calls on each stored sample."""
    if samples.level is None:
        return unchanged
    import zstandard

    return zstandard.ZstdDecompressor().decompress


def torch_loader(dataset: Any, samples: Samples, workers: int, **options: Any) -> DataLoader[Any]:
    """Returns a DataLoader whose workers live on from epoch to epoch."""
    options.setdefault("batch_size", samples.batch_size)
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)


class Path2(Arm):
    """ShardLoader."""

    module = "shardload"
    settings = (0,)
    form = "shardload"
    zstd = "a frame a sample, dictionary"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        import shardload

        kind = f"int32[{TOKENS}]" if samples.kind == "tokens" else "bytes"
        compression = "none" if samples.level is None else f"zstd:{samples.level}"
        with shardload.ShardWriter(target, {"value": kind}, compression=compression, shard_size=SHARD_BYTES) as writer:
            for value in samples.values():
                writer.write({"value": value})

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        import shardload

        loader = shardload.ShardLoader(shardload.open(target), samples.batch_size, shuffle=True, drop_last=False)
        return Values(loader)


class Path1(Path2):
    """ShardSampler under a DataLoader, without workers."""

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        import shardload

        dataset = shardload.open(target)
        batches = shardload.ShardSampler(dataset, shuffle=True).batch_sampler(samples.batch_size)
        return Values(DataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate, num_workers=workers))


class Values:
    """The one field of each batch."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Any:
        return (batch["value"] for batch in self._loader)


class Mapped(Dataset[Any]):
    """np.memmap of tokens, or a map of frames, one copy a sample."""

    def __init__(self, samples: Samples, target: str) -> None:
        self.tokens = samples.kind == "tokens"
        self.unpack = unpacker(samples)
        path = Path(target, "frames.bin")
        if self.tokens:
            self.rows = np.memmap(path, dtype=np.int32, mode="r").reshape(-1, TOKENS)
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bounds = np.load(Path(target, "bounds.npy")).tolist()

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Any:
        if self.tokens:
            return self.rows[index].copy()
        return self.unpack(self.map[self.bounds[index] : self.bounds[index + 1]])


class MappedBatches(Mapped):
    """The same, and tokens by one gather a batch."""

    def __getitems__(self, indices: list[int]) -> Any:
        if self.tokens:
            return np.take(self.rows, indices, axis=0)
        data, bounds, unpack = self.map, self.bounds, self.unpack
        return [unpack(data[bounds[index] : bounds[index + 1]]) for index in indices]


class Memmap(Arm):
    """np.memmap map-style."""

    by_hand = True
    form = "memmap"
    zstd = "a frame a sample"
    dataset: type[Mapped] = Mapped

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        os.mkdir(target)
        bounds = [0]
        with open(Path(target, "frames.bin"), "wb") as file:
            for frame in samples.frames():
                file.write(frame)
                bounds.append(bounds[-1] + len(frame))
        np.save(Path(target, "bounds.npy"), np.array(bounds))

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        collate: Any = listed
        if samples.kind == "tokens":
            collate = torch.from_numpy if self.dataset is MappedBatches else None
        return torch_loader(self.dataset(samples, target), samples, workers, shuffle=True, collate_fn=collate)


class MemmapBatches(Memmap):
    """np.memmap with `__getitems__`."""

    dataset = MappedBatches


class FileDataset(Dataset[Any]):
    """One file a sample, read whole."""

    def __init__(self, samples: Samples, target: str) -> None:
        self.paths = sorted(str(path) for path in Path(target).glob("*/*"))
        self.unpack = unpacker(samples)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        with open(self.paths[index], "rb", buffering=0) as file:
            return self.unpack(file.read())


class Files(Arm):
    """One file a sample, 1,000 a folder."""

    by_hand = True
    form = "files"
    zstd = "a frame a sample"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        for number, frame in enumerate(samples.frames()):
            folder = Path(target, f"{number // 1000:05d}")
            if number % 1000 == 0:
                folder.mkdir(parents=True)
            (folder / f"{number:09d}").write_bytes(frame)

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        collate = stacked if samples.kind == "tokens" else listed
        return torch_loader(FileDataset(samples, target), samples, workers, shuffle=True, collate_fn=collate)


class WebDataset(Arm):
    """Tars of raw members, shuffled by tar and in its buffer, batched in the workers."""

    module = "webdataset"
    order = "a buffer of 1,000, tars"
    form = "tars"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        from webdataset import ShardWriter

        os.mkdir(target)
        with ShardWriter(f"{target}/%06d.tar", maxsize=samples.shard_bytes(), verbose=0) as writer:
            for number, frame in enumerate(samples.frames()):
                writer.write({"__key__": f"{number:09d}", "bin": frame})

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        import webdataset

        tars = sorted(str(path) for path in Path(target).iterdir())
        dataset = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000)
        dataset = dataset.map(Member(unpacker(samples)))
        collate = stacked if samples.kind == "tokens" else listed
        dataset = dataset.batched(samples.batch_size, collation_fn=collate, partial=True)
        return torch_loader(dataset, samples, workers, batch_size=None)


class Member:
    """Takes the data of a sample's one member."""

    def __init__(self, unpack: Callable[[bytes], bytes]) -> None:
        self._unpack = unpack

    def __call__(self, sample: dict[str, Any]) -> bytes:  # noqa: D102
        return self._unpack(sample["bin"])


class WebDatasetByHand(WebDataset):
    """For zstd, which webdataset leaves to a function of the user's."""

    by_hand = True
    zstd = "a frame a member"
    only_zstd = True


ARMS: dict[str, Arm] = {
    "path 2": Path2(),
    "path 1": Path1(),
    "np.memmap": Memmap(),
    "np.memmap, __getitems__": MemmapBatches(),
    "one file a sample": Files(),
    "webdataset": WebDataset(),
    "webdataset + zstandard": WebDatasetByHand(),
}
