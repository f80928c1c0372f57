"""How far the jobs that share a cache have come in their orders: a small file that each of their processes writes to.

Two that write at once may lose each other's words; they say them again soon.
"""

from __future__ import annotations

import os
import time

import numpy as np

from shardload.storage.uses import MAX_JOBS, Jobs

_JOB_BYTES = 64
_FACTS = np.dtype(
    [
        ("key", "<u8"),
        ("cursor", "<i8"),
        ("time", "<f8"),
        ("first_cursor", "<i8"),
        ("first_time", "<f8"),
        ("grace", "<i8"),
    ]
)
_READ_SECONDS = 0.5


class JobTable:
    """The table in an open file. Safe for several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._jobs = _parsed(b"")
        self._read_at = -1.0

    def read(self) -> Jobs:
        """Returns the table as it was half a second ago at most."""
        now = time.monotonic()
        if self._read_at < 0 or now - self._read_at > _READ_SECONDS:
            self._jobs, self._read_at = _parsed(self._content()), now
        return self._jobs

    def tell(self, key: int, cursor: int, grace: int) -> int:
        """Writes how far a job has come.

        Args:
            key: what tells it from others, above 0: the same for all its processes.
            cursor: the position it is at, counted over all epochs.
            grace: positions by which other processes of it may be behind.

        Returns:
            Its number.
        """
        rows = np.zeros(MAX_JOBS, dtype=_FACTS)
        content, now = self._content(), time.time()
        for number in range(MAX_JOBS):
            part = content[number * _JOB_BYTES : number * _JOB_BYTES + _FACTS.itemsize]
            if len(part) == _FACTS.itemsize:
                rows[number] = np.frombuffer(part, dtype=_FACTS)[0]
        same = np.flatnonzero(rows["key"] == key)
        # Of all others the one gives way that has told nothing for longest.
        number = int(same[0]) if len(same) else int(np.argmin(np.where(rows["key"] == 0, -1.0, rows["time"])))
        row = rows[number]
        if not len(same):
            row["first_cursor"], row["first_time"] = cursor, now
        elif cursor < row["first_cursor"] or now - row["time"] > 60.0:
            # Begun anew from an earlier place, or after a pause: its pace is another one.
            row["first_cursor"], row["first_time"] = cursor, now
        row["key"], row["cursor"], row["time"], row["grace"] = key, cursor, now, grace
        self._write(row.tobytes(), number * _JOB_BYTES)
        self._read_at = -1.0
        return number

    def _content(self) -> bytes:
        return os.pread(self._descriptor, MAX_JOBS * _JOB_BYTES, 0)

    def _write(self, data: bytes, offset: int) -> None:
        os.pwrite(self._descriptor, data, offset)


def _parsed(content: bytes) -> Jobs:
    rows = np.frombuffer(content.ljust(MAX_JOBS * _JOB_BYTES, b"\0"), dtype=np.uint8).reshape(MAX_JOBS, _JOB_BYTES)
    facts = np.ascontiguousarray(rows[:, : _FACTS.itemsize]).view(_FACTS).reshape(-1)
    return Jobs(*(facts[name].copy() for name in ("key", "cursor", "time", "first_cursor", "first_time", "grace")))
