"""The table of cases: what is measured against what, each arm an epoch that is checked as it is timed."""

from __future__ import annotations

from bench import case_p4, case_p33, checkpoint, cold, emulation, far, large, loop, scan, warm, windows
from bench.case import Case

_MODULES = (warm, case_p4, cold, emulation, loop, large, windows, checkpoint, scan, far, case_p33)
CASES: dict[str, Case] = {
    case.name: case
    for case in sorted(
        (case for module in _MODULES for case in module.CASES), key=lambda case: int(case.name.removeprefix("P"))
    )
}
