"""Samples to a batch: a plain dict of tensors and lists."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from shardload.format.ragged import Ragged
from shardload.format.schema import Field
from shardload.loader.ragged import joined
from shardload.memory import BufferPool
from shardload.reader.batch import SampleBatch
from shardload.reader.decode import Lease
from shardload.reader.strings import ByteStrings

Batch = dict[str, Any]

# torch has hardly an operator for these, so they are delivered as int64.
WIDENED = frozenset({"uint16", "uint32", "uint64"})
_INT64 = np.dtype(np.int64)
_COUNTED = {bytes, str, type(None)}
_NOTHING_KNOWN: Mapping[str, int] = {}
_NUM_BYTES = operator.attrgetter("nbytes")


def collate(samples: SampleBatch | Sequence[Any]) -> Any:
    """Returns a batch: for `DataLoader(collate_fn=shardload.collate)`.

    Args:
        samples: what `dataset.__getitems__` returned, or a list of samples made by a transform.

    Returns:
        For samples as stored: a dict of field -> tensor of shape (batch, *field_shape); for ragged fields a list of
        tensors that are views into one buffer (see `padded` and `packed`); a list for fields of bytes, str, json, lists
        and media, of tensors for decoded images of different sizes; for nullable fields also `_valid_<field>`, a bool
        tensor of shape (batch,), where missing values are zero or None. Unsigned integers of 16 bits and more are widened
        to int64. For samples made by a transform: what torch's `default_collate` makes of them.
    """
    if isinstance(samples, SampleBatch):
        return collate_columns(samples, {}, None)
    return collate_samples(samples)


def collate_columns(
    batch: SampleBatch, dtypes: Mapping[str, torch.dtype], lease: Lease | None, narrow: bool = False
) -> Batch:
    """Returns a batch whose tensors share the memory of the columns where their dtype allows it.

    Args:
        batch: the samples.
        dtypes: dtypes by field that override the usual ones.
        lease: where memory for widened values comes from; None for new memory.
        narrow: leave the unsigned integers as stored that are usually widened, for who widens them later.
    """
    result: Batch = {}
    for name, column in batch.columns.items():
        if isinstance(column.values, list | ByteStrings):
            values = batch.values_of(name)
            if column.field.numeric:
                values = [None if image is None else torch.from_numpy(image) for image in values]
            result[name] = values
        elif isinstance(column.values, Ragged):
            items = _tensor(column.field, column.values.values, dtypes.get(name), lease, narrow)
            result[name] = list(torch.split(items, np.diff(column.values.offsets).tolist()))
        else:
            result[name] = _tensor(column.field, column.values, dtypes.get(name), lease, narrow)
        if column.valid is not None:
            result[f"_valid_{name}"] = torch.from_numpy(column.valid)
    return result


def collate_samples(samples: Sequence[Any]) -> Any:
    """Returns what torch's `default_collate` makes of samples from a transform, with errors that name the cure.

    Raises:
        ValueError: a sample is None, the samples differ in their keys, or there are none.
        TypeError, RuntimeError: the samples cannot be made tensors.
    """
    if any(sample is None for sample in samples):
        raise ValueError(
            "the transform returned None, which would silently make the batch smaller: return a substitute, leave such samples "
            "out when packing (`shardload pack --filter`), or let ShardLoader put others in their place (`on_error`)"
        )
    if not samples:
        raise ValueError(
            "this rank has no sample in the last batch of the epoch (tail='short' on several replicas), and what an empty batch "
            "of the transform's results looks like is not known: use tail='mask' or 'pad', or give collate_fn"
        )
    first = samples[0]
    for sample in samples:
        # What the first one does not have, `default_collate` would leave out without a word.
        if isinstance(first, Mapping) and isinstance(sample, Mapping) and sample.keys() != first.keys():
            missing = min(map(repr, sample.keys() ^ first.keys()))
            raise ValueError(
                f"samples from the transform cannot be collated: some have no {missing}; return equal keys, or give collate_fn"
            )
    try:
        return default_collate(list(samples))
    except (TypeError, RuntimeError) as error:
        raise type(error)(f"samples from the transform cannot be collated: {error}; {_cure(samples)}") from error


def _cure(samples: Sequence[Any]) -> str:
    """Returns what to do about samples that `default_collate` does not take."""
    for sample in samples:
        missing = [name for name, value in sample.items() if value is None] if isinstance(sample, Mapping) else []
        if missing:
            return f"{missing[0]!r} is None in some of them: have the transform put a value there, or give collate_fn"
    return "return arrays of equal shape, or give collate_fn"


def batch_bytes(batch: Any, known: Mapping[str, int] = _NOTHING_KNOWN) -> int:
    """Returns the bytes of the tensors, arrays and byte strings in a batch; sparse tensors count for nothing.

    Args:
        batch: whatever it is.
        known: of a dict, the bytes of some fields.
    """
    if type(batch) is dict:
        # The usual case, told sooner than a mapping is.
        return sum(known[name] if name in known else batch_bytes(value) for name, value in batch.items())
    if isinstance(batch, torch.Tensor | np.ndarray):
        try:
            return int(batch.nbytes)
        except RuntimeError:
            # Sparse tensors do not tell.
            return 0
    if isinstance(batch, bytes | str):
        return len(batch)
    if isinstance(batch, Mapping):
        return sum(batch_bytes(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        # Most lists hold very many of one kind, which are counted without a call for each.
        kinds = set(map(type, batch))
        if kinds <= _COUNTED:
            return sum(map(len, filter(None, batch) if type(None) in kinds else batch))
        if kinds == {torch.Tensor}:
            return sum(map(_NUM_BYTES, batch))
        return sum(batch_bytes(value) for value in batch)
    return 0


def to_device(batch: Any, device: torch.device) -> Any:
    """Returns a batch whose tensors are on a device."""
    return moved(batch, lambda part: part.to(device))


def moved(batch: Any, move: Callable[[Any], Any]) -> Any:
    """Returns a batch with something else in the place of its tensors.

    Args:
        batch: tensors, and dicts, lists and tuples of them; whatever else is in it stays.
        move: called with each tensor and, since they know how to move themselves, with each object that has `to`, such as the
            batch classes of frameworks. For tensors that lie end to end in one memory, such as those of a ragged field, it
            is called once, with all of it.
    """
    if hasattr(batch, "to"):
        return move(batch)
    if isinstance(batch, dict) and type(batch) is dict:
        return {name: moved(value, move) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, move) for value in batch))
    if type(batch) is list and len(batch) > 1 and all(type(value) is torch.Tensor and value.ndim for value in batch):
        whole = joined(batch)
        if whole is not None and not whole.requires_grad:
            return list(torch.split(move(whole), [len(value) for value in batch]))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, move) for value in batch)
    if isinstance(batch, Mapping):
        return type(batch)({name: moved(value, move) for name, value in batch.items()})  # type: ignore[call-arg]
    return batch


def take_back(batch: Any, pool: BufferPool) -> None:
    """Gives the memory of a batch's tensors back to the pool they are from, whoever still holds them.

    Only those of plain dicts, lists and tuples: the memory of others comes back when they die.
    """
    # Each piece of memory once: by the second tensor that shares it, it may be another batch's already.
    pool.take_back({tensor.untyped_storage().data_ptr() for tensor in _tensors(batch)})


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        # Leased memory is under no other kind, and not all of them tell where theirs is.
        if type(batch) is torch.Tensor and batch.layout is torch.strided and batch.device.type == "cpu":
            yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)


def _tensor(
    field: Field, values: NDArray[Any], dtype: torch.dtype | None, lease: Lease | None, narrow: bool
) -> torch.Tensor:
    tensor: torch.Tensor
    if field.kind == "bool":
        tensor = torch.from_numpy(values).view(torch.bool)
    elif field.kind == "bfloat16":
        tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    elif field.kind in WIDENED and dtype is None:
        if field.kind == "uint64" and values.size and int(values.max()) > np.iinfo(np.int64).max:
            raise ValueError(
                f"field {field.name!r}: {values.max()} does not fit int64; ask for dtypes={{{field.name!r}: torch.uint64}}"
            )
        if narrow:
            return torch.from_numpy(values)
        wide = np.empty(values.shape, _INT64) if lease is None else lease(values.shape, _INT64)
        wide[...] = values
        tensor = torch.from_numpy(wide)
    else:
        tensor = torch.from_numpy(values)
    if dtype is None:
        return tensor
    if field.kind not in ("bool", "bfloat16"):
        _check_integers(field.name, values, dtype)
    return tensor.to(dtype)


def _check_integers(name: str, values: NDArray[Any], dtype: torch.dtype) -> None:
    """Sees to it that integers become no others: torch takes them modulo what a narrower dtype can hold."""
    integers = values.dtype.kind in "iu" and not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not integers or not values.size or np.can_cast(values.dtype, str(dtype).removeprefix("torch."), "safe"):
        return
    limits = torch.iinfo(dtype)
    for value in (int(values.min()), int(values.max())):
        if not limits.min <= value <= limits.max:
            raise ValueError(f"field {name!r}: {value} does not fit {dtype}, which dtypes= asks for")
