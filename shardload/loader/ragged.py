"""Ragged values of a batch as one tensor: padded, or packed end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded(values: Sequence[torch.Tensor], fill: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ragged values as one tensor, each filled up at its end.

    Args:
        values: tensors of shape (items, *item_shape), as a batch has them for a ragged field.
        fill: what stands behind the items of shorter ones.

    Returns:
        A new tensor of shape (batch, longest, *item_shape), and the lengths: int64 of shape (batch,).
    """
    lengths = torch.tensor([len(value) for value in values], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=fill), lengths


def packed(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ragged values end to end, with where each starts: what attention kernels for varying lengths take.

    Args:
        values: tensors of shape (items, *item_shape), as a batch has them for a ragged field.

    Returns:
        A tensor of shape (all items, *item_shape), and `cu_seqlens`: int32 of shape (batch + 1,), 0 first. The values of
        a batch as it was delivered already lie end to end: then the tensor shares their memory and nothing is copied.
    """
    lengths = [len(value) for value in values]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    first = next((value for value in values if len(value)), values[0])
    if _end_to_end([value for value in values if len(value)]):
        shape, strides = (sum(lengths), *first.shape[1:]), first.stride()
        return torch.as_strided(first, shape, strides, first.storage_offset()), starts
    return torch.cat(list(values)), starts


def _end_to_end(values: Sequence[torch.Tensor]) -> bool:
    if not values or not all(value.is_contiguous() for value in values):
        return False
    stop = values[0].data_ptr()
    for value in values:
        if value.untyped_storage().data_ptr() != values[0].untyped_storage().data_ptr() or value.data_ptr() != stop:
            return False
        stop += value.nbytes
    return True
