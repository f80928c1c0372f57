"""What becomes of a batch's samples, as a loader was asked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from shardload.codecs.images import ImageDecode
from shardload.format.schema import Field
from shardload.loader.collate import WIDENED
from shardload.loader.rows import Rows
from shardload.loader.stand_ins import OnError
from shardload.reader.decode import check_decoders
from shardload.reader.source import SampleSource
from shardload.reader.transform import takes_rng


@dataclass(frozen=True)
class BatchRecipe:
    """What becomes of a batch's samples."""

    fields: tuple[Field, ...]
    """The fields that are read."""
    decode: Mapping[str, ImageDecode] = field(default_factory=dict)
    """How images become pixels, by field; in the threads that read."""
    transform: Callable[..., Any] | None = None
    """Called with each sample."""
    batch_transform: Callable[[Any], Any] | None = None
    """Called with each batch, in the prefetch thread."""
    collate_fn: Callable[[Any], Any] | None = None
    """Makes a batch in place of shardload's own collation."""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Dtypes by field that override the usual ones."""
    with_ids: bool = False
    """Whether batches carry `_sample_id`, `_position` and `_epoch`."""
    with_valid: bool = False
    """Whether batches carry `_valid`, which tells samples from fillers."""
    on_error: OnError = "raise"
    """What becomes of a sample that cannot be read, decoded or transformed."""
    narrow: bool = False
    """Whether unsigned integers that are usually widened stay as stored, because the device they go to widens them."""

    rows: Rows | None = None
    """What makes rows of samples that are packed; None where each is by itself."""

    @property
    def own(self) -> bool:
        """Whether nobody makes something else of what was read before the training loop has it, such as functions of the user."""
        functions = (self.transform, self.collate_fn, self.batch_transform)
        # What rows are filled up with need not be a number that the device could widen.
        return functions == (None, None, None) and self.rows is None

    def for_cuda(self, dataset: SampleSource) -> BatchRecipe:
        """Returns what goes to a CUDA device: as narrow as it is stored where the device can widen it and nobody sees it before."""
        if not self.own:
            return self
        kinds = {
            name: kind for name, kind in dataset.stored_kinds.items() if kind in WIDENED and name not in self.dtypes
        }
        fields = tuple(replace(field, kind=kinds.get(field.name, field.kind)) for field in self.fields)
        return replace(self, fields=fields, narrow=True)

    def check_reproducible(self, in_processes: bool) -> None:
        """Refuses functions whose results may differ from run to run.

        Args:
            in_processes: whether transform and collate_fn run in processes of their own, seeded for each sample.

        Raises:
            ValueError: says which function and what to do.
        """
        for name in ("transform", "collate_fn", "batch_transform"):
            function = getattr(self, name)
            seeded = in_processes and name != "batch_transform"
            if function is None or seeded or (takes_rng(function) and name != "collate_fn"):
                continue
            ways = {
                "transform": "give it a parameter rng and draw from that, or run it in processes that are seeded for each sample "
                "(num_processes=)",
                "collate_fn": "run it in processes that are seeded for each sample (num_processes=)",
                "batch_transform": "give it a parameter rng and draw from that",
            }
            raise ValueError(
                f"reproducible=True: {name} runs in a thread, where what it draws from global generators depends on everything "
                f"else in the program: {ways[name]}"
            )

    def __post_init__(self) -> None:
        if self.dtypes and (self.transform is not None or self.collate_fn is not None):
            raise ValueError("dtypes= is for fields as stored; with a transform or collate_fn, make the dtypes there")
        tensors = [field.name for field in self.fields if field.numeric]
        for name, dtype in self.dtypes.items():
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"dtypes: {name!r} must have a dtype of torch, such as torch.int32, not {dtype!r:.60}")
            if name not in tensors:
                raise ValueError(
                    f"dtypes: {name!r} is not a field of numbers that is read; those are {', '.join(tensors) or 'none'}"
                )


def make_recipe(
    dataset: SampleSource,
    fields: Sequence[str] | None,
    decode: Mapping[str, ImageDecode] | None,
    transform: Callable[..., Any] | None,
    batch_transform: Callable[[Any], Any] | None,
    collate_fn: Callable[[Any], Any] | None,
    dtypes: Mapping[str, torch.dtype] | None,
    **flags: Any,
) -> BatchRecipe:
    """Returns the recipe for some of a dataset's fields and the loader's or the dataset's decoders and transform.

    Raises:
        ValueError: a field is not there, both have decoders or a transform, or what was asked for does not fit together.
    """
    if transform is not None and dataset.transform is not None:
        raise ValueError("both the dataset and the loader have a transform: leave one out")
    if decode is not None and dataset.decode:
        raise ValueError("both the dataset and the loader have decode=: leave one out")
    available = {field.name: field for field in dataset.field_list}
    # Looked through more than once, which an iterator does not survive.
    fields = None if fields is None else tuple(fields)
    for name in fields or ():
        if name not in available:
            raise ValueError(f"there is no field {name!r} to read; the fields are {', '.join(available)}")
    chosen = tuple(field for name, field in available.items() if fields is None or name in fields)
    if decode is None:
        decode = {name: decoder for name, decoder in dataset.decode.items() if fields is None or name in fields}
    check_decoders(decode, chosen)
    functions = (dataset.transform if transform is None else transform, batch_transform, collate_fn)
    return BatchRecipe(chosen, dict(decode), *functions, dict(dtypes or {}), **flags)
