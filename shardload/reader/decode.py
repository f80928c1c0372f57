"""Media fields of a batch decoded, each sample by draws of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.codecs.images import ImageDecode
from shardload.errors import FormatError
from shardload.format.schema import Field
from shardload.order.rng import decode_rng
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import Column, SampleBatch

Decoders = Mapping[str, ImageDecode]
Lease = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]

PIXEL = np.dtype(np.uint8)
"""What decoded images are made of."""
_IMAGE_KINDS = ("jpeg", "png")


def check_decoders(decoders: Mapping[str, Any], fields: Sequence[Field]) -> None:
    """Refuses decoders that cannot be.

    Raises:
        ValueError: one is for a field that is not read or holds no images.
        TypeError: one is not an `ImageDecode`.
    """
    kinds = {field.name: field.kind for field in fields if not field.starred}
    for name, decoder in decoders.items():
        if kinds.get(name) not in _IMAGE_KINDS:
            images = [n for n, kind in kinds.items() if kind in _IMAGE_KINDS]
            raise ValueError(
                f"decode: {name!r} is not a jpeg or png field that is read; those are {', '.join(images) or 'none'}"
            )
        if not isinstance(decoder, ImageDecode):
            raise TypeError(f"decode: {name!r} must be given as an ImageDecode, not {decoder!r}")


def decoded(batch: SampleBatch, decoders: Decoders, ids: SampleIds | None, lease: Lease | None = None) -> SampleBatch:
    """Returns a batch with the fields of `decoders` as pixels.

    Args:
        batch: the samples as stored.
        decoders: how images become pixels, by field.
        ids: what the samples were asked for by, which keys what is drawn; None where nothing is.
        lease: where memory for images of one size comes from; None for new memory.

    Raises:
        FormatError: an image is damaged; names dataset, field and sample.
        ValueError: a decoder draws, and there is nothing to key it.
    """
    columns = dict(batch.columns)
    for name, decoder in decoders.items():
        columns[name] = _decoded_column(batch, columns[name], decoder, ids, lease)
    return replace(batch, columns=columns)


def _decoded_column(
    batch: SampleBatch, column: Column, decoder: ImageDecode, ids: SampleIds | None, lease: Lease | None
) -> Column:
    if decoder.random and ids is None:
        raise ValueError(
            f"field {column.field.name!r} is cropped or flipped at random, which is keyed by seed and epoch: take the ids from "
            "ShardSampler(...).batch_sampler(...), or give decode= to ShardLoader"
        )
    target = decoder.target
    out: NDArray[Any] | None = None
    if target is not None:
        shape = (len(batch), 3, *target)
        out = np.empty(shape, PIXEL) if lease is None else lease(shape, PIXEL)
    images: list[Any] = []
    epochs = [0] * len(batch) if ids is None else ids.epochs
    for slot, (sample_id, epoch) in enumerate(zip(batch.sample_ids.tolist(), epochs, strict=True)):
        image = None
        if column.valid is None or column.valid[slot]:
            rng = decode_rng(ids.seed, epoch, sample_id, column.field.name) if ids and decoder.random else None
            try:
                image = decoder(bytes(column.values[slot]), rng)
            except FormatError as error:
                message = f"{batch.location}: field {column.field.name!r} of sample {sample_id} is {error.message}"
                raise FormatError(message, dataset=batch.location, sample_id=sample_id) from None
        if out is None:
            images.append(image)
        else:
            out[slot] = 0 if image is None else image
    field = Field(column.field.name, "uint8", nullable=column.field.nullable)
    if out is None and len({None if image is None else image.shape for image in images}) == 1 and images[0] is not None:
        out = np.stack(images)
    if out is None:
        return Column(field, images, column.valid)
    return Column(replace(field, shape=out.shape[1:]), out, column.valid)
