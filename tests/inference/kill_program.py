"""Inference jobs whose ranks are killed at random operations and begun again, by as many or other ranks, until they are done.

Prints what happened as JSON. Ranks are forked, so that hundreds of them need no interpreter of their own.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from faults import KillAt, NoDevice, injected

import shardload
from shardload.inference.journal import believed, read_parts
from shardload.storage import LocalStorage

SCHEMA = {"double": "int64", "text": "str", "values": "float32[*]"}
PIECE, BATCH = 32, 8


def results_of(x: torch.Tensor) -> dict:
    numbers = x.tolist()
    return {
        "double": x * 2,
        "text": [f"sample {i} " * 40 for i in numbers],
        "values": [torch.full((i % 5,), float(i)) for i in numbers],
    }


def rank_of_job(dataset: str, output: str, ranks: int, rank: int, log: str | None = None, pause: float = 0.0) -> None:
    """Does what one rank has to do; notes what it computes, each batch of which takes so many seconds."""
    notes = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    scan = shardload.scan(shardload.open(dataset), BATCH, ranks, rank)
    with shardload.ScanWriter(output, SCHEMA, scan, shard_size="20KiB", piece_samples=PIECE) as job:
        for batch in job:
            if notes is not None:
                os.write(notes, (json.dumps(batch["x"].tolist()) + "\n").encode())
            time.sleep(pause)
            job.write(results_of(batch["x"]))


def forked(work, killed_at: int, when: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        with injected(KillAt(killed_at, when, NoDevice())):
            work()
        status = 0
    except BaseException as error:
        os.write(2, "".join(traceback.format_exception(error)).encode())
    finally:
        os._exit(status)


def durable(output: str) -> set[int]:
    """Returns the samples that the journals tell of."""
    storage, found = LocalStorage(output), set()
    for piece, entries in read_parts(storage, 1).items():
        count = sum(entry.num_samples for entry in believed(storage, entries))
        found |= set(range(piece * PIECE, piece * PIECE + count))
    return found


def job(dataset: str, output: Path, draw: random.Random) -> dict:
    """Runs one job to its end; returns how many ranks were killed, and the samples that were computed though they were there."""
    kills, attempts, redone = 0, 0, set()
    while not (output / "manifest.json").exists() or (output / ".work").exists():
        attempts += 1
        ranks = draw.choice([2, 2, 2, 1, 3])
        log = f"{output}-{attempts}"
        before = durable(str(output))
        pids = []
        for rank in range(ranks):
            moment = draw.choice([draw.randint(1, 40), draw.randint(1, 200), 0])
            work = functools.partial(rank_of_job, dataset, str(output), ranks, rank, log)
            pids.append(forked(work, moment, draw.choice(["before", "half", "after"])))
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert all(end in (0, -signal.SIGKILL) for end in ends), ends
        kills += ends.count(-signal.SIGKILL)
        if os.path.exists(log):
            redone |= before & {i for line in Path(log).read_text().splitlines() for i in json.loads(line)}
        assert attempts < 200
    return {"kills": kills, "attempts": attempts, "redone": sorted(redone)}


def main(dataset: str, folder: Path, seed: int, wanted: int) -> None:
    draw, told = random.Random(seed), []
    while sum(one["kills"] for one in told) < wanted:
        output = folder / f"job-{len(told)}"
        told.append(job(dataset, output, draw) | {"output": str(output)})
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
