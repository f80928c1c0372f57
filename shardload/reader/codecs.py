"""The codecs of a dataset's generations, each with its dictionary."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shardload.codecs import Codec, make_codec
from shardload.format.manifest import Manifest


class Codecs:
    """Codecs by generation, made when first needed. Safe for several threads."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._codecs: dict[int, Codec | None] = {}
        self._lock = threading.Lock()

    def of(self, generation: int, read_dictionary: Callable[[], bytes]) -> Codec | None:
        """Returns a generation's codec.

        Args:
            generation: its number.
            read_dictionary: returns its dictionary from one of its shards, checked; called at most once.
        """
        with self._lock:
            if generation not in self._codecs:
                facts = self._manifest.generation(generation)
                dictionary = read_dictionary() if facts.dictionary else b""
                self._codecs[generation] = make_codec(facts.codec, dictionary)
            return self._codecs[generation]
