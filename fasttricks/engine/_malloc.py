"""What tensors free on a CPU, kept for the next ones instead of given back to the system."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h, and the values that a process starts with.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_USUAL = {_M_TRIM_THRESHOLD: 128 * 1024, _M_MMAP_MAX: 65536}


def keep_freed_memory(enabled: bool = True) -> bool:
    """Have the C library keep the memory of freed tensors for the next ones, for this process.

    By default glibc asks the system for large blocks and gives them back when they are freed, so
    that each step of a training touches its activations' pages for the first time: page faults are
    a tenth to a third of the step's time. Call it once, at a program's start. The process then
    holds on to the most memory that it ever used, and to more, since blocks of many sizes no longer
    fit each other exactly. GPUs are not concerned: torch keeps their memory anyway.

    Args:
        enabled: False goes back to giving memory back, above a threshold that no longer adapts.

    Returns:
        Whether it is done: True with glibc, which is Linux; elsewhere nothing happens and the
        answer is False. Another allocator that is loaded in front of glibc's is not reached.

    Example:
        >>> done = keep_freed_memory()
        >>> done == keep_freed_memory(False)  # where it can be done it can be undone
        True

    Reference:
        mallopt(3): ``M_MMAP_MAX`` of 0 takes large blocks from the heap as well, and a
        ``M_TRIM_THRESHOLD`` of -1 never gives back its end.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0}
    return all(mallopt(name, value) for name, value in (kept if enabled else _USUAL).items())
