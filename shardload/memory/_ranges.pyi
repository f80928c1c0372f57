from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]

SUMS: int

def gather(
    memory: Any, starts: Int64, stops: Int64, target: NDArray[np.uint8], sums: UInt32 | None = None, /
) -> None: ...
def slices(
    memory: Any, starts: Int64, stops: Int64, heads: Int64 | None = None, sums: UInt32 | None = None, /
) -> list[bytes]: ...
def texts(
    memory: Any, starts: Int64, stops: Int64, heads: Int64 | None = None, sums: UInt32 | None = None, /
) -> list[str]: ...
def add_up(memory: Any, starts: Int64, stops: Int64, sums: UInt32, /) -> None: ...
