"""The arms of `bench.pack_speed`: one process writes one workload with one library, again and again on request.

It is started by `bench.pack_speed` with the Python that has the library, and imports nothing of its own package, so that a
peer's environment needs neither shardload nor this repository. It reads one JSON request a line and answers with one:
`{"do": "write", "target": ...}` gives seconds, CPU seconds and stored bytes; `{"do": "check", "target": ...}` reads
everything back and gives the number of samples and of their bytes, which is no part of any time.

The time of a write runs from before the writer is made until every file it left, and every directory, is fsynced, for
all arms alike (a writer that does so itself finds little left to do).
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

SHARD_BYTES = 64 << 20
"""Size of a shard wherever the writer has one to set; MDS's own default."""
TOKENS = 1024
_PIECE_BYTES = 1 << 20


def load_samples(folder: Path, workload: str) -> list[Any]:
    """Returns the samples that `pack_speed` stored: int32 arrays, str or bytes."""
    data = (folder / "samples.bin").read_bytes()
    if workload == "tokens":
        return list(np.frombuffer(data, dtype=np.int32).reshape(-1, TOKENS))
    stops = np.cumsum(np.load(folder / "lengths.npy")).tolist()
    pieces = [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
    return [piece.decode() for piece in pieces] if workload == "text" else pieces


def num_bytes(value: Any) -> int:
    """Returns the bytes of one sample that was read back."""
    return len(value.encode()) if isinstance(value, str) else getattr(value, "nbytes", None) or len(value)


class Arm:
    """One library's writer and reader. `types` is how its schema calls each workload's value, where it has one."""

    module: str
    """What is imported; an arm whose module is not there is reported as missing."""
    types: Mapping[str, str] = MappingProxyType({})

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:
        """Writes all samples to a new directory `target` and closes; `level` is that of zstd, None for no compression."""
        raise NotImplementedError

    def read(self, workload: str, target: str) -> Iterable[Any]:
        """Returns the samples written."""
        raise NotImplementedError


class Shardload(Arm):
    """ShardWriter; shards, table, manifest and directories are fsynced by itself, with CRC32C and SHA-256 over all."""

    module = "shardload"
    types = MappingProxyType({"tokens": f"int32[{TOKENS}]", "text": "str", "jpeg": "jpeg"})

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        import shardload

        compression = "none" if level is None else f"zstd:{level}"
        schema = {"value": self.types[workload]}
        with shardload.ShardWriter(target, schema, compression=compression, shard_size=SHARD_BYTES) as writer:
            for value in samples:
                writer.write({"value": value})

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        import shardload

        dataset = shardload.open(target)
        return (dataset[i]["value"] for i in range(len(dataset)))


class MosaicStreaming(Arm):
    """MDSWriter; no hashes (its default), compression "zstd" of each whole shard."""

    module = "streaming"
    types = MappingProxyType({"tokens": f"ndarray:int32:{TOKENS}", "text": "str", "jpeg": "bytes"})

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        from streaming import MDSWriter

        columns = {"value": self.types[workload]}
        compression = None if level is None else f"zstd:{level}"
        with MDSWriter(out=target, columns=columns, compression=compression, size_limit=SHARD_BYTES) as writer:
            for value in samples:
                writer.write({"value": value})

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=target, shuffle=False, batch_size=1)
        return (dataset[i]["value"] for i in range(dataset.num_samples))


class WebDataset(Arm):
    """TarWriter with its default encoder into one tar."""

    module = "webdataset"
    types = MappingProxyType({"tokens": "npy", "text": "txt", "jpeg": "jpg"})

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        from webdataset import TarWriter

        os.mkdir(target)
        extension = self.types[workload]
        with TarWriter(os.path.join(target, "samples.tar")) as writer:
            for i, value in enumerate(samples):
                writer.write({"__key__": f"{i:09d}", extension: value})

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        import io
        import tarfile

        with tarfile.open(os.path.join(target, "samples.tar")) as tar:
            for member in tar:
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                yield np.load(io.BytesIO(data)) if workload == "tokens" else data


class LitData(Arm):
    """BinaryWriter, which `optimize` runs in its workers; zstd of each sample, the nearest to a frame a record.

    A sample is the bare value: dicts cost it more, and litData 0.2.76 could not read back its own dicts of one str or bytes
    written with compression_level "sample" or "batch".
    """

    module = "litdata"

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        from litdata.streaming.writer import BinaryWriter

        settings = {} if level is None else {"compression": f"zstd:{level}", "compression_level": "sample"}
        writer = BinaryWriter(target, chunk_bytes=SHARD_BYTES, **settings)
        for i, value in enumerate(samples):
            writer.add_item(i, value)
        writer.done()
        writer.merge()

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        from litdata import StreamingDataset

        return iter(StreamingDataset(target, shuffle=False))


class ArrayRecord(Arm):
    """ArrayRecordWriter with group_size 1, its advice for random access, into one file; the caller serialises."""

    module = "array_record.python.array_record_module"

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        from array_record.python.array_record_module import ArrayRecordWriter

        os.mkdir(target)
        options = "group_size:1," + ("uncompressed" if level is None else f"zstd:{level}")
        writer = ArrayRecordWriter(os.path.join(target, "samples.arrayrecord"), options)
        serialize: Callable[[Any], bytes] = {"tokens": np.ndarray.tobytes, "text": str.encode, "jpeg": bytes}[workload]
        for value in samples:
            writer.write(serialize(value))
        writer.close()

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(os.path.join(target, "samples.arrayrecord"))
        yield from reader.read_all()
        reader.close()


class PlainWrite(Arm):
    """os.write of the samples' bytes, one after the other, in pieces of 1 MiB, and a checksum of all: the ceiling."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.data = b""

    def write(self, samples: list[Any], workload: str, target: str, level: int | None) -> None:  # noqa: D102
        if self.module == "hashlib":
            update: Callable[[bytes], object] = hashlib.sha256().update
        else:
            import google_crc32c

            update = google_crc32c.Checksum().update
        os.mkdir(target)
        descriptor = os.open(os.path.join(target, "samples.bin"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for start in range(0, len(self.data), _PIECE_BYTES):
            # A slice of bytes copies; google_crc32c takes nothing else without a copy, and so both arms have it.
            piece = self.data[start : start + _PIECE_BYTES]
            update(piece)
            done = 0
            while done < len(piece):
                done += os.write(descriptor, memoryview(piece)[done:])
        os.close(descriptor)

    def read(self, workload: str, target: str) -> Iterable[Any]:  # noqa: D102
        assert (Path(target) / "samples.bin").read_bytes() == self.data
        return []


ARMS: dict[str, Arm] = {
    "shardload": Shardload(),
    "write+sha256": PlainWrite("hashlib"),
    "write+crc32c": PlainWrite("google_crc32c"),
    "MDSWriter": MosaicStreaming(),
    "TarWriter": WebDataset(),
    "litData": LitData(),
    "ArrayRecord": ArrayRecord(),
}
CEILINGS = ("write+sha256", "write+crc32c")
PEERS = ("MDSWriter", "TarWriter", "litData", "ArrayRecord")


def sync(target: str) -> int:
    """Brings every file and directory below `target` to the device and returns the bytes of the files."""
    stored = 0
    for folder, _, names in os.walk(target):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            stored += 0 if path == folder else os.stat(path).st_size
    return stored


def timed_write(arm: Arm, samples: list[Any], workload: str, target: str, level: int | None) -> dict[str, float]:
    """Returns wall and CPU seconds of one whole write, and the bytes it left."""
    gc.collect()
    cpu, start = time.process_time(), time.perf_counter()
    arm.write(samples, workload, target, level)
    stored = sync(target)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, "stored_bytes": stored}


def check(arm: Arm, workload: str, target: str) -> dict[str, int]:
    """Returns how many samples and bytes of samples can be read back."""
    count = total = 0
    for value in arm.read(workload, target):
        count += 1
        total += num_bytes(value)
    return {"samples": count, "bytes": total}


def peak_memory(num_samples: int, target: str) -> dict[str, float]:
    """Packs small samples and returns this process's peak memory in MiB, and the microseconds a sample."""
    import shardload

    start = time.perf_counter()
    with shardload.ShardWriter(target, {"id": "int64", "text": "str"}, shard_size=SHARD_BYTES) as writer:
        for i in range(num_samples):
            writer.write({"id": i, "text": f"{i:016x}" * 4})
    seconds = time.perf_counter() - start
    # ru_maxrss would take over the peak of the process that started this one; VmHWM begins with the program.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"peak_mib": peak, "microseconds": seconds / num_samples * 1e6}


def main() -> None:
    """Serves requests until the input ends; argv: arm, workload, folder of the samples, zstd level or "none", core."""
    # Libraries print to stdout; the answers must stay alone on theirs.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    if sys.argv[1] == "memory":
        answer(peak_memory(int(sys.argv[2]), sys.argv[3]))
        return
    name, workload, folder, level, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    arm = ARMS[name]
    try:
        if arm.module == "streaming":
            importlib.import_module("torchvision_gap").close()
        importlib.import_module(arm.module)
    except Exception as error:
        # Not only ImportError: an incomplete installation raises anything.
        answer({"failed": f"{type(error).__name__}: {error}"})
        return
    if isinstance(arm, PlainWrite):
        arm.data, samples = (Path(folder) / "samples.bin").read_bytes(), []
    else:
        samples = load_samples(Path(folder), workload)
    # What was there before is not the collector's work during a write.
    gc.freeze()
    answer({"ready": name})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "write":
                answer(timed_write(arm, samples, workload, request["target"], None if level == "none" else int(level)))
            else:
                answer(check(arm, workload, request["target"]))
        except Exception as error:
            answer({"failed": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
