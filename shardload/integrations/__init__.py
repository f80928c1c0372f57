"""Adapters for training frameworks, one module each: `lightning`, `accelerate` and `transformers`.

None of the frameworks is needed by shardload; a module asks for its own when it is imported. An adapter does only what
its framework leaves undone: it never splits, skips or reorders anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shardload.loader.state import STATE_KEY


def missing(framework: str) -> ImportError:
    """Returns the error for a framework that is not installed, or too old."""
    return ImportError(
        f"shardload.integrations.{framework} needs {framework}, which is not installed or too old: "
        f"pip install --upgrade 'shardload[{framework}]'"
    )


def place_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of a loader's state, with `epoch` and `position`."""
    place: dict[str, Any] = json.loads(state[STATE_KEY])
    return place
