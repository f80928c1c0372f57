"""`scan`: all samples once, in their order, split over the ranks into ranges that each reads from front to back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from shardload.codecs.images import ImageDecode
from shardload.errors import LoaderClosedError
from shardload.loader.course import Course, make_course
from shardload.loader.iteration import Iteration
from shardload.loader.ranks import FixedRanks, RankChoice, Ranks, one_of
from shardload.loader.recipe import make_recipe
from shardload.loader.run import Entered
from shardload.loader.state import OrderKey, Place, decode_state, encode_state
from shardload.order.epoch import InOrder
from shardload.order.spans import Spans, even_span
from shardload.quantities import as_integer
from shardload.reader.source import SampleSource
from shardload.telemetry import LoaderStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def scan(
    dataset: SampleSource,
    batch_size: int,
    num_replicas: int | None = None,
    rank: int | None = None,
    *,
    world_size: int | None = None,
    mesh: DeviceMesh | None = None,
    mesh_dims: str | Sequence[str] | None = None,
    process_group: ProcessGroup | None = None,
    fields: Sequence[str] | None = None,
    decode: Mapping[str, ImageDecode] | None = None,
    transform: Callable[..., Any] | None = None,
    batch_transform: Callable[[Any], Any] | None = None,
    collate_fn: Callable[[Any], Any] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    pin_memory: bool | None = None,
    prefetch_batches: int | None = None,
    prefetch_bytes: int | str | None = None,
    num_threads: int | None = None,
    num_processes: int = 0,
    helper_process: bool | None = None,
    with_ids: bool = False,
    reuse: bool = False,
) -> Scan:
    """Returns the batches of one pass over a dataset, for inference: each sample once, in order, nothing repeated.

    ```python
    for batch in shardload.scan(shardload.open("out/"), 256):
        ...
    ```

    Each rank reads one range of samples from front to back; the ranges of two ranks differ by one sample at most. No batch
    is empty and none is filled up: the last one is shorter, and one rank may have one batch more than another. Models whose
    ranks must run in step take `ShardLoader(shuffle=False, tail="mask")`. To keep results, see `ScanWriter`.

    Args:
        dataset: what to read: a dataset, several, a view, or windows of one phase.
        batch_size: samples a batch and rank.
        num_replicas: ranks that share the samples, with `rank`. None for both: as for `ShardLoader`.
        rank: this process.
        world_size: another name for num_replicas.
        mesh: as for `ShardLoader`, as are mesh_dims, process_group, fields, decode, transform, batch_transform, collate_fn,
            dtypes, device, pin_memory, prefetch_batches, prefetch_bytes, num_threads, num_processes, helper_process, with_ids and
            reuse. A sample that cannot be read is an error.
        mesh_dims: see there.
        process_group: see there.
        fields: see there.
        decode: see there.
        transform: see there.
        batch_transform: see there.
        collate_fn: see there.
        dtypes: see there.
        seed: for transforms and decoders that draw.
        device: see there.
        pin_memory: see there.
        prefetch_batches: see there.
        prefetch_bytes: see there.
        num_threads: see there.
        num_processes: see there.
        helper_process: see there.
        with_ids: see there; `_position` is the sample's place in the order of the dataset.
        reuse: see there.

    Raises:
        TypeError: the dataset is none that is read sample by sample.
        ValueError: settings that contradict each other, or a dataset that has no order of its own with each sample once.
    """
    _check_order(dataset)
    size = as_integer(batch_size, "batch_size", 1)
    ranks = FixedRanks(RankChoice(one_of(num_replicas, world_size), rank, mesh, mesh_dims, process_group))
    flags = {"with_ids": with_ids, "with_valid": False, "on_error": "raise"}
    recipe = make_recipe(dataset, fields, decode, transform, batch_transform, collate_fn, dtypes, **flags)
    read = size, pin_memory, prefetch_batches, prefetch_bytes, num_threads, num_processes, helper_process, None, reuse
    course = make_course(dataset, recipe, None if device is None else torch.device(device), *read)
    return Scan(dataset, size, ranks, as_integer(seed, "seed"), course)


def _check_order(dataset: SampleSource) -> None:
    """Refuses what has samples several times or not at all, or whose i-th one is not `dataset[i]`."""
    if not isinstance(dataset, SampleSource):
        raise TypeError(
            f"a scan reads samples as they are in a dataset or a view of one, not {type(dataset).__name__}: scan what it is made of"
        )
    if not isinstance(dataset.orders(False), InOrder):
        raise ValueError(
            f"a scan gives each sample once, in order, and {type(dataset).__name__} mixes or moves them: scan the sources of a "
            'mixture, and windows with phase="fixed"'
        )


class Scan:
    """One pass over a dataset, made by `scan`. An `iter` begins it anew, or runs what a loaded state has left of it.

    A second iterator closes the first. Nothing is opened or started before the first `iter`. Use it from one thread.
    """

    _closed = False

    def __init__(self, dataset: SampleSource, batch_size: int, ranks: FixedRanks, seed: int, course: Course) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._ranks = ranks
        self._seed = seed
        self._course = course
        self._cursor = 0
        self._run: _ScanRun | None = None
        self._iteration: weakref.ref[Iteration] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Returns an iterator over what a loaded state has left, else over all samples of this rank."""
        cursor, self._cursor = self._cursor, 0
        return self.over(self._spans(), cursor)

    def over(self, spans: Spans, cursor: int = 0) -> Iterator[Any]:
        """Returns an iterator over ranges of the dataset, whoever's they are.

        Args:
            spans: the ranges.
            cursor: samples of them to pass over.
        """
        if self._closed:
            raise LoaderClosedError("this scan is closed; make a new one")
        self._close_iteration()
        rank = self._ranks.fix()
        self._run = _ScanRun(spans, cursor, self.dataset, self._seed, rank)
        iteration = Iteration(self._course, self._run)
        self._iteration = weakref.ref(iteration)
        return iteration

    def __len__(self) -> int:
        """Batches of this rank in the whole pass."""
        return self._spans().num_batches()

    @property
    def remaining(self) -> int:
        """Batches of this rank that were not given yet."""
        run = self._run
        return self._spans().num_batches(self._cursor) if run is None else run.spans.num_batches(run.cursor)

    @property
    def num_replicas(self) -> int:
        """Ranks that share the samples."""
        return self.ranks.num_replicas

    @property
    def rank(self) -> int | None:
        """This process among them."""
        return self.ranks.rank

    @property
    def ranks(self) -> Ranks:
        """Where both come from."""
        return self._ranks.now()

    def fix_rank(self) -> int:
        """Returns the rank, which stays from now on."""
        return self._ranks.fix()

    def state_dict(self) -> dict[str, str]:
        """Returns how far this rank has come: one key, for a scan of the same dataset and rank."""
        run = self._run
        return encode_state(self._key(), Place(0, self._cursor if run is None else run.cursor))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state: the next `iter` gives what was left then; nothing if that was nothing.

        Raises:
            StateMismatchError: the state is that of another dataset, or of another rank or number of ranks.
        """
        saved = decode_state(state, self._key())
        self._close_iteration()
        self._run, self._cursor = None, saved.place.position

    def stats(self) -> LoaderStats:
        """Returns counters and times since the scan was made."""
        return self._course.told()

    def close(self) -> None:
        """Ends the threads and a helper process, and frees idle buffers. Batches that are held stay valid."""
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
        return self.__dict__ | {"_iteration": None}

    def _spans(self) -> Spans:
        ranks = self.ranks
        if ranks.rank is None:
            raise ValueError("a scan needs rank beside num_replicas: which samples are this process's depends on it")
        num_samples = self.dataset.orders(False).num_positions
        return Spans((even_span(num_samples, ranks.num_replicas, ranks.rank),), self.batch_size)

    def _key(self) -> OrderKey:
        (span,) = self._spans().spans
        name = f"samples {span.start} to {span.stop} in order"
        return OrderKey(self.dataset.fingerprint, self.dataset.orders(False).num_positions, self._seed, name)

    def _close_iteration(self) -> None:
        iteration = None if self._iteration is None else self._iteration()
        if iteration is not None:
            iteration.close()
        self._iteration = None


class _ScanRun:
    """A run over ranges."""

    def __init__(self, spans: Spans, cursor: int, dataset: SampleSource, seed: int, rank: int) -> None:
        self.spans = spans
        self.cursor = cursor
        self.rank = rank
        self._dataset = dataset
        self._seed = seed

    def begin(self) -> Entered:
        """Returns the batches; nothing comes after them."""
        orders = self._dataset.orders(False)
        batches = self.spans.batches(self.cursor, orders.order(0, self._seed))
        return Entered(0, self._seed, orders.num_positions, batches, iter(()))

    def deliver(self, cursor: int) -> None:
        """Notes that the samples up to `cursor` were given."""
        self.cursor = cursor
