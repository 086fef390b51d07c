"""The command that measures beside torch, with programs that only take time."""

import json
import time
from types import SimpleNamespace

import pytest

from experiments import benchmark_torch
from experiments.bench import torch_networks
from experiments.bench.network_programs import PASSES
from experiments.cli.command_line import parse
from experiments.config import ConfigError
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.tools.timing import Timing


def sleeper(seconds):
    return lambda: time.sleep(seconds)


@pytest.fixture
def asked(monkeypatch):
    """Programs of ours take 2 ms and those of torch 8; returns what was asked of either."""
    found = []

    def ours(variant, **size):
        found.append((variant.operator, size))
        return {kind: SimpleNamespace(run=sleeper(0.002)) for kind in PASSES}

    def theirs(name, **setting):
        found.append((name, setting))
        return {kind: sleeper(0.008) for kind in PASSES}

    monkeypatch.setattr(benchmark_torch, "compile_passes", ours)
    monkeypatch.setattr(torch_networks, "torch_passes", theirs)
    return found


def run(*arguments):
    benchmark_torch.main(parse(list(arguments), benchmark_torch.define_flags))


def test_all_run_at_one_size_and_ratios_are_to_the_first(asked, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch_networks, "missing", lambda: None)
    run("--timm=halonet26t", "--rounds=2", f"--json={tmp_path / 'figures.json'}")
    size = {"batch_size": 8, "image_size": 256}
    assert asked == [
        ("local_relation", size),
        ("convolution", size),
        ("halonet26t", {**size, "classes": 1000, "compiled": False}),
    ]
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("timm halonet26t"))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    forward = {name: timing["median"] for name, timing in results["forward"].items()}
    ratio = forward["timm halonet26t"] / forward["lrnet26"]
    assert float(row.split()[4]) == pytest.approx(ratio, abs=0.006)
    assert list(results["train_step"]) == ["lrnet26", "resnet26", "timm halonet26t"]
    assert results["forward"]["timm halonet26t"]["median"] >= 0.008


def test_without_torch_ours_are_measured_and_the_others_are_said_to_be_skipped(
    asked, monkeypatch, capsys
):
    monkeypatch.setattr(torch_networks, "missing", lambda: "timm not installed; type: ...")
    run("--networks=lrnet26", "--timm=halonet26t,resnet26", "--rounds=2")
    assert len(asked) == 1
    printed = capsys.readouterr().out
    assert "skipped halonet26t, resnet26: timm not installed; type: ..." in printed
    assert "lrnet26" in printed


def test_a_network_whose_fast_implementation_cannot_run_says_so(asked, monkeypatch, capsys):
    monkeypatch.setattr(IMPLEMENTATIONS["native"], "unavailable", lambda: None)
    run("--networks=lrnet26,resnet26,lrnet26:reference", "--timm=", "--rounds=2")
    lines = capsys.readouterr().out.splitlines()
    assert "lrnet26: local relations by native" in lines
    assert "lrnet26:reference: local relations by reference" in lines
    assert not any(line.startswith("resnet26: local relations") for line in lines)
    monkeypatch.setattr(IMPLEMENTATIONS["native"], "unavailable", lambda: "built without one; mend")
    run("--networks=lrnet26", "--timm=", "--rounds=2")
    assert (
        "lrnet26: local relations by xla; native cannot run: built without one; mend"
        in capsys.readouterr().out.splitlines()
    )


def test_no_network_is_an_error():
    with pytest.raises(ConfigError, match="--networks names no network"):
        run("--networks=")


def test_figures_are_those_of_the_timings():
    timings = {
        "a": Timing(0.1, 0.1, 0.2, 0.3, cpu=0.5),
        "timm b": Timing(0.2, 0.2, 0.3, 0.4, cpu=2.0),
    }
    _, first, second = benchmark_torch.describe("forward", timings, 8).splitlines()
    assert first.split() == ["a", "200.0", "100.0-300.0", "1.00", "500.0", "1.00", "16.0"]
    assert second.split()[2:] == ["300.0", "200.0-400.0", "1.50", "2000.0", "4.00", "4.0"]
