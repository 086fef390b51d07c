"""Signals that ask for the end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lrnet_jax.training.stopping import StopRequest


def test_a_signal_is_noticed_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it
        assert stop
        assert stop.name == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in {thread.name for thread in threading.enumerate()}


def test_the_first_signal_is_answered(capfd):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "\nSIGTERM: saving after this step\n"
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
    assert "SIGINT: saving after this step; Ctrl-C again stops" in capfd.readouterr().err


# Computes in C for half a minute, as a compiler does.
BUSY = """
import hashlib, signal
from lrnet_jax.training.stopping import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits SIG_IGN
with StopRequest() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
"""


def test_signals_are_answered_while_python_does_not_look():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.stderr.readline()
        assert process.stderr.readline() == "SIGTERM: saving after this step\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)  # one SIGINT is no reason to end
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - start < 10


def test_nobody_reads_the_answer(monkeypatch):
    write = os.write

    def closed(descriptor, text):
        if descriptor == 2:
            raise BrokenPipeError
        return write(descriptor, text)

    monkeypatch.setattr(os, "write", closed)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_the_second_interrupt_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.name == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
