"""Arms of P4: packaged loaders, each as its documentation advises for random access from a local disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset, RandomSampler

from bench.own_arms import listed, stacked, torch_loader
from bench.peer_form import TOKENS, Arm, Samples


def spawned(workers: int) -> dict[str, Any]:
    """Returns what a DataLoader needs if the loader below it has threads of its own, which are not there after a fork."""
    return {"multiprocessing_context": "spawn"} if workers else {}


class MosaicStreaming(Arm):
    """StreamingDataset, a DataLoader over it."""

    module = "streaming"
    order = "all samples, py1e"
    form = "mds"
    zstd = "whole shards, unpacked on disk at first use"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        from streaming import MDSWriter

        columns = {"value": f"ndarray:int32:{TOKENS}" if samples.kind == "tokens" else "bytes"}
        compression = None if samples.level is None else f"zstd:{samples.level}"
        with MDSWriter(
            out=target, columns=columns, compression=compression, size_limit=samples.shard_bytes()
        ) as writer:
            for value in samples.values():
                writer.write({"value": value})

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=target, shuffle=True, batch_size=samples.batch_size)
        return torch_loader(dataset, samples, workers, collate_fn=Column(samples.kind == "tokens"))


class Column:
    """Collates samples that are dicts of one value."""

    def __init__(self, tokens: bool) -> None:
        self._tokens = tokens

    def __call__(self, samples: list[dict[str, Any]]) -> Any:  # noqa: D102
        values = [sample["value"] for sample in samples]
        return torch.from_numpy(np.stack(values)) if self._tokens else values


def owned(values: list[Any]) -> list[bytes]:
    """Collates what may be views into a map, which workers cannot send."""
    return list(map(bytes, values))


class LitData(Arm):
    """StreamingDataset under StreamingDataLoader; tokens by the TokensLoader."""

    module = "litdata"
    order = "chunks, and within them"
    form = "litdata"
    zstd = "a frame a sample"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        from litdata import TokensLoader
        from litdata.streaming.writer import BinaryWriter

        settings: dict[str, Any] = {}
        if samples.level is not None:
            settings = {"compression": f"zstd:{samples.level}", "compression_level": "sample"}
        if samples.kind == "tokens":
            settings["item_loader"] = TokensLoader(block_size=TOKENS)
        writer = BinaryWriter(target, chunk_bytes=samples.shard_bytes(), **settings)
        for number, value in enumerate(samples.values()):
            writer.add_item(number, torch.from_numpy(value) if samples.kind == "tokens" else value)
        writer.done()
        writer.merge()

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

        tokens = samples.kind == "tokens"
        dataset = StreamingDataset(target, shuffle=True, item_loader=TokensLoader(TOKENS) if tokens else None)
        options: dict[str, Any] = {} if tokens else {"collate_fn": owned}
        options |= {"num_workers": workers, "persistent_workers": workers > 0}
        return StreamingDataLoader(dataset, batch_size=samples.batch_size, **options)


class PlainColumn:
    """Takes the column of a batch: an array, which becomes a tensor without a copy, or a list of bytes."""

    def __init__(self, tokens: bool) -> None:
        self._tokens = tokens

    def __call__(self, batch: dict[str, Any]) -> Any:  # noqa: D102
        return torch.from_numpy(batch["value"]) if self._tokens else batch["value"]


class HuggingFace(Arm):
    """datasets, memory-mapped Arrow; a BatchSampler, so that one batch is one query."""

    module = "datasets"
    form = "arrow"
    collate: Any = PlainColumn

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset(samples.table()).save_to_disk(target)

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        import datasets

        dataset = self.formatted(datasets.load_from_disk(target), samples)
        batches = BatchSampler(RandomSampler(dataset), samples.batch_size, drop_last=False)
        collate = self.collate(samples.kind == "tokens")
        return torch_loader(dataset, samples, workers, sampler=batches, batch_size=None, collate_fn=collate)

    def formatted(self, dataset: Any, samples: Samples) -> Any:
        """Returns the dataset in its fastest format for a kind: its torch format stacks a tensor a sample."""
        return dataset.with_format("numpy", dtype=np.int32) if samples.kind == "tokens" else dataset


class ArrowColumn:
    """Turns the column of an Arrow table or batch into a tensor or a list of bytes."""

    def __init__(self, tokens: bool) -> None:
        self._tokens = tokens

    def __call__(self, table: Any) -> Any:  # noqa: D102
        column = table["value"]
        if not self._tokens:
            return column.to_pylist()
        column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, TOKENS))


class HuggingFaceArrow(HuggingFace):
    """The same with its Arrow format, whose tables a user turns into tensors."""

    by_hand = True
    collate = ArrowColumn

    def formatted(self, dataset: Any, samples: Samples) -> Any:  # noqa: D102
        return dataset.with_format("arrow")


class LanceRows(Dataset[Any]):
    """What lance.torch.data.SafeLanceDataset is, but for Arrow instead of Python values."""

    def __init__(self, target: str) -> None:
        import lance

        self._target, self._num_rows, self._dataset = target, lance.dataset(target).count_rows(), None

    def __len__(self) -> int:
        return int(self._num_rows)

    def __getitems__(self, indices: list[int]) -> Any:
        if self._dataset is None:
            import lance

            self._dataset = lance.dataset(self._target)
        return self._dataset.take(indices)  # type: ignore[attr-defined]


class Lance(Arm):
    """pylance `take`, a batch a call."""

    module = "lance"
    form = "lance"
    zstd = "its own encoding"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        import lance
        import pyarrow as pa

        table = Samples(samples.folder, samples.kind, None).table()
        if samples.level is not None:
            metadata = {"lance-encoding:compression": "zstd", "lance-encoding:compression-level": str(samples.level)}
            table = table.cast(pa.schema([table.schema.field(0).with_metadata(metadata)]))
        lance.write_dataset(table, target)

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        collate = ArrowColumn(samples.kind == "tokens")
        return torch_loader(LanceRows(target), samples, workers, shuffle=True, collate_fn=collate, **spawned(workers))


GRAIN_THREADS, GRAIN_BUFFER = 2, 4
"""Reading threads, one a core, and batches they are ahead. No worse on 2 cores, from memory, than grain's 16 and 500."""


class GrainEpochs:
    """Epochs of grain. With workers one iterator that never ends, since each new one would start them anew."""

    def __init__(self, samples: Samples, target: str, workers: int) -> None:
        import grain

        source = grain.sources.ArrayRecordDataSource(array_records(target))
        batch_fn = stacked if samples.kind == "tokens" else list
        self._epoch = grain.MapDataset.source(source).shuffle(seed=0).batch(samples.batch_size, batch_fn=batch_fn)
        self._workers, self._num_epochs = workers, 0
        self._endless: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        import grain

        options = grain.ReadOptions(num_threads=GRAIN_THREADS, prefetch_buffer_size=GRAIN_BUFFER)
        if not self._workers:
            self._num_epochs += 1
            return iter(self._epoch.seed(self._num_epochs).to_iter_dataset(options))
        if self._endless is None:
            batches = self._epoch.repeat().to_iter_dataset(options)
            workers = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers)
            self._endless = iter(batches.mp_prefetch(workers))
        return itertools.islice(self._endless, len(self._epoch))


def array_records(target: str) -> list[str]:
    return sorted(str(path) for path in Path(target).iterdir())


class ArrayRecord(Arm):
    """ArrayRecordDataSource under a DataLoader, which reads a batch a call by `__getitems__`."""

    module = "array_record.python.array_record_data_source"
    form = "arrayrecord"
    zstd = "a chunk a sample"

    def write(self, samples: Samples, target: str) -> None:  # noqa: D102
        from array_record.python.array_record_module import ArrayRecordWriter

        os.mkdir(target)
        options = "group_size:1," + ("uncompressed" if samples.level is None else f"zstd:{samples.level}")
        writer = ArrayRecordWriter(os.path.join(target, "samples.arrayrecord"), options)
        for piece in samples.pieces():
            writer.write(piece)
        writer.close()

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        source = ArrayRecordDataSource(array_records(target))
        collate = stacked if samples.kind == "tokens" else listed
        return torch_loader(source, samples, workers, shuffle=True, collate_fn=collate, **spawned(workers))


class Grain(ArrayRecord):
    """grain's MapDataset with its reading threads, over ArrayRecord."""

    module = "grain"

    def lead(self, workers: int) -> int:  # noqa: D102
        # What the workers read ahead of an epoch while other arms run.
        return workers * (GRAIN_BUFFER + GRAIN_THREADS + 1)

    def loader(self, samples: Samples, target: str, workers: int) -> Iterable[Any]:  # noqa: D102
        return GrainEpochs(samples, target, workers)


ARMS: dict[str, Arm] = {
    "MosaicML streaming": MosaicStreaming(),
    "litData": LitData(),
    "datasets": HuggingFace(),
    "datasets, Arrow": HuggingFaceArrow(),
    "Lance": Lance(),
    "grain + ArrayRecord": Grain(),
    "ArrayRecord + DataLoader": ArrayRecord(),
}
