"""Measurements of whole networks."""

import pytest

import lrnet_jax
from experiments.bench import network_programs
from experiments.bench.network_programs import compile_passes, describe_measurements, measure

VARIANT = lrnet_jax.Variant(
    depths=(1,), width=4, stage_channels=8, stem_channels=4, stem_kernel_size=3, kernel_size=3,
    stem_channels_per_group=2, channels_per_group=2, prior_hidden=4, implementation="reference",
)  # fmt: skip


def test_passes_are_measured_and_described():
    programs = compile_passes(VARIANT, batch_size=2, image_size=8)
    assert tuple(programs) == network_programs.PASSES
    measured = measure(programs, rounds=2)
    assert measured["forward"].ratio == 1
    record = measured["train_step"].as_json()
    assert record["ratio"] == pytest.approx(record["median"] / measured["forward"].timing.median)
    assert record["temp_bytes"] == programs["train_step"].temp_bytes > 0
    assert list(record) == [
        "least", "lower", "median", "upper", "cpu", "ratio", "temp_bytes", "compile_seconds",
        "compile_cpu",
    ]  # fmt: skip
    # The C++ of XLA counts, and no other process.
    assert 0.05 < record["compile_cpu"] == programs["train_step"].compile_cpu
    lines = describe_measurements("all", measured).splitlines()
    assert [line.split()[0] for line in lines] == ["all", "forward", "train_step"]
    assert float(lines[2].split()[-1]) == pytest.approx(record["compile_cpu"], abs=0.05)
