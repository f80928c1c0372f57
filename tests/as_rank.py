"""Runs a script as one of several ranks, up to but without the end of its interpreter.

A thread of gloo's drops the last tensors of a collective when it gets to it, and takes the interpreter's lock for that: with
one that has ended by then the process aborts (seen with Accelerate's gather, under load). What comes before that end is done:
threads are waited for, and functions that are registered for the exit, ours among them, are called. Scripts close their files.
"""

from __future__ import annotations

import atexit
import io
import os
import runpy
import sys
import threading
import traceback


def status_of(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    del sys.argv[0]
    # As where a script is run by its own name.
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    # torchrun has Python write at once what it is given, a line and its end apart, which those of another rank come between.
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False), 1 << 20), line_buffering=True)
    status = status_of(sys.argv[0])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
