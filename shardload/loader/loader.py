"""`ShardLoader`: batches in the one global order, read ahead of the training loop."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shardload.codecs.images import ImageDecode
from shardload.errors import LoaderClosedError
from shardload.loader.audit import Delivered, audit_ids, check_ranks
from shardload.loader.epoch_run import EpochRun
from shardload.loader.grouped import BatchTokens, grouped
from shardload.loader.iteration import Iteration
from shardload.loader.progress import Progress
from shardload.loader.ranks import RankChoice, one_of
from shardload.loader.sequences import PackedSequences
from shardload.loader.stand_ins import OnError, check_policy
from shardload.order.cursor import Partition, Tail
from shardload.order.exclusion import Excludes
from shardload.order.shuffle import Shuffle, check_shuffle
from shardload.quantities import as_integer
from shardload.reader.source import SampleSource
from shardload.telemetry import LoaderStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Int64 = NDArray[np.int64]


class ShardLoader:
    """Gives batches of a dataset in a true global order, read ahead by a thread into reused buffers.

    ```python
    loader = shardload.ShardLoader(shardload.open("out/"), batch_size=256, shuffle=True)
    for batch in loader:            # field -> tensor of shape (batch, *field_shape), or list
        ...
    ```

    One `iter` is one epoch; epochs follow each other without `set_epoch`. A batch is yours until you drop it: its
    memory is reused only when the last tensor that shares it has died. A second iterator closes the first. Nothing is
    opened or started before the first `iter`. Use a loader from one thread.
    """

    _closed = False
    _run_log: str | None = None
    _iteration: weakref.ref[Iteration] | None = None

    def __init__(
        self,
        dataset: SampleSource | PackedSequences,
        batch_size: int | None = None,
        *,
        shuffle: Shuffle,
        exclude: Excludes = (),
        weights: ArrayLike | None = None,
        batch_tokens: BatchTokens | None = None,
        lookahead: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: DeviceMesh | None = None,
        mesh_dims: str | Sequence[str] | None = None,
        process_group: ProcessGroup | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        epochs: int | None = None,
        fields: Sequence[str] | None = None,
        decode: Mapping[str, ImageDecode] | None = None,
        transform: Callable[..., Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
        pin_memory: bool | None = None,
        prefetch_batches: int | None = None,
        prefetch_bytes: int | str | None = None,
        num_threads: int | None = None,
        num_processes: int = 0,
        helper_process: bool | None = None,
        reproducible: bool = False,
        on_error: OnError = "raise",
        max_faults: int | None = None,
        with_ids: bool = False,
        reuse: bool = False,
    ) -> None:
        """Describes the loading.

        Args:
            dataset: what to load from.
            batch_size: samples a batch and rank; sequences of `PackedSequences`; beside batch_tokens the most samples of a batch.
            shuffle: True: a new permutation of all samples each epoch; False: the order of the dataset. "block", or a
                `BlockShuffle` of other sizes: blocks of neighbours, mixed within a window, for storage whose random reads are dear.
                That is no true shuffle (`shardload shuffle-report` measures it), and states name it.
            exclude: samples that come in no epoch: ids, or an `Exclude` of ids and positions. A state that was saved without it can
                be loaded, and the run goes on from its place without those samples. To leave out more later, give a list of all
                `Exclude`s, the new one last: each has the positions of a run with those before it.
            weights: numbers from 0, of shape (samples,), that count beside each other: an epoch then has as many samples as
                the dataset, each drawn by weight and with replacement, from seed, epoch and position alone. With shuffle=True.
            batch_tokens: the most items of a batch, padding included (its samples times the longest of them), as a number or as
                (field, number): samples of similar length then share a batch, all ranks have equally many batches, and each sample
                comes once. Items are those of a ragged field, or bytes of another one. What the batches are does not depend on
                the ranks.
            lookahead: samples of the order that are put into such batches at a time, 4,096 unless given.
            seed: seed of the order and of `rng`, from 0 to 2^64 - 1; equal on all ranks.
            num_replicas: ranks that share the order, with `rank`. None for both: those of `mesh`, else of `process_group`,
                else of the default process group if there is one at the first `iter`, else RANK and WORLD_SIZE, else a
                single process.
            rank: this process; None beside `num_replicas` for a loader that only tells lengths and states.
            world_size: another name for num_replicas.
            mesh: a device mesh; processes that differ only in its other dimensions (tensor-, pipeline-, context-parallel)
                get the same batches.
            mesh_dims: name of the mesh's data-parallel dimension, or names, such as the two of a hybrid-sharded mesh.
            process_group: the process group of the replicas.
            tail: what becomes of the end of an epoch: `drop`, `short`, `pad`, `mask` or `carry` (see `Partition`). None: drop
                when shuffling, short when not; with several replicas and no shuffling it must be named. With `mask` all
                batches are full, and their bool tensor `_valid` of shape (batch,) is False for fillers.
            drop_last: torch's word: True is `drop`, False is `short` with one replica and `pad` with several.
            epochs: how many there are in the run; an `iter` after the last one is an error. None for no limit.
            fields: names of the fields to read; None for those the dataset was opened with.
            decode: `ImageDecode` by name of a jpeg or png field: batches then hold uint8 tensors of shape (batch, 3, height,
                width), or lists of tensors where images differ in size. The threads that read decode. None for the dataset's.
            transform: called with each sample, a dict; with a parameter `rng` it gets a numpy generator that depends on
                seed, epoch and sample only. None for the dataset's own.
            batch_transform: called with each batch, in the prefetch thread; with a parameter `rng` it gets a numpy generator
                that depends on seed, epoch, place and rank only.
            collate_fn: makes batches of what was read (a sequence of dicts) or transformed (a list).
            dtypes: dtypes of tensors by field; else as stored, with uint16, uint32 and uint64 as int64.
            device: where tensors are delivered; None for host memory. To a CUDA device they are copied ahead, by the prefetch
                thread on a stream of its own, and the stream that is current in `next` waits for that, not the program;
                batches that wait take device memory. Unsigned integers are widened there.
            pin_memory: copy to a CUDA device from page-locked memory, or without one deliver host tensors in such; None: if the
                device is CUDA.
            prefetch_batches: most finished batches that wait; None for 2 to 32, by their size; 0 reads in the training loop's
                own thread.
            prefetch_bytes: most bytes that wait, 256 MiB unless given; one batch may always wait.
            num_threads: threads that read while batches are made of what was read before; None for one a core, but 4, and
                fewer where they would only wait for the interpreter (plain strings from memory); 0: the prefetch thread does
                both.
            num_processes: child processes that read, transform and collate; 0: the prefetch thread does. In them the global
                generators of Python, numpy and torch are seeded from seed, epoch and sample before each transform, so that
                transforms that draw from those give the same for any number of processes, ranks and resumes. They
                are spawned, so that transform and collate_fn must be picklable and the program needs its `__main__` guard;
                batches under way in them come on top of prefetch_bytes.
            helper_process: whether a child process reads and decodes in place of the threads, into memory that both share, so that
                a training loop which computes in Python waits less for batches: same order and batches, and your functions stay in
                this process. None: from when the training loop is seen to keep the interpreter to itself, until it no longer
                does; not on a single core, and not for byte strings of 16 KiB and more that are not decoded. Never with
                num_processes, prefetch_batches=0 or page-locked memory.
                `stats().num_helper_batches` tells.
            reproducible: refuse a transform, collate_fn or batch_transform that could draw from global generators of this
                process.
            on_error: what becomes of a sample that cannot be read or decoded, or whose transform fails or returns None:
                `raise` ends the run there; `substitute` takes another sample in its place, drawn by seed, epoch and sample;
                `mask` does the same and makes `_valid`, a bool tensor of shape (batch,), False there. The place counts as
                delivered, so that states, batches and the other ranks' samples stay as they are. Each is logged
                ("shardload", warning) as it is delivered, and counted in `stats().num_faults`.
            max_faults: most samples of one iteration that may be replaced; one more is a FaultLimitError. None for 100, or
                5 % of the samples delivered in it if that is more.
            with_ids: add int64 tensors `_sample_id`, `_position` and `_epoch` of shape (batch,); -1 for fillers. A stand-in
                has its own id, at the position of the sample that it replaces. Of packed sequences `_sample_id` is a list, of a
                tensor a sequence, and the others are the sequences'.
            reuse: take a batch's memory back when the next one is given, so that batches that are kept take no new memory but
                change under their holder. Only for loops that keep nothing of a batch. Tensors from a transform, a collate_fn,
                child processes, a CUDA device or with pin_memory=True are not meant: their memory is none of the loader's.

        Raises:
            ValueError: settings that contradict each other or give no batch.
        """
        group = grouped(dataset, batch_size, check_shuffle(shuffle), batch_tokens, lookahead, weights, exclude, seed)
        self.dataset, self.batch_size, self._plan = dataset, group.batch_size, group.plan
        self.device = None if device is None else torch.device(device)
        ranks = RankChoice(one_of(num_replicas, world_size), rank, mesh, mesh_dims, process_group)
        self._split = group.split(bool(shuffle), ranks, tail, drop_last)
        self._epochs = None if epochs is None else as_integer(epochs, "epochs", 1)
        self._progress = Progress(group.source.fingerprint, as_integer(seed, "seed"), group.orders)
        flags = {"with_valid": tail == "mask", "on_error": check_policy(on_error, max_faults), "with_ids": with_ids}
        made = fields, decode, transform, batch_transform, collate_fn, dtypes
        recipe = group.recipe(*made, num_processes > 0 if reproducible else None, flags)
        read = pin_memory, prefetch_batches, prefetch_bytes, num_threads, num_processes, helper_process, max_faults
        self._course = group.course(recipe, self.device, *read, reuse)

    def __iter__(self) -> Iterator[Any]:
        """Returns an iterator over the remainder of a loaded state, else over the next epoch not yet begun.

        Its first `next` begins the epoch: an iterator that is only made costs nothing.
        """
        if self._closed:
            raise LoaderClosedError("this loader is closed; make a new one")
        self._close_iteration()
        rank = self._split.fix_rank()
        partition = self._partition()
        self._progress.check(partition)
        if self._epochs is not None and self._progress.upcoming_epoch(partition) >= self._epochs:
            raise LoaderClosedError(
                f"the run was to have epochs={self._epochs}, and all of them were begun or delivered"
            )
        iteration = Iteration(self._course, EpochRun(self._progress, partition, rank, self._run_log))
        self._iteration = weakref.ref(iteration)
        return iteration

    def __len__(self) -> int:
        """Batches of the epoch under way or coming: those done in it and those left at the current batch size and ranks."""
        return self._progress.num_batches(self._partition())

    @property
    def remaining(self) -> int:
        """Batches left of the epoch under way or coming."""
        return self._progress.remaining(self._partition())

    @property
    def num_replicas(self) -> int:
        """Ranks that share the order."""
        return self._split.ranks().num_replicas

    @property
    def rank(self) -> int | None:
        """This process among them; None for a loader that only tells lengths and states."""
        return self._split.ranks().rank

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next `iter`; a state that was just loaded wins. Not needed: epochs advance by themselves."""
        self._progress.set_epoch(epoch, self._partition())

    def state_dict(self) -> dict[str, str]:
        """Returns the state of what was given to the training loop: one key, the same on all ranks."""
        return self._progress.state(self._partition())

    def state_at(self, num_batches: int) -> dict[str, str]:
        """Returns the state after so many batches of the epoch under way or coming, for those that look ahead.

        Raises:
            ValueError: the epoch has no such batch, or it lies before the place where this run entered the epoch.
        """
        return self._progress.state_at(num_batches, self._partition())

    def locate(self, num_batches: int) -> dict[str, Int64]:
        """Returns the samples of all ranks in the batch that follows so many of the epoch under way or coming: step `num_batches`.

        It is computed from the order, at whatever time; `dataset.places` tells where samples lie.

        Returns:
            int64 of shape (samples,) each, rank by rank and without fillers: `sample_id`; `epoch` and `position`, where it stands;
            `rank`, which gets it; and `slot`, its place in the rank's batch.

        Raises:
            ValueError: the epoch has no such batch, it lies before the place where this run entered the epoch, or batches are made
                of something other than single samples.
        """
        places, sample_ids = self._progress.batch_places(num_batches, self._partition())
        where = {"epoch": places.epochs, "position": places.positions, "rank": places.ranks, "slot": places.slots}
        return {"sample_id": sample_ids, **where}

    def log_to(self, path: str | os.PathLike[str]) -> None:
        """Makes rank 0 append a line to a run log for each `iter` from now on, a JSON object: what the order is, where it goes on.

        Give all runs of a training, resumed or not, the same file: `shardload locate --run-log` then tells which samples any
        step had, also where a run went back to an earlier state.
        """
        self._run_log = os.path.abspath(path)

    def load_state_dict(
        self, state: Mapping[str, Any], skip_samples: int = 0, reseed: int | None = None, reweigh: bool = False
    ) -> None:
        """Takes up a state: the next `iter` runs what is left of its epoch. Batch size and ranks may differ from then.

        Args:
            state: of a loader or sampler of the same dataset, seed and order.
            skip_samples: samples of the global order (over all ranks) to pass over from there; of packed sequences and of
                batches within a budget, as many whole ones as have so many samples or more.
            reseed: a seed to go on with: what is left of the epoch comes in another order, each sample still once, and later
                epochs and `rng` have that seed. States record it, so that they are loaded without it. Packed sequences and batches
                within a budget have it from the next block on.
            reweigh: go on with the weights of this loader's `Mixture` where the state has others. No sample comes again for it:
                each source goes on where it was. States record it, so that they are loaded without it.

        Raises:
            StateMismatchError: the state belongs to something else; nothing has changed then.
        """
        self._close_iteration()
        self._progress.load(state, skip_samples, reseed, reweigh, self._plan)
        self._course.delivered = Delivered()

    def check_ranks(self, group: ProcessGroup | None = None) -> None:
        """Compares dataset, seed, place, batch size, tail and ranks over all processes; each rank must be there once.

        One collective, which all of them must call.

        Args:
            group: the replicas, or all processes of the mesh if the loader has one; None for the default group, or this
                process alone.

        Raises:
            StateMismatchError: they disagree; says in what. All processes raise it.
        """
        check_ranks(self._progress, self._partition(), self._split.ranks(), group)

    def audit(self, group: ProcessGroup | None = None, sample_ids: Sequence[ArrayLike] | None = None) -> None:
        """Compares what all ranks were given since this run entered the epoch with what the order says.

        It tells samples that came twice or not at all, whatever was put between the loader and the training loop. One
        collective, which all processes must call after the same number of batches.

        Args:
            group: as for `check_ranks`.
            sample_ids: the ids of the batches trained on, as `with_ids` gives them, one array a batch; None for those that
                this loader has delivered. Stand-ins (`on_error`) count as the samples whose place they have, masked or not.

        Raises:
            StateMismatchError: something else was trained on; says what it looks like. All processes raise it.
        """
        delivered = self._course.delivered
        if sample_ids is not None:
            delivered = delivered.retold(sample_ids)
        audit_ids(delivered, self._progress, self._partition(), self._split.ranks(), group)

    def stats(self) -> LoaderStats:
        """Returns counters and times since the loader was made."""
        return self._course.told()

    def close(self) -> None:
        """Ends the prefetch thread and a helper process, and frees idle buffers. Batches that are held stay valid."""
        self._close_iteration()
        self._course.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Iterators stay with the process that made them, as do threads, buffers, meshes and groups.
        return self.__dict__ | {"_iteration": None}

    def _close_iteration(self) -> None:
        iteration = None if self._iteration is None else self._iteration()
        if iteration is not None:
            iteration.close()
        self._iteration = None

    def _partition(self) -> Partition:
        return self._split.partition()
