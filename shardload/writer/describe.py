"""The description of a version that is about to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from shardload.codecs.zstd import library_version
from shardload.errors import PackError
from shardload.format.external import EXTERNAL, external_bytes_fact
from shardload.format.manifest import Description, Generation, Metadata, Writer, describe
from shardload.format.schema import FieldType, Schema, canonical_json, extend_schema, parse_schema
from shardload.version import VERSION
from shardload.writer.recipe import Recipe
from shardload.writer.target import Target

Types = dict[str, FieldType]


def schema_for(place: Target, types: Types | None, codec: str, key: str) -> Schema:
    """Returns the schema of what is written to a target: of an append the dataset's, with new fields at the end.

    Args:
        place: the target.
        types: field name -> type; None in an append for the dataset's fields alone.
        codec: `none` or `zstd`, for fields that do not say.
        key: name of the key field, or nothing; an append keeps the dataset's.

    Raises:
        FormatError: types or key are not of the format, or do not go with the dataset.
    """
    if place.base is None:
        return parse_schema(types or {}, codec, key)
    base = place.base.parsed_schema
    return base if types is None else extend_schema(base, types, codec)


def make_recipe(
    place: Target,
    schema: Schema,
    compression: str,
    dictionary: bytes,
    metadata: Metadata,
    shard_size: int,
    num_units: int,
    external_bytes: int | None = None,
) -> Recipe:
    """Returns how the shards of the next version are made.

    Args:
        place: the target.
        schema: as of `schema_for`.
        compression: codec of the new generation.
        dictionary: its dictionary, or nothing.
        metadata: facts by name; in an append they are added to those that are there.
        shard_size: most bytes of a shard file.
        num_units: units of the source.
        external_bytes: length of the existing files that records lie in; None where there are none.

    Raises:
        FormatError: the manifest would not be one.
        PackError: a fact of an append contradicts the dataset's.
    """
    generation = Generation(
        codec=compression,
        dictionary=hashlib.sha256(dictionary).hexdigest() if dictionary else "",
        generation=place.generation,
        num_fields=len(schema),
        num_samples=0,
        num_units=num_units,
        shard_size=shard_size,
        writer=Writer(np.__version__, VERSION, library_version()),
    )
    required = [] if place.base is None else place.base.required
    if external_bytes is not None:
        required = sorted({*required, EXTERNAL})
        metadata = {**metadata, external_bytes_fact(place.generation): external_bytes}
    return Recipe(_describe(place, schema, generation, metadata, required), dictionary)


def _describe(
    place: Target, schema: Schema, generation: Generation, metadata: Metadata, required: Sequence[str]
) -> Description:
    base = place.base
    if base is None:
        return describe(schema, place.version, generation, metadata, required=required)
    for name, fact in metadata.items():
        # As JSON: in Python 1 and True are equal.
        if canonical_json(base.metadata.get(name, fact)) != canonical_json(fact):
            raise PackError(
                f"{place.root}: {name!r} of what is appended ({fact!r:.80}) is not the dataset's "
                f"({base.metadata[name]!r:.80}), so that its samples would mean something else",
                dataset=place.root,
            )
    return describe(schema, place.version, generation, {**base.metadata, **metadata}, base.generations, required)
