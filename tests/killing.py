"""Instruments for packs, which have several processes: a whole process group ends at the nth operation of any of them."""

from __future__ import annotations

import os
import signal
from typing import Any

from faults import Instrument, NoDevice


class Counted(Instrument):
    """Counts all operations and calls `reached` at the nth, which half of a write goes before.

    A process that is killed loses nothing that it has written, so the device is left out: that would be waiting only.
    """

    def __init__(self, number: int = -1) -> None:
        super().__init__(NoDevice())
        self.number, self.count = number, 0

    def reached(self) -> None:
        """What happens at the nth operation."""

    def carry_out(self, name: str, *arguments: Any) -> Any:
        self.count += 1
        if self.count == self.number:
            if name == "write":
                os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            self.reached()
        return super().carry_out(name, *arguments)


class KilledAt(Counted):
    """Kills the process group at the nth operation of any one process."""

    def reached(self) -> None:
        os.killpg(os.getpgid(0), signal.SIGKILL)


class FailsAt(Counted):
    """The nth operation fails with an error; those before and after it do not."""

    def __init__(self, number: int, error: int) -> None:
        super().__init__(number)
        self.error = error

    def reached(self) -> None:
        raise OSError(self.error, os.strerror(self.error))
