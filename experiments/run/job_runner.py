"""Runs jobs one after another, each in a process of its own."""

import pathlib
import sys
from collections.abc import Sequence

from experiments.run.attacks import Plan
from experiments.run.child import Child
from experiments.run.jobs import Job, finished_run


def run_jobs(
    jobs: Sequence[Job],
    root: pathlib.Path,
    *,
    watching: Sequence[str] = (),
    attack: Plan | None = None,
) -> list[str]:
    """Trains what is not finished, and evaluates it under attack.

    SIGINT and SIGTERM end the current run, and no other is started.

    Args:
      jobs: in their order.
      root: folder of the workdirs, in which finished runs are searched.
      watching: arguments of every training that change none of its numbers, such as a writer.
      attack: evaluate finished runs under this attack.

    Returns:
      The names of the jobs that failed, in training or under attack.
    """
    failed = []
    child = Child()
    with child.forward_signals():
        for number, job in enumerate(jobs, start=1):
            title = f"[{number}/{len(jobs)}] {job.name}"
            trained = _train(child, title, job, root, watching)
            if not (trained and _attack(child, title, job, root, attack)):
                failed.append(job.name)
            if child.stopped:
                print("stopped; rerun the same command to resume", flush=True)
                break
    return failed


def _train(child: Child, title: str, job: Job, root: pathlib.Path, watching: Sequence[str]) -> bool:
    """Trains a job unless it is finished; False if it fails."""
    if (run := finished_run(job, root)) is not None:
        print(f"{title}: finished in {run.workdir}", flush=True)
        return True
    print(f"{title}: in {job.workdir}", flush=True)
    recipe = (f"--config={job.config.recipe}", f"--workdir={job.workdir}")
    arguments = (*recipe, *job.changes, *watching)
    return _run(child, f"{title}: failed", "experiments.train", arguments)


def _attack(child: Child, title: str, job: Job, root: pathlib.Path, attack: Plan | None) -> bool:
    """Evaluates a finished job under attack unless its numbers are stored; False if it fails."""
    if attack is None or child.stopped:
        return True
    run = finished_run(job, root)
    assert run is not None  # its training has ended with exit code 0
    if attack.is_done(run.attacked):
        return True
    print(f"{title}: {attack.kind} attack on {run.workdir}", flush=True)
    arguments = (f"--run={run.workdir}", *attack.typed)
    return _run(child, f"{title}: attack failed", "experiments.evaluate", arguments)


def _run(child: Child, message: str, command: str, arguments: Sequence[str]) -> bool:
    """Runs a command; False if it fails by itself, not by a signal that was forwarded to it."""
    code = child.run([sys.executable, "-m", command, *arguments])
    if code == 0 or child.stopped:
        return True
    print(f"{message} with exit code {code}", flush=True)
    return False
