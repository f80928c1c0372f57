"""A dataset that several files read."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import write_documents


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents of varying length. Read only."""
    return write_documents(tmp_path_factory.mktemp("documents") / "dataset")
