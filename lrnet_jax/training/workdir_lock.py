"""One process at a time owns a workdir."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

FILE = "lock"


class WorkdirInUseError(RuntimeError):
    """Another process trains there; the message says which."""


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path, *, patience: float = 5.0) -> Iterator[None]:
    """Holds the lock of a workdir, which must exist.

    The lock is the kernel's (flock), so it ends with the process, however that ends; the file stays
    and says nothing. It holds between machines where the file system is mounted so (NFS is,
    Lustre with -o flock).

    Args:
      workdir: to own.
      patience: seconds to wait: a killed process's data workers hold the lock until they notice.

    Raises:
      WorkdirInUseError: another process has it.
      OSError: the lock file cannot be opened, or the file system has no locks.
    """
    path = workdir / FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise WorkdirInUseError(
                    f"{workdir} is in use by {owner or 'another process'}; wait for it, stop it, "
                    "or give another --workdir"
                )
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
