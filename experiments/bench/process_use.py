"""CPU time and memory of this process and its descendants, as Linux reports them in /proc."""

import os
import pathlib
import time

PROC = pathlib.Path("/proc")
_IDLE_SECONDS = 0.3
# Less CPU time within _IDLE_SECONDS counts as idle. It is not 0: reading /proc takes time as well,
# and threads wake up now and then.
_IDLE_CPU_SECONDS = 0.03
_MAX_WAIT_SECONDS = 120.0


def family() -> list[pathlib.Path]:
    """Folders in /proc of this process and of its descendants."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        fields = _stat(folder)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [os.getpid()]
    while queue:
        pid = queue.pop()
        found.append(PROC / str(pid))
        queue += children.get(pid, [])
    return found


def cpu_seconds() -> float:
    """User and system time of this process and its descendants, also of those that have ended."""
    ticks = sum(sum(map(int, fields[11:15])) for fields in map(_stat, family()) if fields)
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int:
    """Memory of this process and its descendants; shared pages count once."""
    total = 0
    for folder in family():
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:  # the process has ended meanwhile
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def wait_until_idle() -> tuple[float, float]:
    """Waits until this process and its descendants compute no more.

    Returns:
      The time (`time.monotonic`) at which they became idle, and their CPU seconds until then.

    Raises:
      TimeoutError: they compute for more than two minutes.
    """
    start = time.monotonic()
    while time.monotonic() - start < _MAX_WAIT_SECONDS:
        since, spent = time.monotonic(), cpu_seconds()
        time.sleep(_IDLE_SECONDS)
        if cpu_seconds() - spent < _IDLE_CPU_SECONDS:
            return since, spent
    raise TimeoutError(
        f"a pipeline still computes {_MAX_WAIT_SECONDS:.0f} s after its last batch was taken"
    )


def _stat(folder: pathlib.Path) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; none if the process has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
