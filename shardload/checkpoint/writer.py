"""What torch's distributed checkpoint writes through: files that are summed as they are written, and published as one."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from shardload.checkpoint.directory import CheckpointDirectory
from shardload.checkpoint.manifest import CheckpointManifest, WrittenFile
from shardload.checkpoint.sums import Crc32c
from shardload.errors import StateMismatchError
from shardload.storage import FileWriter, Operations


class RankFacts(NamedTuple):
    """What each rank tells the leading one beforehand."""

    step: int
    loader: str
    """State of the loader; empty without one."""
    random: Mapping[str, str]
    """A digest of the state of each generator."""
    own: frozenset[str]
    """Keys of the model that the ranks may have differently, such as running statistics."""


class Target(NamedTuple):
    """What the leading rank tells each one to write to."""

    prefix: str
    """Of its file names, where torch's writer looks for it."""
    folder: str
    """The hidden directory."""


class Written(NamedTuple):
    """What one rank has written."""

    files: tuple[WrittenFile, ...]
    seconds: float
    """From the first byte until all are on the device."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)


class Saved(NamedTuple):
    """A checkpoint that was published."""

    manifest: CheckpointManifest
    writers: tuple[Written, ...]
    """The ranks that wrote."""
    num_removed: int
    """Older checkpoints that were removed for it."""


class CheckpointWriter(FileSystemWriter):
    """Writes one checkpoint: one file a rank, front to back, into a hidden directory that gets its name at the end.

    The leading rank compares what the ranks tell it before anything is written; what it raises all ranks raise.
    """

    def __init__(self, directory: CheckpointDirectory, facts: RankFacts, known: int | None, keep: int | None) -> None:
        """Describes the writing.

        Args:
            directory: where.
            facts: of this rank.
            known: the step that this run has restored or saved last.
            keep: checkpoints that are kept; None for all.
        """
        # Files are synced as they are closed, by our own operations.
        super().__init__(directory.path, single_file_per_rank=True, sync_files=False)
        self.fs = self._files = SummedFiles(directory.operations)
        self.written = Written((), 0.0)
        """What this rank has written."""
        self.saved: Saved | None = None
        """On the leading rank, once it is published."""
        self._directory, self._facts, self._known, self._keep = directory, facts, known, keep
        self._hidden: str | None = None
        self._equal_random: tuple[str, ...] = ()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Adds what this rank tells the leading one."""
        return dataclasses.replace(plan, storage_data=self._facts)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Compares the ranks and makes the directory; on the leading rank."""
        self._equal_random = compare_ranks([plan.storage_data for plan in plans])
        self._hidden = self._directory.begin(self._facts.step, self._known)
        targets = (Target(f"__{rank}_", self._hidden) for rank in range(len(plans)))
        return [dataclasses.replace(plan, storage_data=target) for plan, target in zip(plans, targets, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's file."""
        self.path = Path(self._directory.path) / plan.storage_data.folder
        start, results = time.perf_counter(), []
        if plan.items:
            results += super().write_data(plan, planner).wait()
        self.written = Written(tuple(self._files.written.values()), time.perf_counter() - start)
        # The sums ride with torch's results to the leading rank, which takes them out again.
        results.append(WriteResult(MetadataIndex("shardload"), 0, self.written))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publishes the checkpoint, then removes old ones; on the leading rank."""
        writers = tuple(one.storage_data for rank in results for one in rank if isinstance(one.storage_data, Written))
        theirs = [[one for one in rank if not isinstance(one.storage_data, Written)] for rank in results]
        before = set(self._files.written)
        super().finish(metadata, theirs)
        files = [file for writer in writers for file in writer.files]
        files += [file for name, file in self._files.written.items() if name not in before]
        manifest = CheckpointManifest(self._facts.step, len(results), self._equal_random, tuple(files))
        assert self._hidden is not None
        self._directory.publish(self._hidden, manifest, self._known)
        self._hidden = None
        self.saved = Saved(manifest, tuple(one for one in writers if one.files), self._directory.prune(self._keep))

    def abandon(self) -> None:
        """Tidies up after a failure, on the leading rank."""
        hidden, self._hidden = self._hidden, None
        self._directory.abandon(hidden)


def compare_ranks(facts: list[RankFacts]) -> tuple[str, ...]:
    """Returns the generators whose state is the same on all ranks.

    Raises:
        StateMismatchError: the ranks are at different places.
    """
    first = facts[0]
    for rank, one in enumerate(facts):
        if one.step != first.step:
            raise StateMismatchError(f"rank 0 saves step {first.step}, rank {rank} step {one.step}")
        if one.loader != first.loader:
            raise StateMismatchError(
                f"the loader of rank {rank} is at another place than that of rank 0 ({one.loader:.400} and {first.loader:.400}): "
                "save on all ranks after the same batch"
            )
    return tuple(name for name in first.random if all(one.random.get(name) == first.random[name] for one in facts))


class OwnerPlanner(DefaultSavePlanner):
    """Shares out what is the same on several ranks, so that each writes a part.

    Parameters and optimizer state of replicas are the same everywhere, and torch's plan balances them. Whatever else several
    ranks have comes from the lowest one, as it would from a plain `torch.save`: DDP hands out the buffers of rank 0, too.
    """

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Leaves to the lowest rank what may differ, and the rest to torch; on the leading rank."""
        seen: set[MetadataIndex] = set()
        plans = []
        for plan in all_plans:
            own = plan.storage_data.own
            items = [item for item in plan.items if item.index not in seen or _is_balanced(item.index.fqn, own)]
            seen.update(item.index for item in items)
            plans.append(dataclasses.replace(plan, items=items))
        return super().create_global_plan(plans)


def _is_balanced(key: str, own: frozenset[str]) -> bool:
    return key.startswith("optimizer.") or (key.startswith("model.") and key not in own)


class SummedFiles(FileSystem):
    """Files of torch's checkpoint: written by our operations, on the device when closed, and summed."""

    def __init__(self, operations: Operations) -> None:
        self.written: dict[str, WrittenFile] = {}
        """By name."""
        self._operations = operations

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Opens a new file for writing, or an old one for reading."""
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        summed = Crc32c()
        with FileWriter(os.fspath(path), self._operations, summed) as writer:
            yield _Stream(writer)
            writer.finish()
        name = os.path.basename(path)
        self.written[name] = WrittenFile(name, writer.num_bytes, summed.value)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Renames a file."""
        self._operations.replace(os.fspath(path), os.fspath(new_path))
        file = self.written.pop(os.path.basename(path))
        name = os.path.basename(new_path)
        self.written[name] = WrittenFile(name, file.num_bytes, file.crc32c)


class _Stream:
    """A file as torch writes to it; `FileWriter` closes it."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Appends bytes."""
        self._writer.write(data)
        return len(data)

    def tell(self) -> int:
        """Returns the bytes written so far."""
        return self._writer.num_bytes

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
