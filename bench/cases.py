"""The table of cases: what is measured against what, each arm an epoch that is checked as it is timed."""

from __future__ import annotations

from bench import case_p4, checkpoint, cold, emulation, large, loop, warm
from bench.case import Case

CASES: dict[str, Case] = {
    case.name: case
    for case in sorted(
        (*warm.CASES, *case_p4.CASES, *cold.CASES, *emulation.CASES, *loop.CASES, *large.CASES, *checkpoint.CASES),
        key=lambda case: int(case.name.removeprefix("P")),
    )
}
