"""Signals that ask for the end."""

import os
import signal

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


def test_the_first_signal_is_answered_at_once(capfd):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == "\nSIGTERM: saving after this step\n"
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        assert "SIGINT: saving after this step; Ctrl-C again stops" in capfd.readouterr().err


def test_nobody_reads_the_answer(monkeypatch):
    def write(*_):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
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
