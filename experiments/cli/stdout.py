"""Printing to a reader that may close the pipe early."""

import os
import sys


def print_lines(text: str) -> None:
    """Prints a long text; a reader that stops early, as `head` does, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
