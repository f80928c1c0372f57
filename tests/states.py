"""States as other versions and programs would have written them."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def rewritten(state: dict[str, str], **changes: Any) -> dict[str, str]:
    """A state as another version or program would have written it, with its checksum."""
    content = json.loads(state["shardload"])
    del content["checksum"]
    content = {name: value for name, value in (content | changes).items() if value is not None}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {"shardload": json.dumps({**content, "checksum": checksum}, sort_keys=True)}
