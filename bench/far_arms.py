"""Arms of P33 and P34: loaders over one S3 store that answers late, each as its documentation advises; opened anew for each epoch.

Read by the peers' own Python, as `peer_arms`. Credentials and the endpoint are in the environment.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.own_arms import Member, Path2, WebDataset, listed, stacked, torch_loader, unchanged
from bench.peer_arms import Column, LitData, MosaicStreaming, owned
from bench.peer_form import TOKENS, Samples

CACHE_LIMIT = 1 << 30
"""What a cache of ours may take, above all that is read here."""


@dataclass(frozen=True)
class Stored:
    """Where the samples lie in an arm's form: in the store, and on the disk they were uploaded from."""

    bucket: str
    form: str
    local: Path
    """Of which names are known: an arm that reads it reads no store."""

    @property
    def url(self) -> str:
        """What S3 clients call it."""
        return f"s3://{self.bucket}/{self.form}"


class FarArm:
    """One way to read samples from the store in a random order."""

    ours = False
    shuffles = ""
    """Over what samples are shuffled."""
    settings: tuple[int, ...] = (0, 2)
    """Numbers of worker processes to try."""
    note = ""
    """What was done to it that its documentation does not say."""
    form: Any
    """The arm of `peers` that writes what this one reads."""

    def open(self, samples: Samples, stored: Stored, cache: str, workers: int) -> Any:
        """Returns a context that gives what yields one epoch of batches; `cache` is an empty directory."""
        raise NotImplementedError


class Ours(FarArm):
    """ShardLoader."""

    ours = True
    settings = (0,)
    form = Path2()

    def __init__(self, shuffle: Any, shuffles: str, cached: bool) -> None:
        self._shuffle, self.shuffles, self._cached = shuffle, shuffles, cached

    @contextmanager
    def open(self, samples: Samples, stored: Stored, cache: str, workers: int) -> Iterator[Iterable[Any]]:  # noqa: D102
        import shardload

        options: dict[str, Any] = {"storage_options": {"endpoint_url": os.environ["S3_ENDPOINT_URL"]}}
        if self._cached:
            options |= {"cache_dir": cache, "cache_limit": CACHE_LIMIT}
        dataset = shardload.open(stored.url, **options)
        loader = shardload.ShardLoader(
            dataset, samples.batch_size, shuffle=self._shuffle, drop_last=False, seed=_new_seed()
        )
        yield (batch["value"] for batch in loader)
        loader.close()


def _new_seed() -> int:
    """Returns another seed each time: no order is favoured."""
    return int.from_bytes(os.urandom(4), "little")


class Mosaic(FarArm):
    """MosaicML's StreamingDataset with a local cache of whole shards; reads 8 batches ahead, its default.

    The client that fetched its index is inherited by forked workers, which then read each other's answers from one connection:
    now and then what they give is wrong. So with workers it is dropped by hand before they start.
    """

    shuffles = "py1e: within blocks of 262,144 samples, here all"
    form = MosaicStreaming()
    note = "workers: the client that they would share, and so give wrong bytes, is dropped by hand"

    @contextmanager
    def open(self, samples: Samples, stored: Stored, cache: str, workers: int) -> Iterator[Iterable[Any]]:  # noqa: D102
        from streaming import StreamingDataset

        dataset = StreamingDataset(
            remote=stored.url, local=cache, shuffle=True, batch_size=samples.batch_size, shuffle_seed=_new_seed()
        )
        for stream in dataset.streams if workers else ():
            stream._downloader.clean_up()
        yield torch_loader(dataset, samples, workers, collate_fn=Column(samples.kind == "tokens"))


class Lit(FarArm):
    """litData's StreamingDataset with a local cache of whole chunks; it reads as many chunks ahead as 3 GB hold, its default.

    It reads chunks by obstore without a way to have that allow plain HTTP, and so refuses the store of this case. `by_hand`
    sets the option where litData keeps it: so it is read as one with TLS would be, and costs no encryption.
    """

    shuffles = "chunks; blocks of 256 samples within a chunk, and within them"
    form = LitData()

    def __init__(self, by_hand: bool) -> None:
        self._by_hand = by_hand
        # To see it fail once will do.
        self.settings = (0, 2) if by_hand else (0,)

    @contextmanager
    def open(self, samples: Samples, stored: Stored, cache: str, workers: int) -> Iterator[Iterable[Any]]:  # noqa: D102
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
        from litdata.streaming import downloader

        if self._by_hand:
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        tokens = samples.kind == "tokens"
        dataset = StreamingDataset(
            stored.url,
            cache_dir=cache,
            shuffle=True,
            seed=_new_seed(),
            item_loader=TokensLoader(TOKENS) if tokens else None,
            storage_options={"endpoint_url": os.environ["S3_ENDPOINT_URL"]},
        )
        options: dict[str, Any] = {} if tokens else {"collate_fn": owned}
        yield StreamingDataLoader(dataset, batch_size=samples.batch_size, num_workers=workers, **options)


class Tars(FarArm):
    """webdataset, which has curl read whole tars, from first to last byte; with or without its cache of them."""

    shuffles = "tars, then a buffer of 1,000"
    form = WebDataset()

    def __init__(self, cached: bool) -> None:
        self._cached = cached
        # With workers it was faster in each way: once will do for the other.
        self.settings = (2,) if cached else (0, 2)

    @contextmanager
    def open(self, samples: Samples, stored: Stored, cache: str, workers: int) -> Iterator[Iterable[Any]]:  # noqa: D102
        import webdataset

        urls = signed(stored)
        options = {"cache_dir": cache} if self._cached else {}
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), **options).shuffle(1000)
        collate = stacked if samples.kind == "tokens" else listed
        dataset = dataset.map(Member(unchanged)).batched(samples.batch_size, collation_fn=collate, partial=True)
        yield torch_loader(dataset, samples, workers, batch_size=None)


@functools.cache
def signed(stored: Stored) -> list[str]:
    """Returns URLs that read the files of the store by plain HTTP. Once: to make them is no part of reading."""
    from botocore.session import get_session

    client = get_session().create_client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    keys = [f"{stored.form}/{path.name}" for path in sorted(stored.local.iterdir())]
    objects = [{"Bucket": stored.bucket, "Key": key} for key in keys]
    return [str(client.generate_presigned_url("get_object", Params=one, ExpiresIn=86_400)) for one in objects]


ARMS: dict[str, FarArm] = {
    "block shuffle": Ours("block", "blocks in a window of some, within it", False),
    "full shuffle": Ours(True, "all samples", False),
    "full shuffle, cache_dir": Ours(True, "all samples", True),
    "MosaicML streaming": Mosaic(),
    "litData": Lit(False),
    "litData, HTTP allowed by hand": Lit(True),
    "webdataset": Tars(False),
    "webdataset, cache_dir": Tars(True),
}
