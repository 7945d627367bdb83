"""How a process computes on CPUs: what OpenMP, oneDNN and the C library's allocator can't know; a user's choice stands.

Import it before torch: that is all.
"""

import ctypes
import os

# Threads that wait for work by spinning make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# oneDNN keeps what it prepares for each shape, 1024 of them by default; packed batches hardly ever have the same shape
# twice, and a small model grew to gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def _keep_freed_memory() -> None:
    """Freed memory would go back to the system after each step, to be fetched again, page by page, in the next."""
    trim_threshold, mmap_threshold = -1, -3  # their numbers in glibc, which alone has them
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(mmap_threshold, 32 << 20)  # the largest there is
        mallopt(trim_threshold, 2**31 - 1)


_keep_freed_memory()
