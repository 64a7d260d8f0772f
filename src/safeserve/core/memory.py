"""Memory that this process holds and does not need: given back to the system, or not taken."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os


def give_back() -> None:
    """Let other uses have what was freed: after a training glibc keeps most of a gigabyte. Does nothing elsewhere."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_less_code() -> None:
    """Half of oneDNN's memory for compiled products (some 300 KB each); to be called before the first of them.

    It keeps the last 1,024. A training step takes turns between one or two hundred, and rarely meets an older one.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
