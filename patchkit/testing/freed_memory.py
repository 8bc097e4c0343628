"""Freed memory that stays with the process, so that times do not depend on when it comes back from the system.

Under autocast a step casts weights into buffers of megabytes. glibc's malloc gives such memory back when it is freed,
or keeps it, as the addresses of other blocks happen to be. Each page that comes back costs a fault, at whichever step
meets it: a fifth of a step of a model of 1024 wide, now of one contender and now of the other.
"""

from __future__ import annotations

import ctypes
from typing import Any

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, from now on to the end of this process; whether it does.

    It does where the C library is glibc (``mallopt(3)``). Other ones have no such switch, and nothing changes.
    """
    try:
        library: Any = ctypes.CDLL(None)
        mallopt, _ = library.mallopt, library.gnu_get_libc_version
    except (AttributeError, OSError, TypeError):  # another C library, or a system where a process is no library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
