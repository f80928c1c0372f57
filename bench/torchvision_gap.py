"""What `streaming` needs where torchvision was built for a GPU and torch was not.

Imported by the peers' own Python, also beside a script that is run by its path: it needs nothing of this package.
"""

from __future__ import annotations

import sys
from typing import Any

_declared: Any = None


def close() -> None:
    """Makes torchvision importable.

    Its operators cannot be loaded then, and the import stops at two that it describes. Nothing that is measured calls
    torchvision.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        global _declared
        _declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
