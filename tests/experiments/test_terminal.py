"""A run on a terminal: evaluated, stopped by Ctrl-C and resumed."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from tests.experiments.killable_jobs import command, environment
from tests.screen import seen

CHANGES = {
    "train.epochs": "0.08",  # 100 steps
    "train.eval_every_epochs": "0.04",
    "train.log_every": "10",
    "train.checkpoint_every": "1000",
}
# Makes the terminal that of the process, so that what is typed becomes a signal.
ON_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


def watch(workdir, cache, *, columns, stop_at=None):
    """What a person sees of a run. Ctrl-C is typed once a text was printed."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command(workdir, CHANGES)],
        stdin=its, stdout=its, stderr=its, env={**environment(1, cache), "TERM": "xterm"},
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


def test_a_terminal_shows_one_bar(tmp_path):
    """No bar is left behind, nothing is glued to its end, and it is whole."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    lines = watch(workdir, cache, columns=80, stop_at=b"evaluation at step 50")
    (bar,) = [line for line in lines if "|" in line]
    assert bar.startswith(" 5")
    assert len(bar) <= 77
    after = lines[lines.index(bar) + 1 :]
    assert after[0].startswith("stopped by SIGINT after step 5")
    assert after[1].startswith("to resume: ")
    assert (
        lines[lines.index(bar) - 1] == "SIGINT: saving after this step; Ctrl-C again stops at once"
    )
    assert not [line for line in lines if "^C" in line]

    lines = watch(workdir, cache, columns=60)
    (bar,) = [line for line in lines if "|" in line]
    assert bar.startswith("100 % |███")
    assert "100/100  loss " in bar
    assert [line for line in lines if line.startswith("trained in ")]
