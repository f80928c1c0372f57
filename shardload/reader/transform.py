"""What a function of the user's makes of each sample."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from shardload.order.rng import sample_rng
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import VALID, SampleBatch

Transform = Callable[..., Any]


def takes_rng(transform: Transform) -> bool:
    """Tells whether a transform has a parameter named `rng` that nobody has bound yet (`functools.partial`)."""
    try:
        parameters = inspect.signature(transform).parameters
        return "rng" in parameters and not _binds_rng(transform)
    except (TypeError, ValueError):
        return False


def _binds_rng(transform: Any) -> bool:
    """Tells whether a partial gives `rng`: a signature keeps what was bound by name, as a default."""
    while True:
        transform = inspect.unwrap(transform, stop=lambda inner: isinstance(inner, functools.partial))
        if not isinstance(transform, functools.partial):
            return False
        if "rng" in transform.keywords:
            return True
        transform = transform.func


def apply_transform(
    transform: Transform,
    batch: SampleBatch,
    ids: SampleIds | None,
    before: Callable[[int, int, int], None] | None = None,
    recover: Callable[[int, Exception], Any] | None = None,
) -> list[Any]:
    """Returns what a transform makes of each sample of a batch.

    Args:
        transform: called with each sample, and with its generator if it takes one.
        batch: the samples.
        ids: what they were asked for by, which keys the generators; None where there are none.
        before: called before each sample with seed, epoch and sample id.
        recover: called with place and error where a value cannot be decoded or the transform fails or returns None; its
            result is taken. None to raise the error, and to let None pass to whoever collates.

    Raises:
        TypeError: fillers cannot be told from samples, as the transform returns no dicts.
        BaseException: whatever the transform raises, with a note that names the sample.
    """
    keyed = ids is not None and takes_rng(transform)
    epochs = [0] * len(batch) if ids is None else ids.epochs
    samples = []
    for slot, (epoch, sample_id) in enumerate(zip(epochs, batch.sample_ids.tolist(), strict=True)):
        if before is not None and ids is not None:
            before(ids.seed, epoch, sample_id)
        rng = {"rng": sample_rng(ids.seed, epoch, sample_id)} if ids is not None and keyed else {}
        try:
            samples.append(_result(transform, batch, slot, rng, may_be_none=recover is None))
        except Exception as error:
            if recover is None:
                raise
            samples.append(recover(slot, error))
    if ids is None or ids.num_valid is None:
        return samples
    return [_flagged(sample, slot < ids.num_valid) for slot, sample in enumerate(samples)]


def _result(transform: Transform, batch: SampleBatch, slot: int, rng: Mapping[str, Any], may_be_none: bool) -> Any:
    # Outside: a value that cannot be decoded names its sample, and is not the transform's fault.
    sample = batch[slot]
    try:
        made = transform(sample, **rng)
        if made is None and not may_be_none:
            raise ValueError("the transform returned None")
    except Exception as error:
        error.add_note(f"in the transform of sample {batch.sample_ids[slot]} of {batch.location}")
        raise
    return made


def _flagged(sample: Any, valid: bool) -> dict[str, Any]:
    """Returns a sample that says whether it is one or a filler."""
    if not isinstance(sample, dict):
        raise TypeError(
            f"tail='mask' adds {VALID!r} to samples that are dicts, but the transform returned a {type(sample).__name__}"
        )
    return {**sample, VALID: valid}
