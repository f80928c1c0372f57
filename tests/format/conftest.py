from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def plain_reader() -> ModuleType:
    """`plain_reader.py` beside this file: it reads by FORMAT.md alone and imports nothing of shardload."""
    path = Path(__file__).with_name("plain_reader.py")
    spec = importlib.util.spec_from_file_location("plain_reader", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
