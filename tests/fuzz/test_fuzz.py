"""A short run of every fuzz target, the same each time; `run.py` is the long one."""

from __future__ import annotations

import pytest
from fuzz.run import check_memory, corpus_of, fuzz, run_one
from fuzz.targets import TARGETS

RUNS = 800
"""Of a target that writes no files."""


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_once_failed(name):
    target = TARGETS[name]
    for data in target.seeds() + corpus_of(name) + [b"", b"\0", b"\xff" * 4096]:
        run_one(target, data)
        check_memory(target, data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name):
    target = TARGETS[name]
    fuzz(target, 40 if target.slow else RUNS, seed=0)
