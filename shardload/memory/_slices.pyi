from typing import Any

import numpy as np
from numpy.typing import NDArray

def slices(memory: Any, starts: NDArray[np.int64], stops: NDArray[np.int64], /) -> list[bytes]: ...
