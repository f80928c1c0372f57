"""`PackedSequences`: samples of varying length, put together to sequences of one length."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field
from shardload.loader.rows import ADDED, Rows, stored_pad
from shardload.order.grouping import Overlong, Packing
from shardload.order.shuffle import Shuffle, check_shuffle
from shardload.order.unit_blocks import UnitPlan
from shardload.quantities import as_integer
from shardload.reader.source import SampleSource

Int64 = NDArray[np.int64]

LOOKAHEAD = 4096
"""Samples of the order that are put together at a time unless told otherwise."""


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What packing makes of an epoch."""

    num_samples: int
    """Samples in the epoch."""
    num_sequences: int
    """Sequences that they are put together to."""
    num_tokens: int
    """Items in the sequences."""
    fill: float
    """Part of the sequences' places that hold an item, 0 to 1."""
    num_overlong: int
    """Samples longer than a sequence, with which was done what `overlong` says."""
    num_lost_tokens: int
    """Items of them that are in no sequence, by `truncate` or `drop`."""
    num_empty: int
    """Samples without items, which are in no sequence."""


class PackedSequences:
    """Sequences of one length made of samples of varying length, for `ShardLoader`.

    ```python
    packed = shardload.PackedSequences(shardload.open("out/"), "tokens", length=2048)
    for batch in shardload.ShardLoader(packed, batch_size=8, shuffle=True):
        batch["tokens"], batch["position_ids"], batch["cu_seqlens"]
    ```

    The order of the samples is that of the dataset. It is cut into blocks of `lookahead` samples, and the samples of each are put
    together by best-fit decreasing from their lengths alone, so that each rank finds the same sequences without a word to the
    others, and a state is one integer. Each sample is in one sequence; the sequences of a block come in the order of the sample
    that each was opened with, so that lengths do not show in it, and samples in a sequence in the order of the epoch. There is no
    table of sequences: other epochs have other ones, so this is no map-style dataset.

    What is read of an epoch: the lengths of all samples on every rank, once, from their row tables (of compressed fields from the
    heads of their records), and each sample on one rank, once (with `split` once for each sequence it is in). After a resume the
    lengths of the block under way are read again, and nothing else.
    """

    def __init__(
        self,
        dataset: SampleSource,
        fields: str | Sequence[str],
        length: int,
        lookahead: int = LOOKAHEAD,
        *,
        overlong: Overlong = "error",
        pad: float | Mapping[str, float] = 0,
    ) -> None:
        """Describes the sequences; nothing is read.

        Args:
            dataset: where samples come from; its transform must be None.
            fields: names of ragged fields, such as `tokens` and `loss_mask`, that are packed alike. In each sample they must be
                of one length.
            length: items of a sequence.
            lookahead: samples that are put together at a time. More fill sequences better: there should be many sequences in a
                block, since its last ones are not full.
            overlong: what becomes of a sample with more items than `length`: `error` ends the run and names it; `truncate` keeps
                the first ones; `split` puts it into several sequences; `drop` leaves it out.
            pad: what stands at the end of a sequence that is not full, for all fields or by field.

        Raises:
            ValueError: the dataset has no such ragged field, or a number that cannot be.
        """
        if not isinstance(dataset, SampleSource):
            raise TypeError(f"sequences are packed from a dataset or view, not from a {type(dataset).__name__}")
        self.dataset = dataset
        self.fields = (fields,) if isinstance(fields, str) else tuple(fields)
        self.length = as_integer(length, "length", 1)
        self.lookahead = as_integer(lookahead, "lookahead", 1)
        if overlong not in get_args(Overlong):
            raise ValueError(f"overlong must be one of {', '.join(get_args(Overlong))}, not {overlong!r}")
        self.overlong: Overlong = overlong
        if not self.fields:
            raise ValueError("fields: name at least one ragged field to pack")
        if dataset.transform is not None:
            raise ValueError(
                "PackedSequences packs samples by their stored lengths, so the dataset cannot have a transform: store what it "
                "makes, or give batch_transform to the loader"
            )
        pads = dict(pad) if isinstance(pad, Mapping) else dict.fromkeys(self.fields, pad)
        for name in pads.keys() - set(self.fields):
            raise ValueError(f"pad: {name!r} is not a field that is packed; those are {', '.join(self.fields)}")
        self.pad = {name: pads.get(name, 0) for name in self.fields}
        for field in self._ragged():
            stored_pad(field, self.pad[field.name])

    def __repr__(self) -> str:
        return f"<PackedSequences of {self.length} {'+'.join(self.fields)} from {self.dataset!r}>"

    def __len__(self) -> NoReturn:
        raise TypeError(_NO_TABLE)

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError(_NO_TABLE)

    @property
    def grouping(self) -> Packing:
        """The rule by which sequences are made."""
        return Packing(self.fields, self.length, self.lookahead, self.overlong)

    @property
    def rows(self) -> Rows:
        """What makes tensors of them."""
        return Rows(self.length, self.pad)

    @property
    def item_bytes(self) -> int:
        """Bytes of an item of all fields together, as stored."""
        return sum(field.num_bytes for field in self._ragged())

    def plan(self, num_positions: int) -> UnitPlan:
        """Returns the plan for an order of so many positions."""
        return UnitPlan(num_positions, self.grouping, functools.partial(self.dataset.lengths, self.fields[0]))

    def report(self, shuffle: Shuffle = True, seed: int = 0, epoch: int = 0) -> PackingReport:
        """Returns what packing makes of an epoch, from the lengths of all samples.

        Args:
            shuffle: as of the loader.
            seed: as of the loader.
            epoch: the epoch.

        Raises:
            ShardloadError: a sample is too long, and `overlong` is `error`.
        """
        orders, grouping = self.dataset.orders(check_shuffle(shuffle)), self.grouping
        order, num_samples = orders.order(epoch, seed), orders.num_positions
        num_sequences = num_tokens = num_overlong = num_all = num_empty = 0
        for start in range(0, num_samples, self.lookahead):
            ids = order(np.arange(start, min(start + self.lookahead, num_samples), dtype=np.int64))
            lengths = self.dataset.lengths(self.fields[0], ids)
            block = grouping.arrange(lengths, ids)
            num_sequences += block.num_units
            num_tokens += int(block.lengths.sum())
            num_overlong += int((lengths > self.length).sum())
            num_all += int(lengths.sum())
            num_empty += int((lengths == 0).sum())
        fill = num_tokens / (num_sequences * self.length) if num_sequences else math.nan
        lost = num_all - num_tokens
        return PackingReport(num_samples, num_sequences, num_tokens, fill, num_overlong, lost, num_empty)

    def _ragged(self) -> list[Field]:
        schema, found = self.dataset.schema, []
        for name in self.fields:
            field = schema.get(name)
            if field is None or not field.ragged:
                ragged = ", ".join(one.name for one in schema.fields if one.ragged)
                raise ValueError(
                    f"{self.dataset.location}: {name!r} is not a ragged field, which packing needs; those are {ragged or 'none'}"
                )
            if name in ADDED:
                raise ValueError(
                    f"field {name!r} has the name of what packing adds to batches; those are {', '.join(ADDED)}"
                )
            found.append(field)
        return found


_NO_TABLE = (
    "packed sequences exist only in the order of an epoch, so they have no number and no length: give PackedSequences to "
    "ShardLoader, whose len() counts batches; report() tells how many sequences there are"
)
