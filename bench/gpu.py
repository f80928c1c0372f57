"""What only a machine with a CUDA device can tell: runs the tests marked `gpu`, then P21 of the figures.

Run: python -m bench.gpu [--json FILE] [--repeats N] [--scale X] [--folder DIR] [--no-tests]

P21 is two ratios. Host to device: what a loader delivers / plain copies of batches of the same size from page-locked memory,
bytes a second; once for the whole loader, which has to read the samples as well, and once for its copies alone, from batches
that are finished. Training step: time with the loader / with one batch that stays on the device. Arms run in turn; all samples
are checked by their number as they come. Without a CUDA device it says so and exits with status 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shardload
from bench.__main__ import measure, text
from bench.case import NONE, Arm, Line
from bench.workloads import TOKENS, tokens
from shardload.loader.transfer import CudaTransfer, cuda_device
from shardload.memory import BufferPool

TEST_SECONDS = 150
ROTATING = 4
"""Buffers on either side of the plain copies, as many as the loader has in use at least."""
STEPS, STEP_BATCH, WIDTH, VOCABULARY = 25, 256, 1024, 50_304


@dataclass(frozen=True)
class Delivered:
    """A dataset whose samples start with their number, and how it is delivered."""

    name: str
    dataset: Path
    field: str
    dtype: Any
    shape: tuple[int, ...]
    num_samples: int
    batch_size: int
    modulus: int = 1 << 16
    """Samples start with their number modulo this."""

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch as stored."""
        return int(np.prod((self.batch_size, *self.shape))) * np.dtype(self.dtype).itemsize

    def loader(self, **options: Any) -> shardload.ShardLoader:
        """Returns a loader of it, shuffling."""
        return shardload.ShardLoader(shardload.open(self.dataset), self.batch_size, shuffle=True, **options)


def workloads(folder: Path, scale: float) -> Iterator[Delivered]:
    """Yields what is delivered, a GB and more each."""
    count = max(8, int(256 * scale))
    work = tokens(folder, count * 1024)
    yield Delivered("int32[1024] x 1024", work.dataset, work.field, np.int32, (TOKENS,), len(work), 1024, len(work))
    yield packed(folder / "short", "uint16[1024] x 2048", np.uint16, (1024,), count * 2048, 2048)
    yield packed(
        folder / "images", "float32[3,224,224] x 64", np.float32, (3, 224, 224), max(2, count * 3 // 16) * 64, 64
    )


def packed(path: Path, name: str, dtype: Any, shape: tuple[int, ...], num_samples: int, batch_size: int) -> Delivered:
    row = np.random.default_rng(0).integers(0, 50_000, shape).astype(dtype)
    kind = f"{np.dtype(dtype).name}[{','.join(map(str, shape))}]"
    with shardload.ShardWriter(path, {"value": kind}, shard_size="256MiB") as writer:
        for number in range(num_samples):
            row.flat[0] = number % Delivered.modulus
            writer.write({"value": row})
    return Delivered(name, path, "value", dtype, shape, num_samples, batch_size)


def epochs(work: Delivered, loader: shardload.ShardLoader, num_epochs: int) -> float:
    """Returns seconds a batch over whole epochs, to the end of the last copy."""
    firsts: list[torch.Tensor] = []
    start = time.perf_counter()
    for _ in range(num_epochs):
        for batch in loader:
            firsts.append(batch[work.field].view(work.batch_size, -1)[:, 0].clone())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    assert len(firsts) == num_epochs * len(loader)
    seen = torch.cat(firsts).cpu().to(torch.int64).numpy()
    want = np.bincount(np.arange(work.num_samples) % work.modulus) * num_epochs
    assert np.array_equal(np.bincount(seen, minlength=len(want)), want), "not every sample came once an epoch"
    return seconds / len(firsts)


def plain_copies(work: Delivered, num_batches: int) -> Arm:
    """Returns an arm that copies batches of that size from page-locked memory to memory that is there."""
    sources = [torch.ones(work.batch_bytes, dtype=torch.uint8).pin_memory() for _ in range(ROTATING)]
    targets = [torch.empty_like(source, device="cuda") for source in sources]
    stream = torch.cuda.Stream()

    def run() -> float:
        start = time.perf_counter()
        with torch.cuda.stream(stream):
            for source, target in itertools.islice(itertools.cycle(zip(sources, targets)), num_batches):
                target.copy_(source, non_blocking=True)
        stream.synchronize()
        return (time.perf_counter() - start) / num_batches

    return run


def own_copies(work: Delivered, num_batches: int) -> Arm:
    """Returns an arm that delivers finished batches as a loader does, widening included, without making any."""
    narrow = frozenset({work.field} if np.dtype(work.dtype).kind == "u" else ())
    transfer = CudaTransfer(cuda_device(None), True, narrow)
    pool = BufferPool(1 << 30, copies=transfer.stream)
    sources = [pool.lease((work.batch_size, *work.shape), np.dtype(work.dtype)) for _ in range(ROTATING)]
    batches = [{work.field: torch.from_numpy(source)} for source in sources]
    for source in sources:
        source.fill(1)

    def run() -> float:
        start = time.perf_counter()
        for batch in itertools.islice(itertools.cycle(batches), num_batches):
            arrived = transfer.receive(transfer.send(batch, pool))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        assert bool((arrived[work.field] == 1).all())
        return seconds / num_batches

    return run


def host_to_device(work: Delivered) -> Iterator[Line]:
    # As many bytes a run that its start is a small part.
    num_epochs = max(1, (1 << 30) // (work.num_samples // work.batch_size * work.batch_bytes))
    num_batches = num_epochs * (work.num_samples // work.batch_size)
    plain, own = plain_copies(work, num_batches), own_copies(work, num_batches)
    there, threads, here = work.loader(device="cuda"), work.loader(device="cuda", num_threads=12), work.loader()
    loader: Arm = lambda: epochs(work, there, num_epochs)  # noqa: E731
    more: Arm = lambda: epochs(work, threads, num_epochs)  # noqa: E731
    host: Arm = lambda: epochs(work, here, num_epochs)  # noqa: E731
    for arm in (loader, more, host, plain, own):
        arm()
    yield Line(f"{work.name}: copies", {"copies": own, "pinned copy": plain}, False)
    yield Line(f"{work.name}: loader", {"loader": loader, "pinned copy": plain}, False)
    yield Line(f"{work.name}: 12 threads", {"12 threads": more, "pinned copy": plain}, False)
    # What reading costs more on the way to the device than to the host is told, and has no aim.
    yield Line(f"{work.name}: to host", {"loader": loader, "loader to the host": host}, False, NONE)


def training(work: Delivered) -> Iterator[Line]:
    """A step of a bf16 network that works for about 20 ms on 256 times 1,024 tokens."""
    model = torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY, WIDTH),
        torch.nn.Linear(WIDTH, 4 * WIDTH),
        torch.nn.GELU(),
        torch.nn.Linear(4 * WIDTH, WIDTH),
    ).to("cuda", torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loader = shardload.ShardLoader(shardload.open(work.dataset), STEP_BATCH, shuffle=True, device="cuda")
    ids: list[torch.Tensor] = []

    def endless() -> Iterator[torch.Tensor]:
        while True:
            for batch in loader:
                ids.append(batch[work.field][:, 0].clone())
                yield batch[work.field]

    def steps(batches: Iterator[torch.Tensor], reads_loss: bool) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in itertools.islice(batches, STEPS):
            # The first token is the sample's number, and may lie beyond the vocabulary.
            loss = model(batch % VOCABULARY).float().pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if reads_loss:
                loss.item()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / STEPS

    loaded = endless()
    cached = itertools.repeat(next(loaded).clone())
    steps(loaded, False), steps(cached, False)
    for name, reads in (("training step", False), ("training step, loss read", True)):
        arms: dict[str, Arm] = {
            "loader": lambda r=reads: steps(loaded, r),
            "cached batch": lambda r=reads: steps(cached, r),
        }
        yield Line(name, arms, True, (1.05, 1.01))
    seen = torch.cat(ids).cpu().numpy()
    counts = np.bincount(seen, minlength=work.num_samples)
    assert counts.max() - counts.min() <= 1, "a sample came twice in an epoch"
    loader.close()


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def facts(repeats: int) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(),
        "devices": torch.cuda.device_count(),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "shardload": shardload.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "repeats": repeats,
    }


def run_tests() -> dict[str, Any]:
    """Runs the tests marked gpu in a process of their own; returns the end of what they print."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5"]
    # What libraries warn of on another machine is not what is asked here.
    command += ["-W", "default", "tests/loader/test_device.py", "tests/memory/test_pool.py"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS)
        passed, output = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        passed, output = False, f"{(error.stdout or b'').decode()}\nended after {TEST_SECONDS} s"
    seconds = round(time.perf_counter() - start, 1)
    return {"passed": passed, "seconds": seconds, "output": output.splitlines()[-400:]}


def figures(folder: Path, scale: float, repeats: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measures all lines, and tells each as it is done."""
    for number, work in enumerate(workloads(folder, scale)):
        lines = host_to_device(work) if number else itertools.chain(host_to_device(work), training(work))
        for line in lines:
            found = {"case": "P21", "line": line.name} | measure(line, line.limits or (0.85, 0.98), repeats)
            if not line.less_is_better:
                found["also"] = {
                    f"{arm} GB/s": round(work.batch_bytes / us / 1e3, 2) for arm, us in found["arms"].items()
                }
            tell(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write all facts to, after each line")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of samples")
    parser.add_argument("--folder", type=Path, help="where datasets are made; the folder for temporary files else")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"bench.gpu needs a CUDA device, and torch {torch.__version__} sees none here.", file=sys.stderr)
        sys.exit(2)
    result: dict[str, Any] = {"facts": facts(options.repeats), "tests": None, "lines": []}

    def tell(line: dict[str, Any] | None = None) -> None:
        if line is not None:
            result["lines"].append(line)
            print(text(line), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1))

    print(", ".join(f"{name} {value}" for name, value in result["facts"].items()), flush=True)
    if not options.no_tests:
        result["tests"] = run_tests()
        print("\n".join(result["tests"]["output"]), flush=True)
    tell()
    with tempfile.TemporaryDirectory(prefix="shardload-bench-", dir=options.folder) as folder:
        figures(Path(folder), options.scale, options.repeats, tell)
    if result["tests"] is not None and not result["tests"]["passed"]:
        print("the tests have failed", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
