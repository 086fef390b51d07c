"""Examines this machine: what runs here, what does not, and the mend.

    python -m experiments.doctor
    python -m experiments.doctor --json        # for an issue

Each line is "ok", "attention" (it works, but perhaps not as expected) or "broken" (a run would
fail). The exit code is 1 if something is broken. The command takes almost no memory of a GPU, so it
may run beside a training.
"""

import functools
import os
import pathlib

from absl import flags

from experiments.cli import command_line
from experiments.cli.stdout import print_lines
from experiments.report import machine_checks, software_checks
from experiments.report.diagnosis import Check, as_json, as_text, examine
from experiments.run import device_settings


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("runs", "runs", "Folder of the workdirs.", flag_values=flag_values)
    flags.DEFINE_string(
        "data_dir", None, "Folder of the prepared data sets (default: that of TFDS).",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "Print JSON, for an issue.", flag_values=flag_values)


def main(options: flags.FlagValues) -> int:
    """Prints the findings; the exit code is 1 if something is broken."""
    runs = pathlib.Path(options.runs)
    variables = list(software_checks.check_variables())  # as the user has set them
    names = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    memory = [os.environ.get(name) for name in names]
    device_settings.share_gpu()
    checks: dict[str, Check] = {
        "versions": software_checks.check_versions,
        "devices": software_checks.check_devices,
        "operator": software_checks.check_operator,
        "programs": software_checks.check_programs,
        "GPU memory": functools.partial(software_checks.check_preallocation, *memory),
        "environment": lambda: variables,
        "data": functools.partial(machine_checks.check_data, options.data_dir),
        "disk": functools.partial(machine_checks.check_disks, runs),
        "processors": machine_checks.check_processors,
        "processes": functools.partial(machine_checks.check_processes, runs),
    }
    findings = examine(checks)
    print_lines(as_json(findings) if options.json else as_text(findings))
    return int(any(finding.state == "broken" for finding in findings))


if __name__ == "__main__":
    command_line.run(main, define_flags)
