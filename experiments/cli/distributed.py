"""Flags of a run of several processes, and the joining of them."""

import jax
from absl import flags

from experiments.config import ConfigError
from lrnet_jax.training import processes

_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "One of several processes, started by Slurm, Open MPI or Kubernetes; or see --coordinator.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, with --num_processes and --process_id."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.", lower_bound=0)


def join() -> None:
    """Connects the processes of a run, if the flags say that there are several.

    Raises:
      ConfigError: flags are missing, nothing is detected, or the others cannot be reached.
    """
    explicit = {
        "coordinator": _COORDINATOR.value,
        "num_processes": _NUM_PROCESSES.value,
        "process_id": _PROCESS_ID.value,
    }
    missing = [f"--{name}" for name, value in explicit.items() if value is None]
    if len(missing) == len(explicit) and not _DISTRIBUTED.value:
        return
    if 0 < len(missing) < len(explicit):
        raise ConfigError(
            f"{', '.join(missing)} is missing; give --coordinator=HOST:PORT, --num_processes and "
            "--process_id, or --distributed where a scheduler starts the processes"
        )
    try:
        processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"cannot join the other processes: {line}; outside Slurm, Open MPI and Kubernetes give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I to each of them"
        ) from error
    # JAX ends a process that lost the others in C++, where nothing of ours has the last word.
    print(
        f"process {jax.process_index()} of {jax.process_count()}; should one be lost, the others "
        f"end within about {processes.HEARTBEAT_SECONDS} s: start all of them again with the same "
        "command, the run goes on from its newest checkpoint",
        flush=True,
    )
