"""The speed of a run, by a clock that the test sets."""

from types import SimpleNamespace

import jax
import pytest

from lrnet_jax.training.speed import SpeedMeter


@pytest.fixture
def clock():
    now = SimpleNamespace(seconds=100.0)
    now.read = lambda: now.seconds
    return now


def test_images_a_second_and_the_wait_for_input(clock):
    meter = SpeedMeter(64, clock.read)
    for _ in range(10):
        with meter.waiting():
            clock.seconds += 0.25
        clock.seconds += 0.75
    assert meter.measure(10) == {"images_per_second": 64.0, "input_seconds": 2.5}
    clock.seconds += 2
    assert meter.measure(20) == {"images_per_second": 320.0, "input_seconds": 0.0}


def test_what_is_no_training_is_left_out(clock):
    meter = SpeedMeter(8, clock.read)
    clock.seconds += 1000  # compilation
    with meter.waiting():
        clock.seconds += 10
    meter.restart(1)
    clock.seconds += 2
    assert meter.measure(5) == {"images_per_second": 16.0, "input_seconds": 0.0}


def test_no_step_is_no_speed(clock):
    meter = SpeedMeter(8, clock.read)
    clock.seconds += 1
    assert meter.measure(0) == {}


def test_peak_memory_is_that_of_the_fullest_device(clock, monkeypatch):
    devices = [
        SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak * 2**30})
        for peak in (3, 5)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    meter = SpeedMeter(8, clock.read)
    clock.seconds += 1
    assert meter.measure(1)["memory_gib"] == 5.0
