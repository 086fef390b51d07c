"""Printing to a reader that may close the pipe early."""

import io
import os
import sys
from typing import Any


def print_lines(text: str) -> None:
    """Prints a long text; a reader that stops early, as `head` does, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave_closed_pipe()


def leave_closed_pipe() -> None:
    """Sends what is still to be printed nowhere; Python flushes stdout again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def survive_closed_pipes() -> None:
    """Lets a long computation go on when nobody reads any more what it prints.

    Ctrl-C ends all programs of a pipe at once: `tee` is gone before a run has saved its state.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        old.flush()
        raw = _Surviving(old.fileno(), "wb", closefd=False)
        # Under PYTHONUNBUFFERED what is written is printed at once, as before.
        buffer: Any = raw if old.write_through else io.BufferedWriter(raw)
        new = io.TextIOWrapper(
            buffer,
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
        setattr(sys, name, new)


class _Surviving(io.FileIO):
    """A file that takes all that is written, also when nobody reads it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
