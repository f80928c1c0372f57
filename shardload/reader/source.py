"""`SampleSource`: whatever samples are read from by number."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from shardload.codecs.images import ImageDecode
from shardload.format.schema import Field, Schema, canonical_json
from shardload.order.epoch import EpochOrders
from shardload.order.next_use import Uses
from shardload.order.rng import stand_in_ids
from shardload.order.sample_ids import SampleIds
from shardload.order.selection import Selection, chosen_by_hash, ids_at, resolve_indices, select_from, selection_digest
from shardload.order.shuffle import Shuffle, make_orders
from shardload.reader.access import Buffers
from shardload.reader.batch import SampleBatch
from shardload.reader.columns import read_column, read_hashes, read_lengths
from shardload.reader.decode import decoded
from shardload.reader.issued import issued_batch
from shardload.reader.transform import Transform, apply_transform, takes_rng

Int64 = NDArray[np.int64]
Fields: TypeAlias = Sequence[Field] | None


class SampleSource(ABC):
    """What samples are read from by number: a dataset, or something computed from others. A map-style dataset for torch.

    Loaders and samplers need no more than this. What a subclass has open is this process's own: a pickle carries only the
    description, and a forked child starts anew. Safe to use from several threads.
    """

    location: str
    """Where it lies, for messages."""
    fields: tuple[str, ...] | None
    """Names of the fields that are read; None for all."""
    decode: dict[str, ImageDecode]
    """How images become pixels, by field."""
    transform: Transform | None
    """Called with each sample by `source[i]` and `__getitems__`, or by a loader."""
    stored_kinds: Mapping[str, str] = {}
    """Kinds of integer fields that come wider than stored, by name: `read_batches` also takes them with these in their place."""
    names: tuple[str, ...] = ()
    """Names of the sources, where samples are from several with names."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples."""

    @property
    def num_ids(self) -> int:
        """Sample ids that `orders` may give: from 0 to this. Those from `len` on have no index."""
        return len(self)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 that names the content, and which number each sample has; states go with it."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """All fields."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes as stored of all samples together; from them is planned how far to read ahead."""

    @abstractmethod
    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns several batches as columns, by reads that are planned over all of them.

        Args:
            batches: of each, int64 of shape (batch,), ids that `orders` may give.
            buffers: of each, for fixed fields arrays to be filled and used: stored dtype, shape (batch, *field_shape),
                C-contiguous. They belong to the caller; fields without one get new arrays.
            fields: the fields to read.
        """

    @abstractmethod
    def will_need(
        self, sample_ids: Int64, fields: Fields = None, *, rows_announced: bool = False, uses: Uses | None = None
    ) -> None:
        """Tells the operating system that samples will be read soon, so that it can fetch them meanwhile.

        A file that cannot be read is passed over here: the read itself tells, with the place.

        Args:
            sample_ids: int64 of shape (samples,).
            fields: fields that will be read; None for `field_list`.
            rows_announced: whether `will_need_rows` was told of them a while ago. If not, records and streams are left out
                where row tables are read by page, since their place is not known.
            uses: when each of the samples is read, for a cache that keeps what is needed soonest; None if that is not known.
        """

    @abstractmethod
    def will_need_rows(self, sample_ids: Int64) -> None:
        """Tells the operating system of samples whose rows, if they are read by page, `will_need` will look at later."""

    def at_hand(self, sample_ids: Int64) -> bool:
        """Tells whether samples are known to be in memory, so that no device is waited for."""
        return False

    @property
    @abstractmethod
    def engine_name(self) -> str:
        """How this process reads samples: `map` or `pread`."""

    @abstractmethod
    def bare(self) -> Self:
        """Returns the same source without functions of the user's, for a process that only reads."""

    def orders(self, shuffle: Shuffle) -> EpochOrders:
        """Returns which sample stands at each position of each epoch, mixed as `shuffle` tells."""
        return make_orders(len(self), self.num_bytes, shuffle)

    def source_numbers(self, sample_ids: Int64) -> Int64 | None:
        """Returns the number in `names` of the source of each sample: int64 of the same shape; None without names."""
        return None

    def stand_ins(self, seed: int, epoch: int, sample_id: int, count: int) -> list[int]:
        """Returns other samples to be tried in turn in the place of one that cannot be used; see `stand_in_ids`."""
        return stand_in_ids(seed, epoch, sample_id, len(self), count)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> SampleSource: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Returns one sample as a dict (or what the transform makes of it), or of a slice a view.

        Negative indices count from the end.
        """
        if isinstance(index, slice):
            return self._view(range(len(self))[index])
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | Int64) -> Sequence[Any]:
        """Returns the samples of several indices by one planned batch of reads.

        Returns:
            A sequence that makes each sample's dict when it is asked for; with a transform, the list of its results.

        Raises:
            IndexError: an index is outside the dataset; names it.
            FormatError: a sample is damaged.
            StorageError: a file cannot be read.
        """
        ids = indices if isinstance(indices, SampleIds) else None
        batch = decoded(issued_batch(self, indices) or self.read_batch(self._sample_ids(indices)), self.decode, ids)
        if self.transform is None:
            return batch if ids is None or ids.num_valid is None else batch.with_fillers(ids.num_valid)
        if ids is None and takes_rng(self.transform):
            raise ValueError(
                "the transform takes rng=, which is keyed by seed and epoch: take the ids from "
                "ShardSampler(...).batch_sampler(...), or give the transform to ShardLoader"
            )
        return apply_transform(self.transform, batch, ids)

    def __iter__(self) -> Iterator[Any]:
        """Yields all samples in the order of their ids."""
        for start in range(0, len(self), 256):
            yield from self.__getitems__(range(start, min(start + 256, len(self))))

    @cached_property
    def field_list(self) -> tuple[Field, ...]:
        """The fields that are read, in the order of the schema."""
        if self.fields is None:
            return self.schema.fields
        for name in self.fields:
            if name not in self.schema:
                raise ValueError(
                    f"{self.location}: there is no field {name!r}; the fields are {', '.join(self.schema)}"
                )
        return tuple(field for field in self.schema.fields if field.name in self.fields)

    def read_batch(
        self,
        sample_ids: Int64,
        buffers: Mapping[str, NDArray[Any]] | None = None,
        fields: Sequence[Field] | None = None,
    ) -> SampleBatch:
        """Returns a batch as columns; see `read_batches`.

        Args:
            sample_ids: int64 of shape (batch,).
            buffers: for fixed fields, arrays to be filled and used.
            fields: fields to read; None for `field_list`.
        """
        return self.read_batches([sample_ids], [buffers or {}], self.field_list if fields is None else fields)[0]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts written at packing time, such as `classes`, the names of the labels."""
        return {}

    def select(self, indices: Sequence[int] | Int64 | range) -> SampleSource:
        """Returns a view of some samples in the order given; one may be given twice.

        A view is a source like any other, with ids from 0 and a fingerprint of its own. It holds the ids, or a range.

        Raises:
            IndexError: an index is outside; names it.
        """
        if isinstance(indices, range) and len(indices) and min(indices[0], indices[-1]) >= 0:
            # Its ends say all of a range: nothing else is looked at, and it takes no memory.
            self._sample_ids([indices[0], indices[-1]])
            return self._view(indices)
        return self._view(self._sample_ids(indices))

    def split(self, fraction: float, seed: int = 0, by: str | None = None) -> tuple[SampleSource, SampleSource]:
        """Returns two views: all other samples, and about a fraction of them, chosen by hash: `train, validation = ...`.

        Each one's side depends on its id, or the value of a field, and the seed alone: samples appended later move none that
        were there, and samples that share a value are never parted.

        Args:
            fraction: the part of the second view, from 0 to 1.
            seed: for another choice.
            by: name of a field of integers, bytes or str whose value decides, such as the key, a speaker or a document; None
                for the id. Reads the field in all samples.
        """
        mine = np.arange(len(self._all_ids()), dtype=np.int64)
        numbers = self._root_ids(mine).astype(np.uint64) if by is None else self.hashes(by)
        chosen = chosen_by_hash(numbers, fraction, seed)
        return self._view(mine[~chosen]), self._view(mine[chosen])

    def filter_by(self, names: str | Sequence[str], predicate: Callable[..., Any]) -> SampleSource:
        """Returns a view of the samples for which a function of their columns is true.

        Args:
            names: fields: one, or several.
            predicate: called once with an array of shape (samples, ...) for each of them, what `column` or `lengths` gives;
                returns bool of shape (samples,). Where that is masked, as a value is missing, the sample is left out.
        """
        columns = [self._facts_of(name) for name in ([names] if isinstance(names, str) else names)]
        # An answer about a missing value is none: what lies under the mask may be True.
        kept = np.asarray(np.ma.filled(predicate(*columns), False))
        if kept.shape != (len(self),) or kept.dtype != np.bool_:
            raise ValueError(
                f"filter_by: the predicate must return a bool array of shape ({len(self)},), one for each sample, not "
                f"{kept.dtype} of shape {kept.shape}"
            )
        return self._view(np.flatnonzero(kept))

    def column(self, name: str, sample_ids: Int64 | None = None) -> NDArray[Any]:
        """Returns a fixed field of samples: array of shape (samples, *field_shape); bfloat16 as float32.

        Of a nullable field a masked array, masked where the value is missing.

        Args:
            name: the field.
            sample_ids: int64 of shape (samples,); None for all of them.
        """
        return read_column(self, name, self._all_ids() if sample_ids is None else sample_ids)

    def lengths(self, name: str, sample_ids: Int64 | None = None) -> Int64:
        """Returns the length of a field's value in samples: int64 of shape (samples,).

        That is bytes of a bytes, str, json or media field, and items of a ragged one; 0 where a value is missing.

        Args:
            name: the field.
            sample_ids: int64 of shape (samples,); None for all of them.
        """
        return read_lengths(self, name, self._all_ids() if sample_ids is None else sample_ids)

    def _view(self, selection: Selection) -> SampleSource:
        same = isinstance(selection, range) and selection == range(len(self))
        return self if same else View(self, selection)

    def _root_ids(self, sample_ids: Int64) -> Int64:
        """Returns the ids of samples in what this is a view of."""
        return sample_ids

    def _facts_of(self, name: str) -> NDArray[Any]:
        field = self.schema.get(name)
        return self.column(name) if field is None or field.fixed else self.lengths(name)

    def hashes(self, name: str) -> NDArray[np.uint64]:
        """Returns what names the value of a field in each sample: uint64 of shape (samples,), equal for equal values.

        Args:
            name: a field of integers, bytes or str without missing values.
        """
        return read_hashes(self, name, self._all_ids())

    def _all_ids(self) -> Int64:
        return self._sample_ids(np.arange(len(self), dtype=np.int64))

    def _sample_ids(self, indices: Sequence[int] | Int64) -> Int64:
        """Returns indices as sample ids, those below 0 counted from the end."""
        return resolve_indices(indices, len(self), self.location)


class View(SampleSource):
    """Some samples of another source, in an order of their own. Made by slices, `select`, `split` and `filter_by`.

    A view of a view is one of what that is a view of. Reads, fields, decoders and transform are those of the source.
    """

    def __init__(self, source: SampleSource, selection: Selection) -> None:
        """Describes the view.

        Args:
            source: what it is a view of.
            selection: the samples: places in the source, each from 0 to its length.
        """
        if isinstance(source, View):
            selection = select_from(source.selection, selection)
            source = source.source
        self.source: SampleSource = source
        self.selection: Selection = selection
        self.location, self.fields = source.location, source.fields
        self.decode, self.transform, self.stored_kinds = source.decode, source.transform, source.stored_kinds

    def __repr__(self) -> str:
        return f"<View of {len(self)} samples of {self.source!r}>"

    def __len__(self) -> int:
        return len(self.selection)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that names what it is a view of and its samples."""
        facts = {"view of": self.source.fingerprint, "samples": selection_digest(self.selection)}
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    @property
    def schema(self) -> Schema:
        """All fields of the source."""
        return self.source.schema

    @property
    def num_bytes(self) -> int:
        """About the bytes of its samples, as if all of the source were of one size."""
        return self.source.num_bytes * len(self) // max(1, len(self.source))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """That of the source."""
        return self.source.metadata

    @property
    def engine_name(self) -> str:
        """How this process reads samples: `map` or `pread`."""
        return self.source.engine_name

    def bare(self) -> Self:
        """Returns the same view without functions of the user's."""
        return type(self)(self.source.bare(), self.selection)

    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns several batches as columns, by reads that are planned over all of them."""
        read = self.source.read_batches([self._ids(ids) for ids in batches], buffers, fields)
        return [replace(batch, sample_ids=ids) for batch, ids in zip(read, batches, strict=True)]

    def will_need(
        self, sample_ids: Int64, fields: Fields = None, *, rows_announced: bool = False, uses: Uses | None = None
    ) -> None:
        """Tells the operating system that samples will be read soon."""
        self.source.will_need(self._ids(sample_ids), fields, rows_announced=rows_announced, uses=uses)

    def will_need_rows(self, sample_ids: Int64) -> None:
        """Tells the operating system that samples will be announced by `will_need` a while later."""
        self.source.will_need_rows(self._ids(sample_ids))

    def at_hand(self, sample_ids: Int64) -> bool:
        """Tells whether samples are known to be in memory."""
        return self.source.at_hand(self._ids(sample_ids))

    def column(self, name: str, sample_ids: Int64 | None = None) -> NDArray[Any]:
        """Returns a fixed field of samples; see `SampleSource.column`."""
        return self.source.column(name, self._ids(sample_ids))

    def lengths(self, name: str, sample_ids: Int64 | None = None) -> Int64:
        """Returns the length of a field's value in samples; see `SampleSource.lengths`."""
        return self.source.lengths(name, self._ids(sample_ids))

    def _root_ids(self, sample_ids: Int64) -> Int64:
        return self._ids(sample_ids)

    def _ids(self, sample_ids: Int64 | None) -> Int64:
        """Returns the ids in the source of samples, or of all."""
        if sample_ids is None:
            sample_ids = np.arange(len(self), dtype=np.int64)
        return self.source._sample_ids(ids_at(self.selection, sample_ids))
