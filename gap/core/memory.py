"""Let the C library keep the memory that torch frees on the CPU, which saves the page faults of new tensors."""

import ctypes
import platform

# Parameters of glibc's mallopt, and their values. By default, glibc does not keep blocks as large as the activations of
# images of 224 pixels.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TRIM_BYTES, PAD_BYTES, LARGEST_BYTES = 2**31 - 1, 64 * 2**20, 32 * 2**20


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next tensors. Returns whether that worked.

    The command line calls this. In Python the user decides, because it affects the whole process, whose peak memory
    rises. It works with glibc (Linux) and does nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, LARGEST_BYTES), (M_TRIM_THRESHOLD, TRIM_BYTES), (M_TOP_PAD, PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
