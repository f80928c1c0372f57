from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest


@pytest.fixture
def digests():
    """Returns the SHA-256 of every file below a folder, by relative path."""

    def take(root: Path | str) -> dict[str, str]:
        files = sorted(path for path in Path(root).rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return take


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 300 texts in three sub-folders, with and without content. Read only."""
    root = tmp_path_factory.mktemp("texts")
    words = random.Random(1)
    for number in range(300):
        path = root / f"class{number % 3}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(f"wörd{words.randrange(1000)}" for _ in range(3 * number % 200)))
    return root


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file of 2,000 samples. Read only."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = random.Random(2)
    with path.open("w") as file:
        for number in range(2000):
            text = "x" * words.randrange(300)
            sample = {"number": number, "text": text, "score": words.random(), "tags": [number], "note": None}
            if number % 2:
                del sample["note"]
            file.write(json.dumps(sample) + "\n")
    return path


@pytest.fixture(scope="session")
def slow_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file of 32 MiB, two units, which takes tens of seconds to pack with zstd:19. Read only."""
    path = tmp_path_factory.mktemp("slow") / "rows.jsonl"
    words = random.Random(3).randbytes(1 << 20).hex()
    with path.open("w") as file:
        for number in range(3300):
            file.write(json.dumps({"number": number, "text": words[number * 10 :][:10_000]}) + "\n")
    return path
