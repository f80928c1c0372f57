"""How long one attempt at a store far away may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one attempt may take."""

    progress_seconds: float = 10.0
    """Without a byte, or without a connection."""
    request_seconds: float = 60.0
    """Altogether; a second more for each MiB."""

    def seconds_for(self, num_bytes: int) -> float:
        """Returns how long an attempt at so many bytes may take."""
        return self.request_seconds + num_bytes / (1 << 20)
