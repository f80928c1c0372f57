"""The worker program of P4: one process stores and reads one workload with one loader, again and again on request.

It is started by `bench.case_p4` as `-m bench.peers` with the Python that has the loader; a peer's environment needs numpy and
torch beside the peer, and neither shardload nor its requirements. It reads one JSON request a line and answers with one:

  {"do": "write"}  stores the samples; stored bytes.
  {"do": "check"}  reads an epoch, untimed; whether batches are what they must be, and a digest of all samples with their numbers.
  {"do": "run"}    reads an epoch; seconds a sample, seconds until the first batch, and a digest of the numbers that came.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import own_arms, peer_arms, torchvision_gap
from bench.peer_form import TOKENS, Arm, Samples

ARMS: dict[str, Arm] = own_arms.ARMS | peer_arms.ARMS


def marks(batch: Any) -> Any:
    """Returns the part of a batch in which its numbers are, without reading them: the timed loop waits for it."""
    return batch[:, 0].clone() if isinstance(batch, torch.Tensor) else [value[:8] for value in batch]


def numbers(kept: list[Any], kind: str) -> list[int]:
    """Returns the numbers of the samples, in the order in which they came."""
    if kind == "tokens":
        return [int(number) for number in torch.cat(kept)]
    flat = [mark for marks in kept for mark in marks]
    return [int(mark) for mark in flat] if kind == "text" else [int.from_bytes(mark, "little") for mark in flat]


def numbers_digest(found: Iterable[int]) -> str:
    """Returns a digest that tells whether the same numbers came, each as often, in any order."""
    return hashlib.sha256(np.sort(np.fromiter(found, dtype=np.int64)).tobytes()).hexdigest()


def run(loader: Iterable[Any], kind: str, lead: int) -> dict[str, Any]:
    """Returns the times of one epoch, whose numbers are checked by who asked; `lead` batches come before its clock."""
    kept: list[Any] = []
    begin = start = time.perf_counter()
    first, timed_from = 0.0, 0
    for batch in loader:
        kept.append(marks(batch))
        if len(kept) == 1:
            first = time.perf_counter() - begin
        if len(kept) == lead:
            start, timed_from = time.perf_counter(), sum(map(len, kept))
    seconds = time.perf_counter() - start
    found = numbers(kept, kind)
    if len(found) == timed_from:
        raise ValueError(f"the epoch has no more than the {lead} batches that may have been read ahead of it")
    facts = {"seconds_a_sample": seconds / (len(found) - timed_from), "first_seconds": first, "samples": len(found)}
    return facts | {"numbers": numbers_digest(found)}


def check(loader: Iterable[Any], samples: Samples) -> dict[str, Any]:
    """Returns a sum of digests of all samples, with their numbers, and how far from sorted they came."""
    total, found, sizes = 0, [], []
    for batch in loader:
        if samples.kind == "tokens":
            if not isinstance(batch, torch.Tensor) or batch.dtype != torch.int32 or batch.shape[1:] != (TOKENS,):
                raise TypeError(f"a batch is no int32 tensor of rows of {TOKENS}, but {type(batch)}")
            values: list[bytes] = [row.tobytes() for row in batch.numpy()]
        elif not isinstance(batch, list) or not all(isinstance(value, bytes) for value in batch):
            raise TypeError(f"a batch is no list of bytes, but {type(batch)}")
        else:
            values = batch
        found += numbers([marks(batch)], samples.kind)
        sizes.append(len(values))
        total += sum(sample_digest(value) for value in values)
    moved = np.abs(np.array(found) - np.arange(len(found))).mean() / len(found)
    full = sum(size == samples.batch_size for size in sizes)
    facts = {"samples": len(found), "full_batches": full, "moved": float(moved), "bytes": total % 2**128}
    return facts | {"numbers": numbers_digest(found)}


def sample_digest(value: bytes) -> int:
    """Returns a number to be summed: of equal sums the samples are equal in some order. A sample has its number in it."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=16).digest(), "little")


def write(arm: Arm, samples: Samples, target: str) -> dict[str, Any]:
    start = time.perf_counter()
    arm.write(samples, target)
    stored = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
    return {"seconds": time.perf_counter() - start, "stored_bytes": stored}


def version_of(module: str) -> str:
    """Returns name and version of the package that a module is from."""
    name = packages_distributions().get(module.partition(".")[0], [module])[0]
    return f"{name} {version(name)}"


def main() -> None:
    """Serves requests until the input ends; argv: arm, workers, kind, zstd level or "none", folder of the samples, target."""
    # Ends with who started it, even in the middle of an epoch that never ends (PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Libraries print to stdout; the answers must stay alone on theirs.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    name, workers, kind, level, folder, target = sys.argv[1:]
    arm, samples = ARMS[name], Samples(Path(folder), kind, None if level == "none" else int(level))
    loader: Iterable[Any] | None = None
    try:
        if arm.module == "streaming":
            torchvision_gap.close()
        importlib.import_module(arm.module)
        answer({"version": version_of(arm.module)})
    except Exception as error:
        # Not only ImportError: an incomplete installation raises anything.
        answer({"failed": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            do = json.loads(line)["do"]
            if do == "write":
                answer(write(arm, samples, target))
                continue
            loader = arm.loader(samples, target, int(workers)) if loader is None else loader
            answer(run(loader, kind, arm.lead(int(workers))) if do == "run" else check(loader, samples))
        except Exception as error:
            answer({"failed": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
