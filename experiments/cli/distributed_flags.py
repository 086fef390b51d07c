"""The flags of a run of several processes."""

import jax
from absl import flags

from experiments.config import ConfigError
from lrnet_jax.training import processes


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines --distributed, and the three flags that name the processes without a scheduler."""
    flags.DEFINE_boolean(
        "distributed", False,
        "This is one of several processes that Slurm, Open MPI or Kubernetes started. Without "
        "them, give --coordinator.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0; needs --num_processes and --process_id.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_processes", None, "Number of processes of the run.", lower_bound=1,
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0.", lower_bound=0,
        flag_values=flag_values,
    )  # fmt: skip


def join(options: flags.FlagValues) -> None:
    """Connects the processes of a run, if the flags say that there are several.

    Raises:
      ConfigError: flags are missing, no scheduler is detected, or another process cannot be
        reached.
    """
    explicit = ("coordinator", "num_processes", "process_id")
    missing = [f"--{name}" for name in explicit if options[name].value is None]
    if len(missing) == len(explicit) and not options.distributed:
        return
    if 0 < len(missing) < len(explicit):
        raise ConfigError(
            f"{', '.join(missing)} is missing; give --coordinator=HOST:PORT, --num_processes and "
            "--process_id, or --distributed where a scheduler starts the processes"
        )
    try:
        processes.join(options.coordinator, options.num_processes, options.process_id)
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"cannot join the other processes: {line}; outside Slurm, Open MPI and Kubernetes give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I to each of them"
        ) from error
    # JAX ends a process that lost the others in C++, where this program can print nothing more.
    print(
        f"process {jax.process_index()} of {jax.process_count()}; if one is lost, the others end "
        f"within about {processes.HEARTBEAT_SECONDS} s. To resume from the newest checkpoint, "
        "start all of them again with the same command",
        flush=True,
    )
