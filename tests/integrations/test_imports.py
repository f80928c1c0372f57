"""No framework is needed until its module is imported, and then the error says which extra brings it."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = ("accelerate", "lightning", "transformers")


PROGRAM = """
import importlib, sys, shardload, shardload.integrations
shardload.ShardLoader
print("loaded:", *{name.partition(".")[0] for name in sys.modules})
for name in sys.argv[1:]:
    sys.modules[name] = None  # this is how Python marks what cannot be imported
    try:
        importlib.import_module("shardload.integrations." + name)
    except ImportError as error:
        print(error)
"""


def test_only_the_module_of_a_framework_needs_it_and_names_the_extra():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *FRAMEWORKS], capture_output=True, text=True, timeout=60, check=True
    )
    loaded, *errors = done.stdout.splitlines()
    assert not set(loaded.split()) & set(FRAMEWORKS)
    assert len(errors) == len(FRAMEWORKS)
    for framework, error in zip(FRAMEWORKS, errors, strict=True):
        assert error.startswith(f"shardload.integrations.{framework} needs {framework}")
        assert error.endswith(f"pip install --upgrade 'shardload[{framework}]'")
