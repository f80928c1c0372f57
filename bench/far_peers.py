"""The worker program of P33 and P34: one process reads one workload from the store with one loader, each epoch opened anew.

It is started by `bench.case_p33` as `-m bench.far_peers`, as `bench.peers` by P4, and answers the same requests: of "run" with
seconds a sample and until the first batch, both from before the dataset is opened, and with what its cache takes in the end.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import torchvision_gap
from bench.far_arms import ARMS, FarArm, Stored
from bench.peer_form import Samples
from bench.peers import check, marks, numbers, numbers_digest, version_of, write


def run(arm: FarArm, samples: Samples, stored: Stored, cache: str, workers: int) -> dict[str, Any]:
    """Returns the times of one epoch with nothing there but the store, whose numbers are checked by who asked."""
    kept: list[Any] = []
    first = 0.0
    start = time.perf_counter()
    with arm.open(samples, stored, cache, workers) as batches:
        for batch in batches:
            kept.append(marks(batch))
            if len(kept) == 1:
                first = time.perf_counter() - start
        seconds = time.perf_counter() - start
        found = numbers(kept, samples.kind)
        held = disk_bytes(cache)
    facts = {"seconds_a_sample": seconds / len(found), "first_seconds": first, "samples": len(found)}
    after = (seconds - first) / max(1, len(found) - len(kept[0]))
    return facts | {"seconds_a_later_sample": after, "cache_bytes": held, "numbers": numbers_digest(found)}


def checked(arm: FarArm, samples: Samples, stored: Stored, cache: str, workers: int) -> dict[str, Any]:
    """Reads an epoch untimed."""
    with arm.open(samples, stored, cache, workers) as batches:
        return check(batches, samples)


def disk_bytes(folder: str) -> int:
    """Returns what files take on the disk: holes count nothing."""
    return sum(path.stat().st_blocks * 512 for path in Path(folder).rglob("*") if path.is_file())


def answer_to(do: str, arm: FarArm, samples: Samples, stored: Stored, workers: int) -> dict[str, Any]:
    if do == "write":
        return write(arm.form, samples, str(stored.local))
    cache = tempfile.mkdtemp(dir=samples.folder)
    try:
        if do == "run":
            return run(arm, samples, stored, cache, workers)
        return checked(arm, samples, stored, cache, workers)
    finally:
        # Loaders end their threads and workers when they are collected.
        gc.collect()
        shutil.rmtree(cache, ignore_errors=True)


def main() -> None:
    """Serves requests until the input ends; argv: arm, workers, kind, folder of the samples, bucket, local folder of the form."""
    # As in `peers`.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    name, workers, kind, folder, bucket, local = sys.argv[1:]
    arm, samples = ARMS[name], Samples(Path(folder), kind, None)
    stored = Stored(bucket, arm.form.form, Path(local))
    try:
        if arm.form.module == "streaming":
            torchvision_gap.close()
        importlib.import_module(arm.form.module)
        answer({"version": version_of(arm.form.module)})
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            answer(answer_to(json.loads(line)["do"], arm, samples, stored, int(workers)))
        except Exception as error:
            answer({"failed": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
