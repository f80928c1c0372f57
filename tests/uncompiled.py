"""The package as it is where no C compiler was found when it was installed."""

from __future__ import annotations

import pytest

from shardload.memory import ranges
from shardload.reader import map_engine, records, sums


def leave_out_compiled_part(patch: pytest.MonkeyPatch) -> None:
    """Has all done in Python until the patch is undone; how many threads read stays what it was."""
    patch.setattr(ranges, "_ranges", None)
    patch.setattr(map_engine, "COPIES_UNLOCKED", False)
    for module in (map_engine, records, sums):
        patch.setattr(module, "SUMS", False)
