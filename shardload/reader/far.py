"""Sources that are a request away: whether one is, what was fetched of it, and what came from a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shardload.reader.concat import Joined
from shardload.reader.dataset import ShardDataset
from shardload.reader.source import SampleSource, View
from shardload.reader.windows import TokenWindows
from shardload.storage import CachedStorage
from shardload.telemetry import CacheStats, Transfers


def is_far(source: SampleSource) -> bool:
    """Tells whether any part of a source is read from a URL."""
    return any(dataset.far for dataset in _datasets(source))


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a process has had from stores, and from caches before them."""

    transfers: Transfers = field(default_factory=Transfers)
    retries: dict[str, int] = field(default_factory=dict)
    """How often stores had to be asked again, by what had gone wrong."""
    cache: CacheStats = field(default_factory=CacheStats)

    def __add__(self, other: Fetched) -> Fetched:
        retries = dict(Counter(self.retries) + Counter(other.retries))
        return Fetched(self.transfers + other.transfers, retries, self.cache + other.cache)

    def newer(self, other: Fetched) -> Fetched:
        """Returns the later one of two of the same process: what they count only grows."""
        return max(self, other, key=lambda one: (one.transfers.num_requests, one.transfers.needed_bytes))


def fetched_of(source: SampleSource) -> Fetched:
    """Returns what this process has fetched of the parts of a source that are read from URLs."""
    different = list({id(dataset): dataset for dataset in _datasets(source)}.values())
    transfers = sum((dataset.transfers() for dataset in different), Transfers())
    retries = sum((Counter(dataset.num_retries) for dataset in different), Counter[str]())
    return Fetched(transfers, dict(retries), cache_stats(source))


def is_cached(source: SampleSource) -> bool:
    """Tells whether any part of a source is read through a cache on a disk."""
    return any(isinstance(dataset.storage, CachedStorage) for dataset in _datasets(source))


def cache_stats(source: SampleSource) -> CacheStats:
    """Returns what this process has done with the caches of a source, together."""
    storages = [dataset.storage for dataset in _datasets(source)]
    different = {id(storage): storage.cache.told() for storage in storages if isinstance(storage, CachedStorage)}
    return sum(different.values(), CacheStats())


def _datasets(source: SampleSource) -> Iterator[ShardDataset]:
    if isinstance(source, ShardDataset):
        yield source
    elif isinstance(source, View):
        yield from _datasets(source.source)
    elif isinstance(source, TokenWindows):
        yield from _datasets(source.dataset)
    elif isinstance(source, Joined):
        for one in source.sources:
            yield from _datasets(one)
