"""Memory that was used once stays at hand."""

import ctypes
import sys

# Names and numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory instead of giving it back to the system.

    By default every large tensor is mapped anew and touched for the first time, page by page. On
    virtual machines these page faults took up to four fifths of a training step of varying length
    (docs/performance-log.md). One arena, no mappings and no trimming keep the pages; the process
    then holds the most it ever needed at once. Where there is no glibc nothing is changed.

    Returns:
        Whether the allocator took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    taken = [mallopt(key, value) == 1 for key, value in wanted]  # each is tried
    return all(taken)
