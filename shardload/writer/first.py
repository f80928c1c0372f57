"""The first samples of a generation, kept until it is known whether they are compressed with a dictionary."""

from __future__ import annotations

from shardload.codecs.dictionary import TRAINING_BYTES, DictionaryMode, choose_dictionary
from shardload.format.schema import Schema
from shardload.writer.encode import EncodedSample
from shardload.writer.keys import DuplicateKeyError

KEPT_BYTES = 4 * TRAINING_BYTES
"""What is kept at most, with all that is not compressed: images have little text beside them."""
SAMPLE_BYTES = 1024
"""What keeping a sample takes beside its bytes, about: of tiny ones it is nearly all."""


class FirstSamples:
    """Collects samples until there is enough to train a dictionary on."""

    def __init__(self, schema: Schema, compression: str, mode: DictionaryMode, shard_size: int) -> None:
        self.samples: list[tuple[EncodedSample, str]] = []
        """What was added, with its place."""
        compressed = any(field.codec != "none" for field in schema.fields)
        self._mode: DictionaryMode = mode if compressed and compression != "none" else "off"
        self._compression = compression
        self._shard_size = shard_size
        self._packed_bytes = self._kept_bytes = 0
        self._key = schema.key
        self._places: dict[bytes, str] = {}

    @property
    def full(self) -> bool:
        """Whether there is enough."""
        return self._mode == "off" or self._packed_bytes >= TRAINING_BYTES or self._kept_bytes >= KEPT_BYTES

    def key_place(self, key: bytes) -> str:
        """Returns the place of the kept sample that has a key, given by its digest; empty for none."""
        return self._places.get(key, "")

    def add(self, sample: EncodedSample, place: str) -> bool:
        """Keeps a sample; tells whether another is wanted.

        Raises:
            DuplicateKeyError: its key is that of one before it; it was not kept.
        """
        if sample.key:
            if sample.key in self._places:
                raise DuplicateKeyError(f"{place}: its key (field {self._key!r}) is that of {self._places[sample.key]}")
            self._places[sample.key] = place
        self.samples.append((sample, place))
        self._packed_bytes += len(sample.packed)
        self._kept_bytes += SAMPLE_BYTES + len(sample.packed) + len(sample.plain) + sum(map(len, sample.values))
        return not self.full

    def dictionary(self) -> bytes:
        """Returns the dictionary for the samples, or nothing."""
        samples = [sample.packed for sample, _ in self.samples]
        return choose_dictionary(samples, self._compression, self._mode, self._shard_size)
