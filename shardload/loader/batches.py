"""From a rank's sample ids to the batch that the training loop gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardload.format.schema import Field
from shardload.loader.collate import batch_bytes, collate_columns, collate_samples
from shardload.memory import BufferPool
from shardload.order.cursor import RankBatch
from shardload.order.sample_ids import SampleIds
from shardload.reader import ShardDataset
from shardload.reader.batch import VALID
from shardload.reader.dataset import apply_transform

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class BatchRecipe:
    """What becomes of a batch's samples."""

    fields: tuple[Field, ...]
    """The fields that are read."""
    transform: Callable[..., Any] | None = None
    """Called with each sample."""
    batch_transform: Callable[[Any], Any] | None = None
    """Called with each batch."""
    collate_fn: Callable[[Any], Any] | None = None
    """Makes a batch in place of shardload's own collation."""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Dtypes by field that override the usual ones."""
    with_ids: bool = False
    """Whether batches carry `_sample_id`, `_position` and `_epoch`."""
    with_valid: bool = False
    """Whether batches carry `_valid`, which tells samples from fillers."""

    def __post_init__(self) -> None:
        if self.dtypes and (self.transform is not None or self.collate_fn is not None):
            raise ValueError("dtypes= is for fields as stored; with a transform or collate_fn, make the dtypes there")
        tensors = [field.name for field in self.fields if field.numeric]
        for name in self.dtypes:
            if name not in tensors:
                raise ValueError(
                    f"dtypes: {name!r} is not a field of numbers that is read; those are {', '.join(tensors) or 'none'}"
                )


def make_recipe(
    dataset: ShardDataset, fields: Sequence[str] | None, transform: Callable[..., Any] | None, **options: Any
) -> BatchRecipe:
    """Returns the recipe for some of a dataset's fields and the loader's or the dataset's transform.

    Raises:
        ValueError: a field is not there, both have a transform, or `options`, the recipe's other attributes, do not fit.
    """
    if transform is not None and dataset.transform is not None:
        raise ValueError("both the dataset and the loader have a transform: leave one out")
    available = {field.name: field for field in dataset.field_list}
    for name in fields or ():
        if name not in available:
            raise ValueError(f"there is no field {name!r} to read; the fields are {', '.join(available)}")
    chosen = tuple(field for name, field in available.items() if fields is None or name in fields)
    return BatchRecipe(chosen, dataset.transform if transform is None else transform, **options)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A finished batch and what the loader has to know of it."""

    batch: Any
    """What the training loop gets."""
    cursor: int
    """Cursor after it."""
    sample_ids: Int64
    """The samples in it, without fillers: int64 of shape (batch,)."""
    num_bytes: int
    """Bytes of its tensors and byte strings."""


class BatchMaker:
    """Reads and collates batches. Runs in the prefetch thread."""

    def __init__(self, dataset: ShardDataset, recipe: BatchRecipe, pool: BufferPool, seed: int) -> None:
        self._dataset = dataset
        self._recipe = recipe
        self._pool = pool
        self._seed = seed
        # Whoever gets samples or columns may keep views of them in any form; leased memory is only for our own tensors.
        self._leases = recipe.transform is None and recipe.collate_fn is None

    def deliveries(self, batches: Iterator[RankBatch], epoch: int) -> Iterator[Delivery]:
        """Yields the batches of an epoch."""
        for ids in batches:
            batch = self._make(ids, epoch)
            yield Delivery(batch, ids.cursor, ids.sample_ids[: ids.num_valid], batch_bytes(batch))
            # The buffers must not live on in this frame while the next batch is made: they would not come back.
            del batch

    def _make(self, ids: RankBatch, epoch: int) -> Any:
        recipe = self._recipe
        buffers = {}
        if self._leases:
            size = len(ids.sample_ids)
            fixed = [f for f in recipe.fields if f.fixed]
            buffers = {f.name: self._pool.lease((size, *f.shape), f.dtype) for f in fixed}
        samples: Any = self._dataset.read_batch(ids.sample_ids, buffers, recipe.fields)
        if recipe.transform is not None:
            keyed = SampleIds(ids.sample_ids.tolist(), self._seed, epoch, ids.num_before)
            samples = apply_transform(recipe.transform, samples, keyed)
        if recipe.collate_fn is not None:
            batch = recipe.collate_fn(samples)
        elif recipe.transform is not None:
            batch = collate_samples(samples)
        else:
            batch = collate_columns(samples, recipe.dtypes, self._pool.lease)
        if recipe.batch_transform is not None:
            batch = recipe.batch_transform(batch)
        if recipe.with_ids:
            batch = _extended(batch, "with_ids=True", _ids(ids, epoch, self._dataset))
        if recipe.with_valid:
            valid = torch.arange(len(ids.positions)) < ids.num_valid
            batch = _extended(batch, "tail='mask'", {VALID: valid})
        return batch


def _extended(batch: Any, cause: str, more: dict[str, torch.Tensor]) -> dict[str, Any]:
    if not isinstance(batch, dict):
        raise TypeError(f"{cause} adds fields to batches that are dicts, but this one is a {type(batch).__name__}")
    return {**batch, **more}


def _ids(ids: RankBatch, epoch: int, dataset: ShardDataset) -> dict[str, torch.Tensor]:
    """Returns what `with_ids` adds; fillers have -1, so that nobody takes them for samples."""
    sample_ids, positions = ids.sample_ids.copy(), ids.positions.copy()
    epochs = np.full(len(positions), epoch, np.int64)
    positions[: ids.num_before] += len(dataset)
    epochs[: ids.num_before] -= 1
    sample_ids[ids.num_valid :] = -1
    positions[ids.num_valid :] = -1
    named = {"_sample_id": sample_ids, "_position": positions, "_epoch": epochs}
    return {name: torch.from_numpy(values) for name, values in named.items()}
