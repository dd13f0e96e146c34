"""What this process does with its memory."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 128 * 1024


def spare_memory() -> None:
    """Makes the allocator return large buffers to the system when they are freed.

    The GNU C library keeps them once one was freed (its mmap threshold rises); other libraries do not need this.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
