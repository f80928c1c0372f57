"""How the shards of a generation are made: one small value for all who write them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from shardload.codecs import Codec, make_codec
from shardload.format.manifest import Description
from shardload.format.schema import Schema


@dataclass(frozen=True)
class Recipe:
    """What a writer of shards has to know of their dataset. Picklable."""

    description: Description
    dictionary: bytes = b""

    @property
    def schema(self) -> Schema:
        """The schema of the samples."""
        return self.description.parsed_schema

    @property
    def generation(self) -> int:
        """Number of the generation that is written."""
        return self.description.generations[-1].generation

    @property
    def shard_size(self) -> int:
        """Most bytes of a shard file, unless it is one sample."""
        return self.description.generations[-1].shard_size

    @cached_property
    def encoded(self) -> bytes:
        """The description as every shard carries it."""
        return self.description.encode()

    @cached_property
    def codec(self) -> Codec | None:
        """The codec of the compressed fields."""
        return make_codec(self.description.generations[-1].codec, self.dictionary)

    def __getstate__(self) -> dict[str, object]:
        return {"description": self.description, "dictionary": self.dictionary}
