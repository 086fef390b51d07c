"""A lock that keeps a workdir to one process at a time."""

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
    """Another process uses the workdir; the message names it."""


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path, *, patience: float = 5.0) -> Iterator[None]:
    """Holds the lock of a workdir, which must exist.

    The kernel keeps the lock (flock), so it ends with the process in every case. The file remains
    and means nothing. The lock holds between machines where the file system supports it (NFS does,
    Lustre does with -o flock).

    Args:
      workdir: to lock.
      patience: seconds to wait, because the data workers of a killed process hold the lock until
        they notice its end.

    Raises:
      WorkdirInUseError: another process holds the lock.
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


def is_locked(workdir: pathlib.Path) -> bool:
    """Whether a process holds the lock of a workdir now; nothing is written."""
    try:
        handle = os.open(workdir / FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
