"""Mapped files that cannot be read at some place give zeros there instead of ending the process.

The system answers an access behind the end of a file that was cut, or to a page that its device does not give, by SIGBUS. A
handler puts zeros in the place of the whole file, for good; who reads compares the file's end afterwards and so finds out.
Faults elsewhere, and signals that somebody sent, go to whoever had the signal before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
import weakref
from typing import Any, Protocol

_SA_SIGINFO = 4
_CODE, _ADDRESS = 8, 16
"""Where siginfo_t has them."""


class Region(Protocol):
    """Addresses that hold mapped files."""

    def blank(self, address: int) -> bool:
        """Puts zeros in the place of the file that is mapped at an address; returns False if none is."""
        ...


class _Action(ctypes.Structure):
    """struct sigaction of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


# Not by CDLL: a question of a microsecond must not give the interpreter away.
_libc = ctypes.PyDLL(None)
_regions: weakref.WeakSet[Any] = weakref.WeakSet()
_before = _Action()
_lock = threading.Lock()
_installed: tuple[int, int] | None = None
"""The process that took the signal, and the address of its handler; 0 where there can be none."""


def watch_faults(region: Region) -> None:
    """Catches faults in a region for as long as it lives."""
    _regions.add(region)


def catches_faults() -> bool:
    """Tells whether faults are caught at present; the first call of a process sees to it. Whoever takes the signal later has it."""
    global _installed
    # A forked child begins anew: what forks for us, such as a DataLoader, may have taken the signal for itself by then.
    if _installed is None or _installed[0] != os.getpid():
        with _lock:
            if _installed is None or _installed[0] != os.getpid():
                _installed = os.getpid(), _install()
    if not _installed[1]:
        return False
    now = _Action()
    return _sigaction(None, now) and now.handler == _installed[1]


def _install() -> int:
    if platform.machine() not in ("x86_64", "aarch64"):
        return 0
    try:
        action = _Action(handler=ctypes.cast(_handler(), ctypes.c_void_p).value, flags=_SA_SIGINFO)
    except (MemoryError, OSError):
        # Systems that forbid memory to be written and run do not allow handlers made here.
        return 0
    before = _Action()
    if not _sigaction(action, before):
        return 0
    if before.handler != action.handler:
        ctypes.pointer(_before)[0] = before
    return int(action.handler or 0)


def _sigaction(action: _Action | None, before: _Action | None) -> bool:
    pointers = [None if value is None else ctypes.byref(value) for value in (action, before)]
    return int(_libc.sigaction(int(signal.SIGBUS), *pointers)) == 0


def _on_fault(number: int, info: int, _context: int) -> None:
    """Runs in the thread that hit the fault, in the midst of its copy, and lets it go on."""
    code, address = ctypes.c_int.from_address(info + _CODE).value, ctypes.c_size_t.from_address(info + _ADDRESS).value
    try:
        if code > 0 and any(region.blank(address) for region in list(_regions)):
            return
    except OSError:
        pass
    # A fault happens again after the return, and a signal that was sent is sent again: then the other handler has it.
    _sigaction(_before, None)
    if code <= 0:
        signal.raise_signal(number)


_made: list[Any] = []


def _handler() -> Any:
    """Returns the handler in the form of the system, made once and kept for ever: it may be called at any time."""
    if not _made:
        _made.append(ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_fault))
    return _made[0]
