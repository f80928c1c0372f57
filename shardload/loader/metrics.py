"""Means over an evaluation that do not depend on how many ranks did it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Tensors = torch.Tensor | Sequence[torch.Tensor]


def masked_mean(values: Tensors, valid: Tensors, group: ProcessGroup | None = None) -> torch.Tensor:
    """Returns the mean over all samples that are no fillers: for evaluations with `tail="mask"`.

    ```python
    hits, valid = [], []
    for batch in loader:
        hits.append(model(batch["image"]).argmax(1) == batch["label"])
        valid.append(batch["_valid"])
    accuracy = shardload.masked_mean(hits, valid, group=torch.distributed.group.WORLD)
    ```

    Args:
        values: one value a sample: a tensor of shape (batch,) or (batch, *value_shape), or one of them a batch.
        valid: bool of shape (batch,), in the same form.
        group: process group over which to sum, by two small collectives; all its ranks must call this. None: this process
            alone.

    Returns:
        float64 of shape value_shape, on the device of the values. Integers and bools are summed as integers, so that the
        result is the same to the last bit for any number of ranks and any batch size; others are summed in float64.

    Raises:
        ValueError: the shapes do not fit each other, or there is no valid sample.
    """
    pairs = list(zip(_listed(values), _listed(valid), strict=True))
    if not pairs:
        raise ValueError("there are no values to take a mean of: a rank that may have no batch passes empty tensors")
    exact = not any(part.is_floating_point() for part, _ in pairs)
    first = pairs[0][0]
    total = torch.zeros(first.shape[1:], dtype=torch.int64 if exact else torch.float64, device=first.device)
    count = torch.zeros((), dtype=torch.int64, device=first.device)
    for part, flags in pairs:
        if flags.dtype is not torch.bool or flags.ndim != 1 or part.shape[:1] != flags.shape:
            raise ValueError(
                f"valid must be bool of shape (batch,) for values of shape (batch, ...), not {flags.dtype} of shape "
                f"{tuple(flags.shape)} for {tuple(part.shape)}"
            )
        flags = flags.to(part.device)
        total = total + part[flags].to(total.dtype).sum(0)
        count = count + flags.sum()
    if group is not None:
        from torch import distributed

        distributed.all_reduce(total, group=group)
        distributed.all_reduce(count, group=group)
    if not int(count):
        raise ValueError("there is no valid sample to take a mean of")
    return total / count.to(torch.float64)


def _listed(tensors: Tensors) -> Sequence[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors
