"""Memory of the host that is freed stays in the process, for the next step to use.

XLA allocates the temporary buffers of a program at each call. glibc maps one of 32 MiB or more anew
each time, and returns what is free at the end of the heap. Both come back as pages that the kernel
has to zero, which is a tenth of the CPU time of a training step.
"""

import ctypes
import os
import platform

NEVER = -1  # a number of bytes is an int, and the free memory of a training may be beyond 2 GiB
# The numbers are those of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Other arenas than the first are cut from maps of 64 MiB, and map larger requests each time.
SETTINGS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: NEVER, _ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Lets malloc keep all freed memory, in this process.

    Settings of the user count instead of these: the variables of glibc, GLIBC_TUNABLES and those
    whose names begin with MALLOC_. Other libraries than glibc are left as they are.

    Returns:
      Whether malloc keeps it.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(setting, value) for setting, value in SETTINGS.items()]
    return all(done)
