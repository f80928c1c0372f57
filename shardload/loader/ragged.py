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
    whole = joined(values)
    return (torch.cat(list(values)) if whole is None else whole), starts


def joined(values: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Returns tensors that lie end to end in one memory as the one tensor that they are parts of; None where they do not.

    Args:
        values: tensors of shape (items, *item_shape).
    """
    filled = [value for value in values if len(value)]
    if not _end_to_end(filled):
        return None
    first = filled[0]
    # Flat at first: of a value of one item, torch takes any stride for contiguous.
    items = torch.as_strided(first, (sum(value.numel() for value in filled),), (1,), first.storage_offset())
    return items.view(sum(map(len, filled)), *first.shape[1:])


def _end_to_end(values: Sequence[torch.Tensor]) -> bool:
    if not values or not all(value.is_contiguous() for value in values):
        return False
    first, stop = values[0], values[0].data_ptr()
    for value in values:
        if (value.dtype, value.shape[1:], value.device) != (first.dtype, first.shape[1:], first.device):
            return False
        if value.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or value.data_ptr() != stop:
            return False
        stop += value.nbytes
    return True
