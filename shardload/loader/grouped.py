"""What a loader's batches are counted in: samples, or what samples are put together to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike

from shardload.format.schema import Field
from shardload.loader.course import Course, make_course
from shardload.loader.draws import orders_of
from shardload.loader.ranks import RankChoice
from shardload.loader.recipe import BatchRecipe, make_recipe
from shardload.loader.sequences import LOOKAHEAD, PackedSequences
from shardload.loader.split import Split
from shardload.order.cursor import Tail
from shardload.order.epoch import EpochOrders
from shardload.order.exclusion import Excludes, left_out, parts_of
from shardload.order.grouping import TokenBudget
from shardload.order.shuffle import Shuffle
from shardload.order.unit_blocks import UnitOrders, UnitPlan
from shardload.quantities import as_integer
from shardload.reader.source import SampleSource

BatchTokens = int | tuple[str, int]
"""Most items of a batch, with the field whose items they are unless there is only one that it can be."""


@dataclass(frozen=True)
class Grouped:
    """Where a loader's samples come from, and what a batch is made of."""

    source: SampleSource
    """Where samples are read from."""
    orders: EpochOrders
    """Their orders, as states name them."""
    batch_size: int | None
    """Samples or sequences a batch and rank; None where a budget decides."""
    num_samples: int
    """About how many samples a batch has."""
    plan: UnitPlan | None = None
    """How samples are put together; None where each is by itself."""
    packed: PackedSequences | None = None
    """What sequences they are put together to."""

    @property
    def in_budget(self) -> bool:
        """Whether samples are put together to batches."""
        return self.plan is not None and self.packed is None

    def split(self, shuffle: bool, ranks: RankChoice, tail: Tail | None, drop_last: bool | None) -> Split:
        """Returns how the orders are split: samples or sequences into batches, or batches as they are; see `Split`."""
        size = 1 if self.in_budget else self.batch_size or 1
        return Split(self.orders.num_positions, size, shuffle, ranks, tail, drop_last, self.plan)

    def course(self, recipe: BatchRecipe, device: torch.device | None, *read: Any) -> Course:
        """Returns what the iterations share; see `make_course`."""
        return make_course(self.source, recipe, device, self.num_samples, *read)

    def recipe(
        self,
        fields: Sequence[str] | None,
        decode: Any,
        transform: Any,
        batch_transform: Any,
        collate_fn: Any,
        dtypes: Any,
        in_processes: bool | None,
        flags: Mapping[str, Any],
    ) -> BatchRecipe:
        """Returns what becomes of samples; see `make_recipe`.

        Args:
            fields: as for `make_recipe`, as are the five that follow and flags.
            decode: see there.
            transform: see there.
            batch_transform: see there.
            collate_fn: see there.
            dtypes: see there.
            in_processes: refuse what is not reproducible, in processes of its own or not; None to allow it.
            flags: see there.

        Raises:
            ValueError: something that was asked for does not go with what samples are put together to.
        """
        if self.plan is not None and flags["on_error"] != "raise":
            raise ValueError(
                f"on_error={flags['on_error']!r} does not go with packed sequences or batch_tokens=: what takes a sample's place "
                "has another length"
            )
        if self.packed is not None:
            own = {"fields": fields, "decode": decode, "transform": transform, "collate_fn": collate_fn}
            for name, value in own.items():
                if value is not None:
                    raise ValueError(
                        f"{name}= does not go with PackedSequences, which reads its own fields as they are stored: use "
                        "batch_transform, which is called with each batch of sequences"
                    )
            fields, decode, flags = self.packed.fields, {}, {**flags, "rows": self.packed.rows}
        recipe = make_recipe(self.source, fields, decode, transform, batch_transform, collate_fn, dtypes, **flags)
        if in_processes is not None:
            recipe.check_reproducible(in_processes)
        return recipe


def grouped(
    dataset: SampleSource | PackedSequences,
    batch_size: int | None,
    shuffle: Shuffle,
    batch_tokens: BatchTokens | None,
    lookahead: int | None,
    weights: ArrayLike | None = None,
    exclude: Excludes = (),
    seed: int = 0,
) -> Grouped:
    """Returns what the arguments of a loader mean.

    Raises:
        ValueError: they contradict each other.
    """
    size = None if batch_size is None else as_integer(batch_size, "batch_size", 1)
    if size is None and batch_tokens is None:
        raise ValueError("give batch_size, the samples of a batch, or batch_tokens, a budget for its items")
    if lookahead is not None and batch_tokens is None:
        raise ValueError("lookahead= goes with batch_tokens=; that of PackedSequences is given to PackedSequences")
    if parts_of(exclude) and (batch_tokens is not None or isinstance(dataset, PackedSequences)):
        raise ValueError(
            "exclude= does not go with packed sequences or batch_tokens=: give them a view without those samples (select, "
            "filter_by)"
        )
    if isinstance(dataset, PackedSequences):
        if batch_tokens is not None or size is None:
            raise ValueError(
                "batch_tokens= does not go with PackedSequences: all its sequences are of one length; give batch_size"
            )
        source, orders = dataset.dataset, orders_of(dataset.dataset, shuffle, weights)
        num_bytes = size * dataset.length * dataset.item_bytes
        plan = dataset.plan(orders.num_positions)
        return Grouped(source, UnitOrders(orders, plan.grouping), size, _samples_in(source, num_bytes), plan, dataset)
    orders = orders_of(dataset, shuffle, weights)
    if batch_tokens is None:
        return Grouped(dataset, left_out(orders, exclude, seed), size, size or 1)
    # A list is what a pair becomes in a JSON or YAML file of settings.
    if isinstance(batch_tokens, tuple | list):
        if len(batch_tokens) != 2:
            raise ValueError(f"batch_tokens must be a number, or (field, number), not {batch_tokens!r:.80}")
        name, budget = batch_tokens
    else:
        name, budget = _only_field(dataset), batch_tokens
    field = _lengthy(dataset, name)
    budget = as_integer(budget, "batch_tokens", 1)
    block = LOOKAHEAD if lookahead is None else as_integer(lookahead, "lookahead", 1)
    grouping = TokenBudget(name, budget, block, size)
    plan = UnitPlan(orders.num_positions, grouping, functools.partial(dataset.lengths, name))
    num_samples = _samples_in(dataset, budget * (field.num_bytes if field.numeric else 1))
    return Grouped(dataset, UnitOrders(orders, grouping), size, num_samples, plan)


def _samples_in(source: SampleSource, num_bytes: int) -> int:
    """Returns about how many samples have so many bytes."""
    return max(1, round(num_bytes * len(source) / max(1, source.num_bytes)))


def _lengthy(source: SampleSource, name: str) -> Field:
    field = source.schema.get(name)
    if field is None or field.fixed or field.listed:
        raise ValueError(
            f"batch_tokens: {name!r} is not a ragged field, nor one of bytes, str, json or media, whose lengths differ; those are "
            f"{', '.join(_names(source)) or 'none'}"
        )
    return field


def _only_field(source: SampleSource) -> str:
    names = _names(source)
    ragged = [name for name in names if source.schema[name].ragged] or names
    if len(ragged) != 1:
        raise ValueError(
            f"batch_tokens: say whose items are meant, as batch_tokens=(field, budget); the fields whose lengths differ are "
            f"{', '.join(names) or 'none'}"
        )
    return ragged[0]


def _names(source: SampleSource) -> list[str]:
    return [field.name for field in source.schema.fields if not field.fixed and not field.listed]
