"""What a signal does while something must not be left half done, and a second one after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardload.packing import pack
from shardload.packing.signals import signals_held
from shardload.storage import Operations


class Interrupted(Operations):
    """Sends Ctrl-C in the midst of packing, and again when the first file is removed."""

    def __init__(self, at_write: int) -> None:
        self.num_writes = 0
        self.num_unlinked = 0
        self.at_write = at_write

    def write(self, descriptor: int, data: Any) -> int:
        self.num_writes += 1
        if self.num_writes == self.at_write:
            signal.raise_signal(signal.SIGINT)
        return super().write(descriptor, data)

    def unlink(self, path: str) -> None:
        if self.num_writes >= self.at_write:
            self.num_unlinked += 1
            signal.raise_signal(signal.SIGINT)
        super().unlink(path)


def test_the_first_waits_for_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), signals_held():
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("after", [None, ValueError()])
def test_the_second_does_not(after: BaseException | None) -> None:
    num_done = 0
    with pytest.raises(KeyboardInterrupt), signals_held(after):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            num_done += 1
    assert num_done == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_none_is_lost_whatever_the_program_does_with_it() -> None:
    told: list[int] = []
    before = [
        signal.signal(number, lambda number, frame: told.append(number)) for number in (signal.SIGTERM, signal.SIGHUP)
    ]
    try:
        with signals_held():
            signal.raise_signal(signal.SIGTERM)
            assert told == []
            signal.raise_signal(signal.SIGHUP)
            assert told == [signal.SIGTERM, signal.SIGHUP]
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
    assert told == [signal.SIGTERM, signal.SIGHUP]


def test_what_led_here_counts_as_the_first() -> None:
    num_done = 0
    with pytest.raises(KeyboardInterrupt), signals_held(KeyboardInterrupt()):
        signal.raise_signal(signal.SIGINT)
        num_done += 1
    assert num_done == 0


def test_a_second_one_ends_the_tidying_up_and_the_pack_is_gone_on_with(tmp_path: Path, digests) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"label": n}) + "\n" for n in range(400)))
    more: dict[str, Any] = {"workers": 1, "shard_size": "8KiB", "unit_size": 3000}
    pack(source, tmp_path / "whole", **more)
    operations = Interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", operations=operations, **more)
    assert operations.num_unlinked == 1
    pack(source, tmp_path / "out", resume=True, **more)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


STARTED = """
import signal
import subprocess
import sys
from pathlib import Path
from shardload.packing.processes import Workers

with Workers() as workers:
    workers.start(2)
    for worker in workers._workers:
        status = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigBlk:", "SigIgn:"))]
        print(any(mask >> signal.SIGINT - 1 & 1 for mask in masks))
"""


def test_no_worker_is_ended_by_ctrl_c_while_it_starts() -> None:
    """In a process of its own: the first worker of a process is started after a tracker of resources, which lifts the mask."""
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


PACKED_HERE = """
import os, sys
from pathlib import Path
import shardload

shardload.pack(sys.argv[1], sys.argv[2])
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
"""


def test_what_is_packed_by_this_process_alone_starts_no_other(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a"}))
    command = [sys.executable, "-c", PACKED_HERE, str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
