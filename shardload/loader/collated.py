"""From samples that were read to the batch that a recipe makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardload.errors import FormatError
from shardload.loader.collate import collate_columns, collate_samples
from shardload.loader.recipe import BatchRecipe
from shardload.loader.rows import values_of
from shardload.loader.stand_ins import Fault, joined, made_whole, refuse, stand_in
from shardload.order.cursor import RankBatch
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import SampleBatch
from shardload.reader.decode import Lease, decoded
from shardload.reader.source import SampleSource
from shardload.reader.strings import ByteStrings
from shardload.reader.transform import apply_transform


@dataclass(frozen=True, slots=True)
class Read:
    """Samples of a batch, and the places among them that hold a stand-in."""

    samples: SampleBatch
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A batch that was read and collated."""

    ids: RankBatch
    """What it was asked for by."""
    batch: Any
    """What a recipe makes of its samples, up to `batch_transform`."""
    faults: tuple[Fault, ...]
    """All its faults, fillers among them."""
    string_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of fields that it has as they were read, where these are known without looking at each value."""


def string_bytes(read: Read, recipe: BatchRecipe) -> dict[str, int]:
    """Returns the bytes of byte strings and texts that come into a batch as they were read.

    To ask each of them for its length takes a tenth of the time of a batch of texts.
    """
    if recipe.transform or recipe.collate_fn or recipe.batch_transform or recipe.rows is not None:
        return {}
    columns = read.samples.columns.items()
    return {name: int(one.values.lengths().sum()) for name, one in columns if isinstance(one.values, ByteStrings)}


def collated(
    read: Read,
    recipe: BatchRecipe,
    ids: SampleIds | None,
    dataset: SampleSource,
    lease: Lease | None,
    before: Callable[[int, int, int], None] | None = None,
) -> tuple[Any, tuple[Fault, ...]]:
    """Returns the batch that a recipe makes of samples, up to `batch_transform`, and all its faults.

    Args:
        read: what was read.
        recipe: what becomes of it.
        ids: the samples it holds; None only where there is neither a transform nor a stand-in.
        dataset: where stand-ins for samples that fail only here come from.
        lease: where memory for tensors comes from; None for new memory.
        before: called before each sample's transform with seed, epoch and sample id.
    """
    if recipe.transform is not None and ids is not None:
        return _transformed(read, recipe, recipe.transform, ids, dataset, before)
    try:
        return _stacked(read.samples, recipe, lease), read.faults
    except FormatError:
        if recipe.on_error == "raise" or ids is None:
            raise
    # Bytes can be as they were written and no text or JSON all the same, which only shows when they become values.
    samples, _, faults = made_whole(ids, dataset.stand_ins, lambda some: _valued(dataset, recipe, some))
    return _stacked(samples, recipe, lease), joined(read.faults, faults)


def _stacked(samples: SampleBatch, recipe: BatchRecipe, lease: Lease | None) -> Any:
    if recipe.rows is not None:
        return values_of(samples)
    if recipe.collate_fn is not None:
        return recipe.collate_fn(samples)
    return collate_columns(samples, recipe.dtypes, lease, recipe.narrow)


def _read_for(dataset: SampleSource, recipe: BatchRecipe, ids: SampleIds) -> SampleBatch:
    return decoded(dataset.read_batch(np.array(ids, dtype=np.int64), {}, recipe.fields), recipe.decode, ids)


def _valued(dataset: SampleSource, recipe: BatchRecipe, ids: SampleIds) -> SampleBatch:
    """Returns samples all of whose values were made once."""
    samples = _read_for(dataset, recipe, ids)
    for slot in range(len(samples)):
        samples[slot]
    return samples


def _transformed(
    read: Read,
    recipe: BatchRecipe,
    transform: Callable[..., Any],
    ids: SampleIds,
    dataset: SampleSource,
    before: Callable[[int, int, int], None] | None,
) -> tuple[Any, tuple[Fault, ...]]:
    epochs = ids.epochs
    faults: list[Fault] = []

    def made(some: SampleIds) -> Any:
        return apply_transform(transform, _read_for(dataset, recipe, some), some, before, refuse)[0]

    def recover(slot: int, error: Exception) -> Any:
        result, fault = stand_in(slot, SampleIds([ids[slot]], ids.seed, epochs[slot]), dataset.stand_ins, error, made)
        faults.append(fault)
        return result

    results = apply_transform(transform, read.samples, ids, before, None if recipe.on_error == "raise" else recover)
    try:
        batch = collate_samples(results) if recipe.collate_fn is None else recipe.collate_fn(results)
    except Exception as error:
        for slot in (slot for slot, result in enumerate(results) if result is None):
            error.add_note(f"in the transform of sample {read.samples.sample_ids[slot]} of {read.samples.location}")
        raise
    return batch, joined(read.faults, faults)
