"""The costs of saving, measured on a run of seconds."""

from experiments.measure_saving import measure
from tests.experiments.tiny_run import tiny


def test_the_measurement_runs():
    found = measure(tiny(), rounds=3, block=2)
    assert set(found._fields) == {
        "step_ms",
        "save_ms",
        "share_percent",
        "restore_s",
        "checkpoint_mb",
    }
    assert found.step_ms > 0
    assert found.checkpoint_mb > 0
