"""`Checkpointer`: saves and restores a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from shardload.checkpoint.directory import CheckpointDirectory
from shardload.checkpoint.failures import cause_of, raise_ours
from shardload.checkpoint.group import RankGroup
from shardload.checkpoint.manifest import CheckpointManifest
from shardload.checkpoint.randomness import capture_random, restore_random, seed_new_rank
from shardload.checkpoint.report import MAX_SHARE, MIN_WARNED_SECONDS, told_restored, told_saved
from shardload.checkpoint.state import (
    LoaderLike,
    Paths,
    Stateful,
    Training,
    as_optimizers,
    check_loader_state,
    check_training,
)
from shardload.checkpoint.writer import CheckpointWriter, OwnerPlanner, RankFacts
from shardload.errors import FormatError, StorageError
from shardload.quantities import as_integer
from shardload.telemetry import CheckpointStats

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_log = logging.getLogger("shardload")


class _Pending(NamedTuple):
    """A save that a thread of torch's carries out."""

    step: int
    future: Future[Any]
    counted: threading.Event
    """Set when what follows the save has been done, too."""


class Checkpointer:
    """Saves model, optimizer, random state and place in the data together, and restores them on any number of ranks.

    ```python
    checkpointer = shardload.Checkpointer("checkpoints/", model=model, optimizer=optimizer, loader=loader)
    step = checkpointer.restore() or 0              # the newest that is whole; None if there is none
    for batch in loader:
        ...                                         # one training step
        step += 1
        if step % 1000 == 0:
            checkpointer.save(step)
    checkpointer.close()
    ```

    Everything but making one is a collective: all ranks of the default process group call it in the same order. The directory
    is one that all of them see. Use it from one thread.

    What a checkpoint says was trained on is what the loader had given out when `save` was called, so call it after an optimizer
    step, and not between the steps of an accumulated gradient, which is not saved.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        loader: LoaderLike | None = None,
        extra: Mapping[str, Stateful] | None = None,
        keep: int | None = 3,
        asynchronous: bool = False,
        timeout_seconds: float = 1800.0,
    ) -> None:
        """Describes the run. Opens nothing and talks to no other rank.

        Args:
            directory: where checkpoints are, each under `step-N`; made by the first save.
            model: plain or wrapped by DDP, FSDP2 or `torch.compile`; it may be another one at the restore.
            optimizer: of its parameters; or several.
            loader: a `ShardLoader`, `ShardSampler` or batch sampler.
            extra: further objects with `state_dict` and `load_state_dict`, by name: schedulers, scalers, other models. The same on
                all ranks, or sharded.
            keep: how many of the newest are kept; older ones are removed once a newer one is published. None for all.
            asynchronous: copy the state to host memory in `save`, and write it in a thread while the training goes on.
            timeout_seconds: the longest that one rank waits for another: more than the slowest one writes for.

        Raises:
            TypeError: something given has no such state.
            ValueError: a number that cannot be.
        """
        optimizers, extra = as_optimizers(optimizer), dict(extra or {})
        check_training(model, optimizers, loader, extra)
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be above 0, not {timeout_seconds!r}")
        self._training = Training(model, optimizers, loader, extra)
        self._directory = CheckpointDirectory(directory)
        self._keep = None if keep is None else as_integer(keep, "keep", 1)
        self._asynchronous = bool(asynchronous)
        self._timeout_seconds = float(timeout_seconds)
        self._group: RankGroup | None = None
        self._pending: _Pending | None = None
        self._known: int | None = None
        self._stats, self._lock = CheckpointStats(), threading.Lock()
        self._since = self._last_end = time.perf_counter()

    def save(self, step: int, loader_state: Mapping[str, str] | None = None) -> None:
        """Saves the run as it is now; does nothing if this step was restored or saved last.

        If asynchronous it returns when the state is copied; it waits for the save before, if that is still under way.

        Args:
            step: optimizer steps done, which names the checkpoint.
            loader_state: of the loader, where something between it and the training looks ahead: `loader.state_at(n)`. None for
                `loader.state_dict()`.

        Raises:
            StorageError: it could not be written, or the one before could not; nothing was published then.
            StateMismatchError: the ranks are at different places, or the directory has checkpoints of another run.
            ValueError: the step lies before the one restored or saved last.
        """
        start = time.perf_counter()
        step = as_integer(step, "step")
        try:
            self._settle()
            if self._known is not None and step <= self._known:
                if step == self._known:
                    _log.info("step %d is in a checkpoint already", step)
                    return
                raise ValueError(f"step {step} was to be saved after step {self._known}; steps grow")
            self._save(step, start, loader_state)
        finally:
            self._count_blocked(start)

    def restore(
        self,
        step: int | None = None,
        *,
        skip_samples: int = 0,
        reseed: int | None = None,
        reweigh: bool = False,
        verify: bool = True,
    ) -> int | None:
        """Takes up a checkpoint, at any number of ranks; the loader goes on with exactly the next samples.

        Each rank's random state is its own where there were as many ranks. Else ranks that were there go on with theirs, and new
        ones have generators that were equal on all ranks as they were, and others seeded from those of rank 0 and their number.

        Args:
            step: which; None for the newest one that is whole. Checkpoints of later steps are set aside by the next save.
            skip_samples: samples of the global order to pass over from there.
            reseed: another seed for the order from there.
            reweigh: go on with the weights of the loader's `Mixture` where the checkpoint has others.
            verify: compare all files with their sums, each rank a part; else only their sizes.

        Returns:
            The step, or None where the directory has no checkpoint.

        Raises:
            FormatError: all that there are, or the one asked for, are damaged.
            StorageError: there is none of the step asked for, or it cannot be read.
            StateMismatchError: it is of another model, optimizer, dataset or order.
        """
        self._settle()
        start, group = time.perf_counter(), self._ranks()
        manifest = self._choose(None if step is None else as_integer(step, "step"), verify)
        if manifest is None:
            return None
        checked = time.perf_counter()
        changes = {"skip_samples": skip_samples, "reseed": reseed} | ({"reweigh": True} if reweigh else {})
        self._load(manifest, changes)
        self._known = manifest.step
        end = time.perf_counter()
        # A restore is none of the time that the 5 % are of.
        self._since += end - start
        self._last_end = end
        self._stats.restored_bytes = manifest.num_bytes
        self._stats.check_seconds, self._stats.restore_seconds = checked - start, end - start
        if group.leads:
            _log.info("%s", told_restored(self._directory.path_of(manifest.step), manifest, self._stats))
        return manifest.step

    def wait(self) -> None:
        """Waits for a save under way.

        Raises:
            StorageError: it could not be written; nothing was published.
        """
        start = time.perf_counter()
        try:
            self._settle()
        finally:
            self._count_blocked(start)

    def stats(self) -> CheckpointStats:
        """Returns counters and times since this was made."""
        with self._lock:
            return dataclasses.replace(self._stats)

    def close(self) -> None:
        """Waits for a save under way and leaves the process group that was formed for checkpoints.

        Call it before `destroy_process_group`, on which a save under way would fail.
        """
        try:
            self.wait()
        finally:
            group, self._group = self._group, None
            if group is not None:
                group.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ranks(self) -> RankGroup:
        if self._group is None or not self._group.is_current:
            self._group = RankGroup(self._timeout_seconds)
        if self._group.handle is None:
            # What torch says of a single process, which is nothing to be warned of; its thread says it, too.
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit", UserWarning)
        return self._group

    def _save(self, step: int, start: float, loader_state: Mapping[str, str] | None) -> None:
        group, loader = self._ranks(), self._training.loader
        if loader is not None:
            loader_state = check_loader_state(loader.state_dict() if loader_state is None else loader_state)
        elif loader_state is not None:
            raise ValueError("loader_state was given to a checkpointer without a loader")
        random = capture_random()
        digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in random.items()}
        state = self._training.capture(loader_state) | {"random": {f"rank-{group.rank}": json.dumps(random)}}
        own = self._training.own_keys(state)
        facts = RankFacts(step, json.dumps(loader_state or "", sort_keys=True), digests, own)
        writer = CheckpointWriter(self._directory, facts, self._known, self._keep)
        options: dict[str, Any] = {"storage_writer": writer, "planner": OwnerPlanner(), "process_group": group.handle}
        if self._asynchronous:
            future: Any = async_save(state, **options)
            self._pending = pending = _Pending(step, future, threading.Event())
            blocked = time.perf_counter() - start

            def count(done: Future[Any]) -> None:
                try:
                    self._end_save(writer, done.exception(), blocked)
                finally:
                    pending.counted.set()

            # At once if it is written already.
            future.add_done_callback(count)
            return
        try:
            save(state, **options)
        except BaseException as error:
            self._end_save(writer, error, 0.0)
            raise_ours(error, f"step {step} was not saved")
        self._known = step
        self._end_save(writer, None, time.perf_counter() - start)

    def _end_save(self, writer: CheckpointWriter, error: BaseException | None, blocked: float) -> None:
        """Counts a save and tells of it; also called by a thread of torch's."""
        now = time.perf_counter()
        with self._lock:
            self._stats.num_bytes += writer.written.num_bytes
            self._stats.write_seconds += writer.written.seconds
            self._stats.num_saved += error is None
            self._stats.num_failed += error is not None
            interval, self._last_end = now - self._last_end, now
        if error is not None:
            writer.abandon()
            _log.error("a checkpoint in %s was not saved: %s", self._directory.path, cause_of(error))
        elif writer.saved is not None:
            share = blocked / interval if interval > 0 else 0.0
            level = logging.WARNING if share > MAX_SHARE and blocked >= MIN_WARNED_SECONDS else logging.INFO
            _log.log(
                level,
                "%s",
                told_saved(self._directory.path_of(writer.saved.manifest.step), writer.saved, blocked, share),
            )

    def _settle(self) -> None:
        """Waits for a save under way."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            try:
                pending.future.result(self._timeout_seconds)
            finally:
                if pending.future.done():
                    pending.counted.wait(self._timeout_seconds)
                else:
                    # It still writes, and talks to the other ranks: nothing else may before it has ended.
                    self._pending = pending
        except BaseException as error:
            raise_ours(error, f"step {pending.step} was not saved")
        self._known = pending.step

    def _count_blocked(self, start: float) -> None:
        now = time.perf_counter()
        with self._lock:
            self._stats.blocked_seconds += now - start
            self._stats.elapsed_seconds = now - self._since

    def _choose(self, step: int | None, verify: bool) -> CheckpointManifest | None:
        """Returns the manifest of the checkpoint to restore, the same on all ranks; None where there is none."""
        group, directory = self._ranks(), self._directory
        listed = group.agreed(lambda: directory.listed() if group.leads else ([], []))
        steps, unfinished = group.broadcast(listed)
        if step is not None and step not in steps:
            raise StorageError(f"{directory.path} has no checkpoint of step {step}; it has {steps[:20] or 'none'}")
        if unfinished and step is None:
            self._warn(
                f"{directory.path}: the checkpoint of step {unfinished[-1]} was never finished, and is passed over"
            )
        for one in steps if step is None else [step]:
            manifest, damage = group.broadcast(_read_manifest(directory, one) if group.leads else (None, ""))
            if manifest is not None:
                mine = directory.find_damage(one, manifest.files[group.rank :: group.size], sums=verify)
                damage = next(filter(None, group.gather(mine)), "")
            if manifest is not None and not damage:
                return manifest
            if step is not None:
                raise FormatError(f"the checkpoint of step {step} is damaged: {damage}")
            self._warn(f"the checkpoint of step {one} is damaged, and is passed over: {damage}")
        if steps:
            raise FormatError(
                f"{directory.path}: all {len(steps)} checkpoints are damaged; move them away to start anew"
            )
        return None

    def _load(self, manifest: CheckpointManifest, changes: dict[str, Any]) -> None:
        group, training = self._ranks(), self._training
        reader = FileSystemReader(self._directory.path_of(manifest.step))
        metadata = reader.read_metadata()
        saved: Paths = frozenset(tuple(path) for path in metadata.planner_data.values())
        tensors = {key: value for key, value in metadata.state_dict_metadata.items() if hasattr(value, "size")}
        options: dict[str, Any] = {"storage_reader": reader, "process_group": group.handle}
        here = f"rank-{group.rank if group.rank < manifest.num_ranks else 0}"
        shapes = {key: tuple(value.size) for key, value in tensors.items()}
        try:
            with training.unstepped_after_failure():
                small, state = group.agreed(
                    lambda: (training.loader_template(saved), training.templates(saved, shapes))
                )
                small |= {"random": {here: ""}, "optimizer": training.group_templates(saved)}
                load(small, **options)
                # What may be of something else comes first, while nothing has changed.
                group.agreed(lambda: training.compare_groups(state, small["optimizer"]))
                if (loader := training.loader) is not None:
                    group.agreed(lambda: loader.load_state_dict(small["loader"], **changes))
                # Of an optimizer's state what is not in the checkpoint is taken out again; all else was compared.
                load(state, planner=DefaultLoadPlanner(allow_partial_load=True), **options)
        except CheckpointException as error:
            raise_ours(error, f"step {manifest.step} was not restored")
        training.take_up(state, saved)
        random = json.loads(small["random"][here])
        if group.rank < manifest.num_ranks:
            restore_random(random)
        else:
            seed_new_rank(random, manifest.equal_random, group.rank)

    def _warn(self, message: str) -> None:
        if self._ranks().leads:
            warnings.warn(message, UserWarning, stacklevel=4)


def _read_manifest(directory: CheckpointDirectory, step: int) -> tuple[CheckpointManifest | None, str]:
    try:
        return directory.read_manifest(step), ""
    except (FormatError, StorageError) as error:
        return None, str(error)
