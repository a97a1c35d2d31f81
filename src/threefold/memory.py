"""Settings of the C library's allocator that training on a CPU wants."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back to the kernel after every large tensor.

    A training step on a CPU allocates and frees the same large tensors again and again; by default each goes
    through mmap and munmap and is zeroed page by page. Measured with benchmarks/allocator.py. Elsewhere than
    glibc this does nothing.

    Returns:
        Whether the allocator took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
