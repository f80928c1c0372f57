"""No framework is needed until its module is imported, and then the error says which extra brings it."""

from __future__ import annotations

import subprocess
import sys
import pytest

FRAMEWORKS = ("accelerate", "lightning", "transformers")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_that_is_missing_is_named(framework):
    """A None in sys.modules is how Python marks what cannot be imported."""
    program = f"import sys; sys.modules[{framework!r}] = None; import shardload.integrations.{framework}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"ImportError: shardload.integrations.{framework} needs {framework}" in done.stderr
    assert f"pip install 'shardload[{framework}]'" in done.stderr


def test_the_loader_imports_none_of_them():
    program = "import sys, shardload.integrations; shardload.ShardLoader; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & set(FRAMEWORKS)

