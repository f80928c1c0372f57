"""`ShardDataset`: a packed dataset as a torch map-style dataset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from shardload.codecs.images import ImageDecode
from shardload.errors import ShardloadError
from shardload.format.external import ExternalFile
from shardload.format.keys import key_bytes, key_digest
from shardload.format.manifest import Manifest, Metadata
from shardload.format.schema import Field, Schema
from shardload.format.statistics import FieldStatistics
from shardload.format.table import ShardTable
from shardload.order.next_use import Uses
from shardload.quantities import parse_bytes
from shardload.reader.access import Access, Buffers
from shardload.reader.batch import SampleBatch
from shardload.reader.checks import Verify
from shardload.reader.columns import lengthy_field
from shardload.reader.decode import check_decoders
from shardload.reader.engine_choice import EngineName, check_engine
from shardload.reader.map_engine import MapEngine
from shardload.reader.places import SamplePlace
from shardload.reader.snapshot import Snapshot, read_snapshot
from shardload.reader.source import Fields, SampleSource
from shardload.reader.transform import Transform
from shardload.storage import CachedStorage, LocalStorage, Storage, storage_of
from shardload.telemetry import Transfers

Int64 = NDArray[np.int64]


def open_dataset(
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_limit: int | str | None = None,
    fields: Sequence[str] | None = None,
    decode: Mapping[str, ImageDecode] | None = None,
    transform: Transform | None = None,
    version: int | None = None,
    fingerprint: str | None = None,
    verify: Verify = "auto",
    engine: EngineName = "auto",
) -> ShardDataset:
    """Opens a dataset: reads its manifest and shard table, checks them, and leaves nothing open.

    Args:
        path: directory of the dataset, or its URL, such as `s3://bucket/data` or `https://host/data`.
        storage_options: for a URL, options of fsspec's file system for it, such as `key`, `secret` and `endpoint_url` of s3; what
            is not given comes from where the libraries look (environment, profile). They stand in no message, state or manifest,
            but travel in pickles of the dataset, as does a URL with what is secret in it: workers read by them. Those below
            `shardload` say how requests are made again: `deadline`, `progress_timeout` and `first_wait` (times, as 60 or
            "1min") and `retries`.
        cache_dir: for a URL, a directory on a local disk that keeps what was fetched, for this job and others: all processes of
            a node may share it. It is made if it is not there, and holds nothing but the cache. None for no cache.
        cache_limit: what it may take on the disk, such as "200GB", over all jobs that use it: they give the same.
        fields: names of the fields to read; None for all.
        decode: `ImageDecode` by name of a jpeg or png field: samples then hold uint8 arrays of shape (3, height, width). Random
            crops and flips are keyed by (seed, epoch, sample id), as `rng` below.
        transform: called with each sample (a dict) by `dataset[i]` and `__getitems__`; what it returns takes the
            sample's place. With a parameter `rng` it is given a numpy generator keyed by (seed, epoch, sample id), for
            which the ids must come from `ShardSampler(...).batch_sampler(...)`.
        version: version to open; None for the current one.
        fingerprint: the fingerprint the dataset must have.
        verify: when checksums are compared. `auto`: once per process and block while the dataset fits half of the free
            memory, else at every read; `once`; `always`; `off`. Rows, heads and the manifest are always checked.
        engine: how samples are read. `map`: all shards mapped, about a thousand ranges a call; `pread`: one positioned read
            after the other; `ranges`: what is announced is merged and fetched ahead, many ranges at a time; `auto`: `ranges`
            for URLs, else `map` unless the file system is a network's or the system does not allow it.

    Raises:
        StorageError: there is no dataset, or it cannot be read.
        FormatError: it is damaged, or written in a format this version does not read.
        StateMismatchError: it does not have the fingerprint.
    """
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {', '.join(get_args(Verify))}, not {verify!r}")
    name = check_engine(engine)
    storage = _cached(storage_of(path, storage_options), cache_dir, cache_limit)
    dataset = ShardDataset(storage, fields, decode, transform, version, fingerprint, verify, name)
    check_decoders(dataset.decode, dataset.field_list)
    return dataset


def _cached(storage: Storage, cache_dir: str | os.PathLike[str] | None, cache_limit: int | str | None) -> Storage:
    """Returns a storage with a cache, if one is asked for."""
    if cache_dir is None:
        if cache_limit is not None:
            raise ValueError("cache_limit is what a cache may take: give its directory too, by cache_dir")
        return storage
    if isinstance(storage, LocalStorage):
        raise ValueError(f"cache_dir is for URLs: {storage.root} is a directory, and is read where it lies")
    if cache_limit is None:
        raise ValueError('cache_dir needs cache_limit, what the cache may take on the disk, such as "200GB"')
    cached = CachedStorage(storage, os.path.abspath(cache_dir), parse_bytes(cache_limit, "cache_limit"))
    cached.check()
    return cached


class ShardDataset(SampleSource):
    """A packed dataset with random access: a map-style dataset for torch's DataLoader.

    Made by `shardload.open`. Holds no file open before the first read, then what a process reads through is its own:
    a forked child starts anew, and a pickle carries only the description (location, version, fingerprint, settings).
    Safe to use from several threads.
    """

    def __init__(
        self,
        storage: Storage,
        fields: Sequence[str] | None,
        decode: Mapping[str, ImageDecode] | None,
        transform: Transform | None,
        version: int | None,
        fingerprint: str | None,
        verify: Verify,
        engine: EngineName,
    ) -> None:
        self.location = storage.root
        self._storage = storage
        self.fields = None if fields is None else tuple(fields)
        self.transform = transform
        self.decode = dict(decode or {})
        self.verify: Verify = verify
        self.engine: EngineName = engine
        self._version = version
        self._pinned = fingerprint
        self._access: Access | None = None
        if isinstance(fields, str):
            raise TypeError(f"fields must be a list of names, not the text {fields!r}")

    def __getstate__(self) -> dict[str, Any]:
        state = {
            name: getattr(self, name) for name in ("location", "fields", "decode", "transform", "verify", "engine")
        }
        if not isinstance(self._storage, LocalStorage):
            state["_storage"] = self._storage
        return state | {"_version": self.manifest.version, "_pinned": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._storage = LocalStorage(state["location"])
        self.__dict__.update(state)
        self._access = None

    def __repr__(self) -> str:
        return f"<ShardDataset {self.location!r}: {len(self)} samples {self.schema}>"

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version that is open."""
        return self._snapshot.manifest

    @property
    def table(self) -> ShardTable:
        """The shard table."""
        return self._snapshot.table

    @property
    def schema(self) -> Schema:
        """All fields of the dataset."""
        return self.manifest.parsed_schema

    @property
    def fingerprint(self) -> str:
        """SHA-256 that names the content."""
        return self.manifest.fingerprint

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards, and of the existing files that records lie in."""
        return self.manifest.num_bytes + self.manifest.external_bytes

    @property
    def metadata(self) -> Metadata:
        """Facts written at packing time, such as `classes`, the names of the labels."""
        return self.manifest.metadata

    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field]
    ) -> list[SampleBatch]:
        """Returns several batches as columns, by reads that are planned over all of them."""
        return self._process_access().read_batches(batches, buffers, fields)

    def will_need(
        self, sample_ids: Int64, fields: Fields = None, *, rows_announced: bool = False, uses: Uses | None = None
    ) -> None:
        """Tells the operating system that samples will be read soon."""
        # OSError: a file system may refuse hints, which is no reason not to read.
        with contextlib.suppress(ShardloadError, OSError):
            access, wanted = self._process_access(), self.field_list if fields is None else fields
            access.announcements.call(sample_ids, access.will_need, sample_ids, wanted, rows_announced, uses)

    def will_need_rows(self, sample_ids: Int64) -> None:
        """Tells the operating system that samples will be announced by `will_need` a while later."""
        with contextlib.suppress(ShardloadError, OSError):
            access = self._process_access()
            access.announcements.call(sample_ids, access.will_need_rows, sample_ids)

    def at_hand(self, sample_ids: Int64) -> bool:
        """Tells whether samples are in memory, as far as the shards that they lie in were looked at."""
        return self._shards_at_hand(self.table.spans.of(sample_ids))

    def ranges(self, sample_ids: Int64) -> tuple[Int64, Int64, Int64]:
        """Returns the shards, first bytes and lengths of the ranges that samples are read from, rows left out."""
        found = self._process_access().ranges(sample_ids, self.field_list)
        return found.shard_ids, found.starts, found.lengths

    @property
    def far(self) -> bool:
        """Whether it is read from a URL."""
        return not isinstance(self._storage, LocalStorage)

    def transfers(self) -> Transfers:
        """Returns what this process has fetched of a dataset that is a request away."""
        access = self._access
        return Transfers() if access is None or access.process_id != os.getpid() else access.transfers()

    @property
    def num_retries(self) -> dict[str, int]:
        """How often this process had to ask the store again, by what had gone wrong: the kinds of `AnswerError`."""
        asked = self._storage.inner if isinstance(self._storage, CachedStorage) else self._storage
        return dict(getattr(asked, "num_retries", {}))

    @property
    def storage(self) -> Storage:
        """Where it is read from."""
        return self._storage

    @property
    def engine_name(self) -> str:
        """How this process reads samples: `map`, `pread` or `ranges`."""
        return self._process_access().engine.name

    def bare(self) -> Self:
        """Returns the same dataset without transform and decoders."""
        same = object.__new__(type(self))
        same.__setstate__(self.__getstate__() | {"transform": None, "decode": {}})
        return same

    def lengths(self, name: str, sample_ids: Int64 | None = None) -> Int64:
        """Returns the length of a field's value in samples, without reading samples; see `SampleSource.lengths`."""
        field = lengthy_field(self, name)
        ids = self._all_ids() if sample_ids is None else sample_ids
        return self._process_access().lengths(field, ids)

    def find(self, key: Any) -> int:
        """Returns the id of the sample with a key.

        The first call reads the keys of all shards up to the one that has it: 20 bytes a sample, kept while they fit
        the index budget.

        Raises:
            KeyError: there is none.
            ValueError: the dataset was written without a key.
        """
        sample_id = int(self.find_many([key])[0])
        if sample_id < 0:
            raise KeyError(key)
        return sample_id

    def find_many(self, keys: Sequence[Any]) -> Int64:
        """Returns the id of the sample of each key, -1 where there is none: int64 of shape (keys,)."""
        if not self.schema.key:
            raise ValueError(f"{self.location}: was written without a key: name one when writing it (key=, --key)")
        field = self.schema[self.schema.key]
        return self._process_access().find([key_digest(key_bytes(field, key)) for key in keys])

    def places(self, sample_ids: Sequence[int] | Int64) -> list[SamplePlace]:
        """Returns in which shards, and at which bytes of them, samples lie: in the order given.

        Raises:
            IndexError: an id is outside the dataset; names it.
            FormatError: a shard is damaged where it tells places.
        """
        ids = self._sample_ids(sample_ids)
        found = {place.sample_id: place for place in self._process_access().places(ids)} if len(ids) else {}
        return [found[sample_id] for sample_id in ids.tolist()]

    def statistics(self) -> dict[str, FieldStatistics]:
        """Returns what each field holds: missing values, lengths, least and greatest number. Reads a little of each shard."""
        return dict(zip(self.schema, self._process_access().statistics(), strict=True))

    def external_files(self, but: int = 0) -> list[ExternalFile]:
        """Returns the existing files that records lie in, each once, in the order of the samples. Reads a little of each shard.

        Args:
            but: number of a generation that is left out.
        """
        if not self.manifest.external:
            return []
        shards = (shard_id for shard_id, entry in enumerate(self.table) if entry.generation != but)
        named = (self._process_access().shard(shard_id).sections.external() for shard_id in shards)
        return list(dict.fromkeys(file for files in named for file in files))

    def record_sizes(self) -> tuple[Int64, Int64]:
        """Returns the bytes of each sample as stored and decompressed, all its fields together: int64 of shape (samples,)."""
        return self._process_access().record_sizes()

    def sample_sizes(self, sample_ids: Int64) -> Int64:
        """Returns about the bytes of samples, decompressed, by the row tables: int64 of shape (samples,)."""
        return self._process_access().sample_sizes(sample_ids)

    def _shards_at_hand(self, shard_ids: Int64) -> bool:
        engine = self._process_access().engine
        return isinstance(engine, MapEngine) and engine.are_in_memory(shard_ids)

    def _all_ids(self) -> Int64:
        # Only once all shards have borne out the table memory is taken for what it says.
        return np.arange(self._process_access().num_samples(), dtype=np.int64)

    @property
    def _snapshot(self) -> Snapshot:
        snapshot = self.__dict__.get("_read_snapshot")
        if snapshot is None:
            snapshot = read_snapshot(self._storage, self._version, self._pinned)
            self.__dict__["_read_snapshot"] = snapshot
        return snapshot

    def _process_access(self) -> Access:
        """Returns this process's open files and caches; a forked child must not share locks and caches in mid-change."""
        access = self._access
        if access is None or access.process_id != os.getpid():
            access = self._access = Access(self._storage, self._snapshot, self.verify, self.engine)
        return access
