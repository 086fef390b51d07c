"""Networks of timm in torch; skipped where torch and timm are not installed."""

import importlib.util

import pytest

from experiments.bench import torch_networks
from experiments.bench.network_programs import PASSES


def test_what_is_missing_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torch_networks.missing() == (
        "torch and timm not installed; type: python -m pip install torch timm"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
    assert torch_networks.missing().startswith("timm not installed;")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert torch_networks.missing() is None


def test_a_step_moves_the_parameters_and_a_forward_pass_does_not(monkeypatch):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    made, create = [], timm.create_model

    def keep(*arguments, **fields):
        made.append(create(*arguments, **fields))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", keep)
    passes = torch_networks.torch_passes(
        "resnet18", batch_size=2, image_size=64, classes=5, compiled=False
    )
    assert tuple(passes) == PASSES
    evaluated, trained = made
    assert (evaluated.training, trained.training) == (False, True)
    before = [[p.clone() for p in model.parameters()] for model in made]
    passes["forward"]()
    for _ in range(2):  # the first moves no bias before a scale that starts as zero
        passes["train_step"]()
    same = [
        [torch.equal(old, new) for old, new in zip(kept, model.parameters(), strict=True)]
        for kept, model in zip(before, made, strict=True)
    ]
    assert all(same[0])
    assert not any(same[1])
