"""Runs a command on a terminal of its own.

    python -m tests.experiments.on_terminal

prints what a person sees of a quickstart that is stopped after its first evaluation.
"""

import contextlib
import fcntl
import os
import pathlib
import pty
import struct
import subprocess
import sys
import termios
import textwrap

from tests.screen import seen

# Makes the terminal that of the process, so that what is typed becomes a signal.
ON_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"


def watch(command, environment, *, columns, stop_at=None):
    """The lines that a person sees of a command. Ctrl-C is typed once a text was printed."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command],
        stdin=its, stdout=its, stderr=its, env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(its)
    printed = b""
    # Linux answers EIO once the other end is closed.
    with contextlib.suppress(OSError), os.fdopen(ours, "r+b", buffering=0) as terminal:
        while part := terminal.read(65536):
            printed += part
            if stop_at is not None and stop_at in printed:
                terminal.write(b"\x03")
                stop_at = None
    assert process.wait(60) == 0, printed
    return seen(printed.decode(), columns)


if __name__ == "__main__":
    # As in an active environment.
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    lines = watch(
        ["python", "-m", "experiments.train", "--config=quickstart", "--config.seed=1"],
        {**os.environ, "PATH": path}, columns=80, stop_at=b"evaluation at step 625",
    )  # fmt: skip
    print(textwrap.indent("\n".join(lines), "    "))
