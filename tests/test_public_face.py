"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import shardload


def test_all_is_sorted_true_and_whole():
    assert shardload.__all__ == sorted(shardload.__all__, key=str)
    for name in shardload.__all__:
        assert getattr(shardload, name) is not None
    assert dir(shardload) == shardload.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shardload.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(shardload.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen | {"__version__"} == set(shardload.__all__)


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_is_light():
    assert not loaded_after("import shardload") & {"torch", "numpy", "zstandard", "msgspec", "rich", "click"}


@pytest.mark.parametrize("code", ["shardload.ShardWriter", "shardload.pack", "shardload.open", "import shardload.cli"])
def test_what_needs_no_torch_loads_none(code):
    assert "torch" not in loaded_after(f"import shardload; {code}")


@pytest.mark.parametrize("name", [n for n in shardload.__all__ if n.endswith("Error")])
def test_errors_survive_pickling_with_their_facts(name):
    kind = getattr(shardload, name)
    error = kind("what happened", dataset="/d", shard="s", start=1, stop=2, sample_id=3)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    error.add_note("where it came from")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert vars(copy) == vars(error)
    assert copy.start == 1
    assert copy.sample_id == 3
    assert copy.__notes__ == ["where it came from"]


def test_errors_are_also_what_python_would_raise():
    assert issubclass(shardload.FormatError, ValueError)
    assert issubclass(shardload.ChecksumError, shardload.FormatError)
    assert issubclass(shardload.UnsupportedVersionError, shardload.FormatError)
    assert issubclass(shardload.StorageError, OSError)
    assert issubclass(shardload.StateMismatchError, ValueError)
    assert issubclass(shardload.LoaderClosedError, RuntimeError)
