"""The items of all documents end to end: of a dataset, or of a view in its order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field
from shardload.order.selection import Selection, ids_at
from shardload.planner import ItemRanges, cut_by_shard
from shardload.reader.access import Access
from shardload.reader.items import NO_SEGMENTS, Segments

Int64 = NDArray[np.int64]


class Documents(Protocol):
    """Items of documents as if they stood end to end."""

    @property
    def num_items(self) -> int:
        """Items of all documents."""
        ...

    def ranges(self, access: Access, starts: Int64, length: int) -> ItemRanges:
        """Returns where ranges of items lie in the streams of shards.

        Args:
            access: what the documents' dataset is read through.
            starts: first item of each, counted over all documents: int64 of shape (ranges,).
            length: items of each; at least 1.
        """
        ...

    def segments(self, access: Access, starts: Int64, length: int) -> Segments:
        """Returns the parts of documents that such ranges consist of."""
        ...


@dataclass(frozen=True)
class AllDocuments:
    """Those of a dataset, which lie as they are counted."""

    field: Field
    first_items: Int64
    """The item at which each shard starts, and the total at the end: int64 of shape (shards + 1,)."""

    @property
    def num_items(self) -> int:
        """Items of all documents."""
        return int(self.first_items[-1])

    def ranges(self, access: Access, starts: Int64, length: int) -> ItemRanges:
        """Returns where ranges of items lie in the streams of shards."""
        return cut_by_shard(starts, length, self.first_items)

    def segments(self, access: Access, starts: Int64, length: int) -> Segments:
        """Returns the parts of documents that ranges consist of, by their ids in the dataset."""
        ranges = cut_by_shard(starts, length, self.first_items)
        return access.segments(self.field, ranges) if len(ranges) else NO_SEGMENTS


@dataclass(frozen=True)
class ChosenDocuments:
    """Those of a view, in its order; one may come twice. Of each the first item is known, and its place is looked up."""

    field: Field
    selection: Selection
    """The documents, as places in the dataset."""
    first_items: Int64
    """The item at which each document starts, and the total at the end: int64 of shape (documents + 1,)."""

    @property
    def num_items(self) -> int:
        """Items of all documents."""
        return int(self.first_items[-1])

    def ranges(self, access: Access, starts: Int64, length: int) -> ItemRanges:
        """Returns where ranges of items lie in the streams of shards, joined where documents lie as they are counted.

        Raises:
            FormatError: a document's items cannot lie where its packed row says; names shard and sample.
        """
        parts = self._parts(starts, length)
        if not len(parts):
            return parts
        shard_ids, firsts = access.item_places(self.field, ids_at(self.selection, parts.shard_ids))
        low, high = parts.low + firsts, parts.high + firsts
        apart = (np.diff(parts.slots) != 0) | (np.diff(shard_ids) != 0) | (low[1:] != high[:-1])
        edges = np.flatnonzero(np.concatenate([[True], apart]))
        ends = np.append(edges[1:], len(low)) - 1
        return ItemRanges(parts.slots[edges], shard_ids[edges], low[edges], high[ends])

    def segments(self, access: Access, starts: Int64, length: int) -> Segments:
        """Returns the parts of documents that ranges consist of, by their numbers in the view."""
        parts = self._parts(starts, length)
        return Segments(parts.slots, parts.shard_ids, parts.high - parts.low)

    def _parts(self, starts: Int64, length: int) -> ItemRanges:
        """Returns which items of which documents ranges have: documents stand where shards would."""
        return cut_by_shard(starts, length, self.first_items)
