"""Checks of `experiments.doctor`: processors, memory, disk, data sets, other programs."""

import os
import pathlib
import resource
import shutil
import subprocess
from collections.abc import Iterator

from experiments.report.diagnosis import Finding
from experiments.run import pasteable
from lrnet_jax.data import MissingDatasetError, imagenet, prepared
from lrnet_jax.training.workdir_lock import is_locked

GIB = 2**30
FREE_DISK = 10 * GIB  # three checkpoints of LR-Net-50 take 1 GB
DEPTHS = ("*", "*/*", "*/*/*")  # of a workdir below the folder of runs: runs/seed0/study/lrnet
FREE_SHARED = GIB  # workers hand over their batches in shared memory


def check_processors() -> Iterator[Finding]:
    """Cores, memory, load and open files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    total, free = _memory()
    text = f"{cores} cores, load {load:.1f}; {free:.1f} of {total:.1f} GiB of memory free"
    busy = load > 1.5 * (cores or 1)
    mend = "other programs slow the input pipeline: see `top`" if busy else ""
    yield Finding("processors", "attention" if busy else "ok", text, mend)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY,) and hard < imagenet.OPEN_FILES:
        text = f"a process may open {hard} files, and reading ImageNet needs {imagenet.OPEN_FILES}"
        yield Finding("open files", "attention", text, f"ulimit -n {imagenet.OPEN_FILES}")


def check_disks(runs: pathlib.Path) -> Iterator[Finding]:
    """Free space where runs are written, and in shared memory."""
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free for {runs}"
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "broken", f"{folder} is not writable", "give another --workdir")
    elif free < FREE_DISK:
        yield Finding("disk", "attention", text, f"free {FREE_DISK // GIB} GiB for checkpoints")
    else:
        yield Finding("disk", "ok", text)
    shared = pathlib.Path("/dev/shm")
    if shared.exists() and (free := shutil.disk_usage(shared).free) < FREE_SHARED:
        text = f"{free / GIB:.2f} GiB free in {shared}, through which data workers send batches"
        mend = "in a container: docker run --shm-size=8g; else remove old files there"
        yield Finding("shared memory", "attention", text, mend)


def check_data(data_dir: str | None) -> Iterator[Finding]:
    """The embedded images, and the sets that TFDS prepared."""
    from lrnet_jax.data import fashion_mnist_subset

    embedded = fashion_mnist_subset()
    text = f"{embedded.name} ({embedded.num_train} + {embedded.num_eval} images, embedded)"
    yield Finding("data", "ok", text)
    root = pathlib.Path(data_dir or prepared.default_data_dir()).expanduser()
    others = sorted({path.parents[1].name for path in root.glob("*/*/dataset_info.json")})
    if others:
        yield Finding("data", "ok", f"{', '.join(others)} in {root}")
    try:
        prepared.find("imagenet2012", str(root), "")
    except MissingDatasetError:
        text = f"imagenet2012 is not in {root}; the recipes of the paper need it"
        command = pasteable.command(
            "experiments.prepare_imagenet", ["--manual_dir=DIR_OF_THE_TARS", f"--data_dir={root}"]
        )
        yield Finding("data", "attention", text, command)


def check_processes(runs: pathlib.Path) -> Iterator[Finding]:
    """Trainings below a folder, and programs on the GPUs."""
    locks = [lock for depth in DEPTHS for lock in runs.glob(f"{depth}/lock")]
    busy = [str(lock.parent) for lock in sorted(locks) if is_locked(lock.parent)]
    text = f"a training runs in {', '.join(busy)}" if busy else f"no training runs in {runs}"
    yield Finding("processes", "ok", text)
    query = ["--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return
    lines = [line.strip() for line in done.stdout.splitlines() if done.returncode == 0]
    if lines:
        mend = "JAX takes three quarters of a GPU at its start; see `nvidia-smi` for who has what"
        yield Finding("processes", "attention", f"on the GPUs: {'; '.join(lines)}", mend)


def _memory() -> tuple[float, float]:
    """Memory of the machine and what is free of it, in GiB."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    info = pathlib.Path("/proc/meminfo")
    if not info.exists():
        return total / GIB, page * os.sysconf("SC_AVPHYS_PAGES") / GIB
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return total / GIB, int(fields["MemAvailable"].split()[0]) * 1024 / GIB
