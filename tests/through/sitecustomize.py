"""Has programs that tests start read through the store of `stores.py` as well: Python imports this first of all."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

if store := os.environ.get("SHARDLOAD_TEST_STORE"):
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    sys.path[:0] = paths
    try:
        import stores

        stores.read_through(store)
    except BaseException:
        # Python would go on, and read files.
        traceback.print_exc()
        os._exit(1)
    finally:
        for path in paths:
            sys.path.remove(path)
