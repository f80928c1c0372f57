"""Several sources read as one."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field, Schema, canonical_json
from shardload.order.next_use import Uses
from shardload.reader.access import Buffers
from shardload.reader.batch import SampleBatch
from shardload.reader.columns import lengthy_field
from shardload.reader.merge import merge_batches
from shardload.reader.source import Fields, SampleSource

Int64 = NDArray[np.int64]


def concat(sources: Sequence[SampleSource]) -> Concat:
    """Returns several sources as one: the samples of the first, then those of the second, and so on.

    Args:
        sources: datasets or views that read fields of the same names and types, with the same transform and decoders or none.

    Raises:
        ValueError: there are none, or they do not go together; says which and why.
    """
    return Concat(sources)


class Joined(SampleSource):
    """What several sources have, under ids that follow each other: those of the first, then those of the second, and so on.

    A batch from one source is read as there; of a batch from several each source reads its own, and the parts are put together
    by one more copy.
    """

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        """Describes them.

        Args:
            sources: what read fields of the same names and types.

        Raises:
            ValueError: there are none, or they do not go together.
        """
        if not sources:
            raise ValueError("there is nothing to join: give a list of at least one dataset")
        for number, source in enumerate(sources):
            if not isinstance(source, SampleSource):
                raise TypeError(f"datasets and views can be joined, and number {number} is a {type(source).__name__}")
        self.sources = tuple(sources)
        self.location = ", ".join(dict.fromkeys(source.location for source in sources))
        self.fields = None
        self.decode, self.transform = dict(sources[0].decode), sources[0].transform
        kinds = [source.stored_kinds for source in sources]
        self.stored_kinds = {
            name: kind for name, kind in kinds[0].items() if all(own.get(name) == kind for own in kinds)
        }
        for number, source in enumerate(self.sources):
            if source.transform != self.transform or source.decode != self.decode:
                raise ValueError(
                    f"dataset {number} ({source.location}) has another transform or decode= than the first: give them to the loader"
                )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.sources)} sources: {len(self)} samples {self.schema}>"

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples."""

    @cached_property
    def first_ids(self) -> Int64:
        """First id of each source, and the end of the last: int64 of shape (sources + 1,)."""
        return np.array([0, *accumulate(map(len, self.sources))], dtype=np.int64)

    @cached_property
    def schema(self) -> Schema:
        """The fields that all of them read.

        Raises:
            ValueError: they read different ones.
        """
        first = self.sources[0].field_list
        nullable = {field.name for source in self.sources for field in source.field_list if field.nullable}
        for number, source in enumerate(self.sources):
            if (theirs := _types(source.field_list)) != (mine := _types(first)):
                raise ValueError(
                    f"dataset {number} ({source.location}) reads {theirs}, the first ({self.sources[0].location}) {mine}: open "
                    "them with fields= that they share"
                )
        self._warn_of_other_meanings(first)
        return Schema(tuple(replace(field, nullable=field.name in nullable) for field in first))

    def _warn_of_other_meanings(self, fields: Sequence[Field]) -> None:
        """Warns where equal numbers were written for different things, which nothing later on can tell."""
        whole = [field for field in fields if field.kind.removeprefix("u").startswith("int")]
        for fact, what, single in (("classes", "labels", True), ("tokenizer", "tokens", False)):
            # A label is one number; tokens are a ragged field or a window of fixed length.
            if not any((field.shape == () and not field.starred) == single for field in whole):
                continue
            known = [source for source in self.sources if fact in source.metadata]
            for source in known[1:]:
                if canonical_json(source.metadata[fact]) != canonical_json(known[0].metadata[fact]):
                    warnings.warn(
                        f"{source.location} was packed with other {fact!r} than {known[0].location}: equal {what} mean different "
                        "things in them; pack them alike, or open them without that field (fields=)",
                        UserWarning,
                        stacklevel=2,
                    )

    @property
    def num_bytes(self) -> int:
        """Bytes as stored of all samples of all sources."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def engine_name(self) -> str:
        """How this process reads samples; of different sources all ways."""
        return ", ".join(dict.fromkeys(source.engine_name for source in self.sources))

    def bare(self) -> Self:
        """Returns the same without functions of the user's."""
        same = object.__new__(type(self))
        same.__dict__.update(self.__dict__)
        same.sources = tuple(source.bare() for source in self.sources)
        same.decode, same.transform = {}, None
        return same

    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns several batches as columns: by reads that are planned over all of them, source by source."""
        parts: list[list[tuple[Int64, SampleBatch]]] = [[] for _ in batches]
        placed = [self._placed(ids) for ids in batches]
        for number, source in enumerate(self.sources):
            theirs = [replace(source.schema[field.name], kind=field.kind) for field in fields]
            slots = [np.flatnonzero(numbers == number) for numbers, _ in placed]
            # A batch without samples has its columns too.
            with_some = [i for i, ids in enumerate(batches) if len(slots[i]) or not (number or len(ids))]
            asked = [placed[i][1][slots[i]] for i in with_some]
            # Of a batch that is all its own a source fills the buffers; parts of one have no contiguous place in them.
            lent = [buffers[i] if len(slots[i]) == len(batches[i]) else {} for i in with_some]
            read = source.read_batches(asked, lent, theirs) if with_some else []
            for i, batch in zip(with_some, read, strict=True):
                parts[i].append((slots[i], batch))
        return [self._whole(ids, some, lent, fields) for ids, some, lent in zip(batches, parts, buffers, strict=True)]

    def will_need(
        self, sample_ids: Int64, fields: Fields = None, *, rows_announced: bool = False, uses: Uses | None = None
    ) -> None:
        """Tells the operating system that samples will be read soon."""
        for source, ids, mine in self._by_source(sample_ids):
            theirs = None if fields is None else [source.schema[field.name] for field in fields]
            told = None if uses is None else uses[mine]
            source.will_need(ids, theirs, rows_announced=rows_announced, uses=told)

    def will_need_rows(self, sample_ids: Int64) -> None:
        """Tells the operating system that samples will be announced by `will_need` a while later."""
        for source, ids, _ in self._by_source(sample_ids):
            source.will_need_rows(ids)

    def at_hand(self, sample_ids: Int64) -> bool:
        """Tells whether samples are known to be in memory."""
        return all(source.at_hand(ids) for source, ids, _ in self._by_source(sample_ids))

    def lengths(self, name: str, sample_ids: Int64 | None = None) -> Int64:
        """Returns the length of a field's value in samples; see `SampleSource.lengths`."""
        lengthy_field(self, name)
        ids = self._all_ids() if sample_ids is None else sample_ids
        (numbers, own), lengths = self._placed(ids), np.empty(len(ids), dtype=np.int64)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            lengths[mine] = self.sources[number].lengths(name, own[mine])
        return lengths

    def _whole(
        self, ids: Int64, parts: Sequence[tuple[Int64, SampleBatch]], buffers: Buffers, fields: Sequence[Field]
    ) -> SampleBatch:
        if len(parts) != 1:
            return merge_batches(ids, parts, buffers, fields, self.location)
        batch = parts[0][1]
        columns = {field.name: replace(batch.columns[field.name], field=field) for field in fields}
        for field in fields:
            column = columns[field.name]
            if field.nullable and column.valid is None:
                columns[field.name] = replace(column, valid=np.ones(len(ids), dtype=np.bool_))
        return SampleBatch(ids, columns, batch.location)

    def _placed(self, sample_ids: Int64) -> tuple[Int64, Int64]:
        """Returns the number of the source of each sample, and its id there."""
        numbers = np.searchsorted(self.first_ids, sample_ids, side="right") - 1
        return numbers, sample_ids - self.first_ids[numbers]

    def _by_source(self, sample_ids: Int64) -> Iterator[tuple[SampleSource, Int64, NDArray[np.bool_]]]:
        """Yields sources with the ids of their samples, and which of the samples those are."""
        numbers, own = self._placed(sample_ids)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            yield self.sources[number], own[mine], mine


class Concat(Joined):
    """Several sources as one, one after the other. Made by `shardload.concat`."""

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        """Describes them; see `concat`."""
        # One of several is several: flat, so that a read passes one level only.
        if isinstance(sources, SampleSource):
            raise ValueError("there is nothing to join: give a list of at least one dataset")
        flat = [inner for source in sources for inner in (source.sources if isinstance(source, Concat) else [source])]
        super().__init__(flat)
        for source in flat:
            if source.num_ids != len(source) or source.names:
                raise ValueError(
                    f"{source!r} has an order of its own, which is lost in a concat: blend it by a Mixture"
                )

    def __len__(self) -> int:
        return int(self.first_ids[-1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that names what it is made of."""
        facts = {"concat of": [source.fingerprint for source in self.sources]}
        return hashlib.sha256(canonical_json(facts)).hexdigest()


def _types(fields: Sequence[Field]) -> str:
    """Returns what must be equal of fields."""
    return ", ".join(f"{field.name}: {field.type.rstrip('?')}" for field in fields)
