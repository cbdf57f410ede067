"""Keep the memory that torch frees on the CPU, where the C library can: new tensors cost page faults otherwise."""

import ctypes
import platform

# glibc's parameters of mallopt, and their values. Activations of 224 pixels are larger than glibc keeps by default.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TRIM_BYTES, PAD_BYTES, LARGEST_BYTES = 2**31 - 1, 64 * 2**20, 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next tensors; returns whether it does.

    The command line does so by itself. In Python it is the user's choice: it changes the whole process, which then
    holds more memory at its peak. It works with glibc (Linux) and does nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, LARGEST_BYTES), (M_TRIM_THRESHOLD, TRIM_BYTES), (M_TOP_PAD, PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
