"""Sources that are a request away: whether one is, what was fetched of it, and what came from a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from shardload.reader.concat import Joined
from shardload.reader.dataset import ShardDataset
from shardload.reader.source import SampleSource, View
from shardload.reader.windows import TokenWindows
from shardload.storage import CachedStorage
from shardload.telemetry import CacheStats, Transfers


def is_far(source: SampleSource) -> bool:
    """Tells whether any part of a source is read from a URL."""
    return any(dataset.far for dataset in _datasets(source))


def transfers_of(source: SampleSource) -> Transfers:
    """Returns what this process has fetched of the parts of a source that are read from URLs."""
    different = {id(dataset): dataset for dataset in _datasets(source)}
    return sum((dataset.transfers() for dataset in different.values()), Transfers())


def retries_of(source: SampleSource) -> dict[str, int]:
    """Returns how often this process had to ask stores again for parts of a source, by what had gone wrong."""
    different = {id(dataset): dataset for dataset in _datasets(source)}
    return dict(sum((Counter(dataset.num_retries) for dataset in different.values()), Counter()))


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
