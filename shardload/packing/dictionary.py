"""A dictionary for a source, from the samples at its start."""

from __future__ import annotations

import contextlib

from shardload.codecs.dictionary import DictionaryMode
from shardload.errors import PackError
from shardload.format.schema import Schema
from shardload.importers import Reject, SourcePlan, flattened
from shardload.writer.encode import SampleEncoder
from shardload.writer.first import FirstSamples


def train_on_source(plan: SourcePlan, schema: Schema, compression: str, mode: DictionaryMode, shard_size: int) -> bytes:
    """Returns the dictionary for a source's samples, or nothing where it would not pay.

    It depends on the first unit and these arguments only, so that whoever continues a pack comes to the same. What is no
    sample is passed over here; the packing of the unit deals with it.

    Raises:
        PackError: a dictionary is asked for (`on`), and there is too little to train it on.
    """
    first, encoder = FirstSamples(schema, compression, mode, shard_size), SampleEncoder(schema)
    if first.full or not plan.units:
        return first.dictionary()
    tokens = schema.get(plan.tokens)
    # What lies in a stream has no part in it.
    reader = (
        plan.untokenized if plan.untokenized is not None and tokens is not None and tokens.streamed else plan.reader
    )
    with contextlib.suppress(PackError), contextlib.closing(reader.read(plan.units[0])) as items:
        for item in flattened(items):
            if isinstance(item, Reject):
                continue
            with contextlib.suppress(PackError):
                first.add(encoder.encode(item.values, item.place), "")
            if first.full:
                break
    return first.dictionary()
