"""`TokenWindows`: windows of one size over a ragged field, as if all samples stood end to end."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError, ShardloadError
from shardload.format.ragged import Ragged
from shardload.format.schema import Field, Schema, canonical_json
from shardload.memory.byte_strings import keep_freed_memory
from shardload.order.epoch import EpochOrders
from shardload.order.next_use import Uses
from shardload.order.selection import resolve_indices
from shardload.order.shuffle import Shuffle
from shardload.order.windows import PhasedOrders, WindowGrid
from shardload.quantities import as_integer
from shardload.reader.access import Access, Buffers
from shardload.reader.batch import Column, SampleBatch
from shardload.reader.dataset import ShardDataset
from shardload.reader.documents import AllDocuments, ChosenDocuments, Documents
from shardload.reader.source import Fields, SampleSource, View
from shardload.reader.transform import Transform

Int64 = NDArray[np.int64]
Phase = Literal["fixed", "epoch"]

INPUT, LABEL = "input_ids", "labels"
DOCUMENT_FIELDS = ("doc_id", "position_ids", "cu_seqlens")
_WIDENED = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32"})
_CHUNK_BYTES = 5 << 18
"""So many bytes as stored are read at a time, those of a larger window at once: they are widened while the processor has them."""


class TokenWindows(SampleSource):
    """Windows of one length over a ragged field of numbers, as if the items of all samples stood end to end.

    ```python
    windows = shardload.TokenWindows(shardload.open("out/"), "tokens", length=2048, phase="epoch")
    for batch in shardload.ShardLoader(windows, batch_size=32, shuffle=True):
        batch["input_ids"], batch["labels"]     # int64 tensors of shape (32, 2048)
    ```

    A map-style dataset: each window is a sample, of the fields `input_ids` and `labels`, which are arrays of shape
    (length, *item_shape). Integers come as int64, whatever they are stored as; uint64 and other numbers as stored (and a loader
    makes int64 of uint64). Window w starts at item w * stride and takes `length + shift` items; only windows that
    have all of them count. So fewer than stride + shift items at the end of the stream are in no `input_ids`; with
    `phase="epoch"` fewer than 2 * stride + shift at both ends together, others in each epoch. Reads the blocks of 4 KiB that a
    window lies in, however long the samples are.
    """

    def __init__(
        self,
        dataset: ShardDataset | View,
        field: str,
        length: int,
        stride: int | None = None,
        shift: int = 1,
        *,
        documents: bool | Sequence[str] = False,
        phase: Phase = "fixed",
        transform: Transform | None = None,
    ) -> None:
        """Describes the windows; nothing is read but what opening the dataset has read.

        Args:
            dataset: what `shardload.open` gave, or a view of it, whose samples then stand end to end in the view's order: of
                these the lengths are read before anything else, and kept with 8 bytes each. Its own fields and decoders do not
                matter here.
            field: name of a ragged field of numbers that is not compressed, such as `uint16[*]`. Where it is missing (in a
                nullable field) or empty a sample has no items.
            length: items of a window.
            stride: items from the start of one window to that of the next; less than `length` to overlap. None: `length`.
            shift: how many items behind `input_ids` the `labels` start. 0 for models that shift labels themselves.
            documents: what is given of the samples that a window has parts of; True for all of: `doc_id`, int64 of shape
                (length,), the sample id of each item, in the dataset or the view; `position_ids`, int64 of shape (length,), which
                count from 0 at the window's start and at each sample's; and `cu_seqlens`, int32 of shape (parts + 1,), where
                parts start and the last one ends.
            phase: `epoch` moves all windows of an epoch by one number of items below the stride, drawn by seed and epoch, so
                that windows are cut at other places in each epoch. There are then as many windows as fit wherever they are moved
                to, and windows of other epochs have ids from `len(windows)` on. Views of windows are not moved.
            transform: as for `shardload.open`, called with a window.

        Raises:
            TypeError: not a dataset of `shardload.open`.
            ValueError: the field has no stream, or a size cannot be.
        """
        view = dataset if isinstance(dataset, View) else None
        source = dataset if view is None else view.source
        if not isinstance(source, ShardDataset):
            kind = type(source).__name__ if view is None else f"view of a {type(source).__name__}"
            raise TypeError(
                f"windows are made of a dataset of shardload.open, or of a view of one, not of a {kind}: make windows of each, and "
                "join them (shardload.concat, shardload.Mixture) or take views of them (select, split)"
            )
        if dataset.transform is not None:
            raise ValueError(
                "the dataset has a transform, which is for its samples: give one for windows to TokenWindows instead"
            )
        if phase not in get_args(Phase):
            raise ValueError(f"phase must be 'fixed' or 'epoch', not {phase!r}")
        self.location = dataset.location
        self.fields = None
        self.decode = {}
        self.transform = transform
        self.dataset = source
        self.view = view
        """Whose samples stand end to end; None for all of the dataset's."""
        self.field = _stream_field(source, field)
        """The field that windows are cut from, in the dataset's schema."""
        self.stored_kinds = dict.fromkeys((INPUT, LABEL), self.field.kind) if self.field.kind in _WIDENED else {}
        self.length = as_integer(length, "length", 1)
        self.stride = self.length if stride is None else as_integer(stride, "stride", 1)
        self.shift = as_integer(shift, "shift")
        self.documents = _document_fields(documents)
        """What is given of the samples that a window has parts of, by name."""
        self.phase: Phase = phase

    def __getstate__(self) -> dict[str, Any]:
        # What is worked out of the rest is large beside it.
        return {
            name: own
            for name, own in vars(self).items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }

    def __repr__(self) -> str:
        size = f"length {self.length}, stride {self.stride}, shift {self.shift}"
        return f"<TokenWindows {self.location!r} {self.field.name!r}: {len(self)} windows of {size}>"

    def __len__(self) -> int:
        return self._grid.num_windows

    @property
    def num_ids(self) -> int:
        """Windows of all phases together."""
        return len(self) * self._grid.num_phases

    @property
    def num_items(self) -> int:
        """Items of the field in all samples."""
        return self._grid.num_items

    @cached_property
    def schema(self) -> Schema:
        """The fields of a window."""
        kind = "int64" if self.field.kind in _WIDENED else self.field.kind
        items = Field(INPUT, kind, (self.length, *self.field.shape))
        number = Field("", "int64", (self.length,))
        parts = {name: replace(number, name=name) for name in DOCUMENT_FIELDS}
        parts["cu_seqlens"] = Field("cu_seqlens", "int32", starred=True)
        return Schema((items, replace(items, name=LABEL), *(parts[name] for name in self.documents)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the dataset's fingerprint and of how windows are cut: field, length, stride, shift and phase."""
        facts = {name: getattr(self, name) for name in ("length", "stride", "shift", "phase")}
        facts |= {
            "source": "token windows",
            "version": 1,
            "dataset": (self.dataset if self.view is None else self.view).fingerprint,
            "field": self.field.name,
        }
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes as stored of all windows together."""
        return len(self) * (self.length + self.shift) * self.field.num_bytes

    @property
    def metadata(self) -> Mapping[str, Any]:
        """That of the dataset."""
        return self.dataset.metadata

    @property
    def engine_name(self) -> str:
        """How this process reads: `map` or `pread`."""
        return self.dataset.engine_name

    def bare(self) -> Self:
        """Returns the same windows without transform."""
        same = object.__new__(type(self))
        dataset = self.dataset.bare()
        view = None if self.view is None else View(dataset, self.view.selection)
        same.__dict__.update(self.__getstate__() | {"transform": None, "dataset": dataset, "view": view})
        return same

    def orders(self, shuffle: Shuffle) -> EpochOrders:
        """Returns which window stands at each position of each epoch.

        Raises:
            ValueError: there are no windows.
        """
        if not len(self):
            raise ValueError(self._too_few())
        orders = super().orders(shuffle)
        return PhasedOrders(len(self), orders, self._grid.num_phases) if self.phase == "epoch" else orders

    def starts(self, window_ids: Int64) -> Int64:
        """Returns the first item of windows, counted over the whole dataset: int64 of the shape of `window_ids`."""
        return self._grid.starts(self._sample_ids(window_ids.reshape(-1).tolist())).reshape(window_ids.shape)

    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns several batches of windows as columns, by reads that are planned over all of them."""
        names, ids = {field.name for field in fields}, np.concatenate(batches)
        parts = [slice(first, last) for first, last in pairwise(accumulate(map(len, batches), initial=0))]
        fixed = [field for field in fields if field.fixed]
        made: list[dict[str, Any]] = [
            {f.name: lent[f.name] if f.name in lent else np.empty((len(own), *f.shape), f.dtype) for f in fixed}
            for own, lent in zip(batches, buffers, strict=True)
        ]
        access = self.dataset._process_access()
        if {INPUT, LABEL} & names:
            self._read_items(access, ids, parts, made)
        if set(self.documents) & names:
            self._read_documents(access, ids, parts, made)
        columns = ({field.name: Column(field, values[field.name]) for field in fields} for values in made)
        return [SampleBatch(own, mine, self.location) for own, mine in zip(batches, columns, strict=True)]

    def will_need(
        self, sample_ids: Int64, fields: Fields = None, *, rows_announced: bool = False, uses: Uses | None = None
    ) -> None:
        """Tells the operating system that windows will be read soon."""
        names = {field.name for field in (self.field_list if fields is None else fields)}
        if {INPUT, LABEL} & names:
            with contextlib.suppress(ShardloadError, OSError):
                access, starts = self.dataset._process_access(), self._grid.starts(sample_ids)
                ranges = self._documents.ranges(access, starts, self.length + self.shift)
                access.announcements.call(sample_ids, access.will_need_items, self.field, ranges)

    def at_hand(self, sample_ids: Int64) -> bool:
        """Tells whether windows are known to be in memory."""
        access = self.dataset._process_access()
        ranges = self._documents.ranges(access, self._grid.starts(sample_ids), self.length + self.shift)
        return self.dataset._shards_at_hand(ranges.shard_ids)

    def will_need_rows(self, sample_ids: Int64) -> None:
        """Does nothing: which rows windows lie in is only known once they are searched."""

    def _read_items(self, access: Access, ids: Int64, parts: Sequence[slice], made: Sequence[dict[str, Any]]) -> None:
        """Fills the arrays of inputs and labels of batches, which are parts of the ids."""
        size = self.length + self.shift
        ranges = self._documents.ranges(access, self._grid.starts(ids), size)
        access.announcements.let_pass(ids)
        due = access.will_need_items(self.field, ranges)
        step = max(1, _CHUNK_BYTES // (size * self.field.num_bytes))
        keep_freed_memory()
        for first in range(0, len(ids), step):
            items = np.empty((min(step, len(ids) - first), size, *self.field.shape), self.field.dtype)
            some = ranges if step >= len(ids) else ranges.of(first, first + step)
            access.read_items(
                self.field, some, items.reshape(-1).view(np.uint8), lambda slot: f"window {ids[slot]}", due
            )
            for part, values in zip(parts, made, strict=True):
                start, stop = max(part.start, first), min(part.stop, first + step)
                for name, skipped in ((INPUT, 0), (LABEL, self.shift)):
                    if name in values and start < stop:
                        own = items[start - first : stop - first, skipped : skipped + self.length]
                        values[name][start - part.start : stop - part.start] = own

    def _read_documents(
        self, access: Access, ids: Int64, parts: Sequence[slice], made: Sequence[dict[str, Any]]
    ) -> None:
        """Makes what is asked for of `DOCUMENT_FIELDS` for batches, which are parts of the ids."""
        segments = self._documents.segments(access, self._grid.starts(ids), self.length)
        for part, values in zip(parts, made, strict=True):
            first, stop = np.searchsorted(segments.slots, [part.start, part.stop])
            own, lengths = segments.sample_ids[first:stop], segments.lengths[first:stop]
            starts = np.cumsum(lengths) - lengths
            # Sums of steps, in place: arrays of one number an item are large beside what was read.
            for name, step, at_start in (
                ("doc_id", 0, np.diff(own, prepend=0)),
                ("position_ids", 1, 1 - np.concatenate([[1], lengths[:-1]])[: len(lengths)]),
            ):
                if name in values:
                    flat = values[name].reshape(-1)
                    flat.fill(step)
                    flat[starts] = at_start
                    np.cumsum(flat, out=flat)
            slots = segments.slots[first:stop] - part.start
            values["cu_seqlens"] = _bounds(slots, starts + lengths - slots * self.length, part.stop - part.start)

    @cached_property
    def _documents(self) -> Documents:
        if self.view is None:
            return AllDocuments(self.field, self._first_items)
        lengths = self.view.lengths(self.field.name)
        return ChosenDocuments(self.field, self.view.selection, np.concatenate([[0], np.cumsum(lengths)]))

    @cached_property
    def _first_items(self) -> Int64:
        """The item at which each shard starts, and the total at the end: int64 of shape (shards + 1,)."""
        entries, number = self.dataset.table.entries, self.dataset.schema.stream_fields.index(self.field)
        counts = entries["num_items"][:, number]
        # Shards are looked at when they are read; until then no sum may wrap.
        most = entries["num_bytes"] // np.uint64(self.field.num_bytes)
        if (counts > most).any() or self.dataset.manifest.num_bytes >= 1 << 62:
            shard = self.dataset.table[int(np.argmax(counts > most))].name
            message = f"{self.location}: the shard table gives {shard} more items of {self.field.name!r} than it has bytes for"
            raise FormatError(message, dataset=self.location, shard=shard)
        return np.concatenate([[0], np.cumsum(counts.astype(np.int64))])

    @cached_property
    def _grid(self) -> WindowGrid:
        return WindowGrid(self._documents.num_items, self.length, self.stride, self.shift, self.phase == "epoch")

    def _sample_ids(self, indices: Sequence[int] | Int64) -> Int64:
        """Returns indices as window ids, those below 0 counted from the end; ids of other epochs are from `len` on."""
        if len(indices) and not len(self):
            raise IndexError(self._too_few())
        ids = resolve_indices(indices, self.num_ids, self.location)
        below = np.array([index < 0 for index in indices], dtype=np.bool_)
        ids[below] -= self.num_ids - len(self)
        if (ids < 0).any():
            raise IndexError(f"{self.location}: window {ids.min() - len(self)} is out of range: there are {len(self)}")
        return ids

    def _too_few(self) -> str:
        return (
            f"{self.location}: field {self.field.name!r} has {self.num_items:,} items in all, and a window takes "
            f"{self.length + self.shift:,} (length {self.length:,}, shift {self.shift:,}): make length or shift smaller"
        )


def _bounds(slots: Int64, ends: Int64, num_windows: int) -> Ragged:
    """Returns 0 and then the ends of each window's parts.

    Args:
        slots: the window of each part, not falling: int64 of shape (parts,).
        ends: the item of its window after the last of each part: int64 of shape (parts,).
        num_windows: how many windows there are.
    """
    offsets = np.concatenate([[0], np.cumsum(np.bincount(slots, minlength=num_windows) + 1)])
    bounds, inner = np.zeros(offsets[-1], dtype=np.int32), np.ones(offsets[-1], dtype=np.bool_)
    inner[offsets[:-1]] = False
    bounds[inner] = ends
    return Ragged(bounds, offsets)


def _stream_field(dataset: ShardDataset, name: str) -> Field:
    """Returns a field whose items can be read without the samples around them.

    Raises:
        ValueError: there is none of that name; says which there are, or what to do.
    """
    field = dataset.schema.get(name)
    if field is not None and field.streamed:
        return field
    if field is not None and field.ragged:
        raise ValueError(
            f"{dataset.location}: {name!r} is compressed with each sample, so that a window would cost the whole samples around "
            f'it: write it with {{"type": "{field.type}", "compression": "none"}}'
        )
    kind = "there is no field" if field is None else f"{field.type} is no ragged array of numbers: field"
    streams = ", ".join(f"{one.name} ({one.type})" for one in dataset.schema.stream_fields) or "none"
    raise ValueError(f"{dataset.location}: {kind} {name!r}; windows are cut from fields such as uint16[*]: {streams}")


def _document_fields(documents: bool | Sequence[str]) -> tuple[str, ...]:
    names = DOCUMENT_FIELDS if documents is True else () if documents is False else tuple(documents)
    if isinstance(documents, str) or not set(names) <= set(DOCUMENT_FIELDS):
        raise ValueError(f"documents must be True or names of {', '.join(DOCUMENT_FIELDS)}, not {documents!r}"[:200])
    return tuple(name for name in DOCUMENT_FIELDS if name in names)
