"""A mapped file that fails gives zeros, not a signal; faults that are not ours end the process as they always did."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardload

START = """
import ctypes, faulthandler, mmap, os, signal, sys
import numpy as np
from shardload.storage import MappedFiles
from shardload.storage.guard import catches_faults
path = sys.argv[1]

def mapped_file():
    size = os.path.getsize(path)
    files = MappedFiles(np.array([size]))
    descriptor = os.open(path, os.O_RDONLY)
    files.map(0, descriptor)
    os.close(descriptor)
    return files

def gather(files, pages):
    out = np.full(len(pages) * 4096, 7, np.uint8)
    done = files.gather(files.addresses[0] + np.array(pages) * 4096, 4096, [out])
    return out.reshape(-1, 4096)[:, 0].tolist() if done else None
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A file of 64 pages, each full of its number and 1 more."""
    path = tmp_path / "pages"
    path.write_bytes(np.repeat(np.arange(1, 65, dtype=np.uint8), 4096).tobytes())
    return path


def test_what_lies_behind_a_cut_is_zero_from_then_on(pages: Path) -> None:
    code = """
files = mapped_file()
print(gather(files, [0, 40, 63, 40]))
os.truncate(path, 20 * 4096)
print(gather(files, [0, 40, 63]), gather(files, [1, 2]), catches_faults())
"""
    done = run(code, pages)
    assert done.stdout.splitlines() == ["[1, 41, 64, 41]", "[1, 0, 0] [0, 0] True"], done.stderr


def test_faults_of_other_mappings_end_the_process_as_before(pages: Path) -> None:
    code = """
files = mapped_file()
assert gather(files, [5]) == [6]
with open(path, "rb") as file:
    other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(path, 0)
print("now", flush=True)
other[5000]
print("still here")
"""
    content = pages.read_bytes()
    done = run(code, pages)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "now\n")
    pages.write_bytes(content)
    # Whoever had the signal before gets it, here the tracebacks of Python.
    done = run("faulthandler.enable()\n" + code, pages)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "now\n")
    assert "Fatal Python error: Bus error" in done.stderr


def test_a_signal_that_was_sent_arrives(pages: Path) -> None:
    code = """
files = mapped_file()
assert gather(files, [5]) == [6]
print("now", flush=True)
os.kill(os.getpid(), signal.SIGBUS)
print("still here")
"""
    done = run(code, pages)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "now\n")


def test_whoever_takes_the_signal_later_keeps_it(pages: Path) -> None:
    code = """
files = mapped_file()
assert gather(files, [5]) == [6]
heard = []
signal.signal(signal.SIGBUS, lambda *_: heard.append(1))
print(catches_faults(), gather(files, [5]))
signal.raise_signal(signal.SIGBUS)
print(heard)
"""
    done = run(code, pages)
    assert done.stdout.splitlines() == ["False None", "[1]"], done.stderr


HAMMER = """
import os, sys, threading
import numpy as np
import shardload
path, rounds = sys.argv[1], int(sys.argv[2])
named = right = 0
for _ in range(rounds):
    dataset = shardload.open(path, engine="map", verify="off")
    name = f"{path}/{dataset.table[0].name}"
    with open(name, "rb") as file:
        whole = file.read()
    cut, stop = threading.Event(), threading.Event()
    def read(seed):
        global named, right
        rng = np.random.default_rng(seed)
        for count in range(10_000):
            ids = rng.integers(0, len(dataset), 512)
            try:
                rows = dataset.read_batch(ids).columns["row"].values
            except shardload.StorageError as error:
                assert dataset.table[0].name in str(error)
                named += 1
            else:
                assert (rows == ids[:, None]).all(), "wrong rows without an error"
                right += 1
            if count == 3:
                cut.set()
            if stop.is_set() and count > 6:
                return
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads: thread.start()
    assert cut.wait(60)
    os.truncate(name, len(whole) // 3)
    stop.set()
    for thread in threads: thread.join(60)
    with open(name, "r+b") as file:
        file.write(whole)
    # The file is whole again, and the process that saw it cut reads it by position.
    assert (dataset.read_batch(np.arange(len(dataset))).columns["row"].values[:, 3] == np.arange(len(dataset))).all()
print(named, right)
"""


def test_cuts_under_busy_readers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with shardload.ShardWriter(path, {"row": "int32[1024]"}, shard_size="4MiB") as writer:
        for i in range(2000):
            writer.write({"row": np.full(1024, i, np.int32)})
    command = [sys.executable, "-c", HAMMER, str(path), "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    named, right = map(int, done.stdout.split())
    assert named >= 10
    assert right >= 10


WORKERS = """
import numpy as np, sys, os
import shardload
from torch.utils.data import DataLoader
from shardload.storage.guard import catches_faults

class Cut:
    def __init__(self, dataset):
        self.dataset = dataset
    def __len__(self):
        return len(self.dataset)
    def __getitems__(self, ids):
        rows = self.dataset.read_batch(np.array(ids)).columns["row"].values
        assert catches_faults()
        os.truncate(f"{path}/{self.dataset.table[0].name}", 8192)
        try:
            self.dataset.read_batch(np.array(ids))
        except shardload.StorageError as error:
            return [str(error)]
        return ["read"]

if __name__ == "__main__":
    path = sys.argv[1]
    dataset = shardload.open(path, engine="map", verify="off")
    dataset[0]
    assert catches_faults()
    for batch in DataLoader(Cut(dataset), batch_size=8, num_workers=1, collate_fn=lambda batch: batch):
        print(batch[0])
        break
"""


def test_workers_of_a_data_loader_catch_faults_too(tmp_path: Path) -> None:
    """Though torch takes the signal in each of them, for a message of its own."""
    with shardload.ShardWriter(tmp_path / "d", {"row": "int32[1024]"}) as writer:
        for i in range(20):
            writer.write({"row": np.full(1024, i, np.int32)})
    command = [sys.executable, "-W", "ignore", "-c", WORKERS, str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "cannot be read" in done.stdout or "shards/" in done.stdout, done.stdout
