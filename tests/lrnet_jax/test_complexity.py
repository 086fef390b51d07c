"""Costs agree with the paper's networks, and with the modules themselves."""

import dataclasses

import jax
import pytest
from flax import nnx

from experiments.recipes.paper_tables import PAPER_SIZES
from lrnet_jax import complexity, get_variant, list_models
from lrnet_jax.model_zoo import create_from_variant

# Parameters in millions and multiply-adds in billions. They were derived from the paper's text and
# parameter counts without this code.
EXPECTED = {
    "resnet18": (11.680, 1.814),
    "resnet26": (15.964, 2.342),
    "resnet50": (25.504, 4.089),
    "resnet101": (44.444, 7.801),
    "lrnet18": (14.392, 2.541),
    "lrnet26": (14.707, 2.402),
    "lrnet50": (23.336, 4.031),
    "lrnet101": (42.022, 7.753),
    "resnet26_nl": (38.247, 5.130),
    "lrnet26_nl": (37.108, 5.212),
    "nl26": (17.312, 2.729),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_of_the_papers_networks(name):
    cost = complexity.network_cost(get_variant(name))
    parameters, macs = cost.parameters / 1e6, cost.macs / 1e9
    assert (round(parameters, 3), round(macs, 3)) == EXPECTED[name]
    assert f"{parameters:.1f}" == PAPER_SIZES[name][0]


def test_ablations_of_the_prior_and_the_stem():
    narrow = dataclasses.replace(get_variant("lrnet26"), width=100)
    for prior, parameters in (("network", 14.586), ("table", 14.577), ("none", 14.558)):
        cost = complexity.network_cost(dataclasses.replace(narrow, prior=prior))
        assert round(cost.parameters / 1e6, 3) == parameters
        assert round(cost.macs / 1e9, 3) == 2.379

    def stem(name):
        layers = complexity.network_cost(get_variant(name)).layers
        stem = [layer for layer in layers if layer.name.startswith("stem")]
        return sum(c.parameters for c in stem) / 1e3, sum(c.macs for c in stem) / 1e6

    assert stem("lrnet26") == (pytest.approx(5.4, abs=0.05), pytest.approx(137.4, abs=0.05))
    assert stem("resnet26") == (pytest.approx(9.4, abs=0.05), pytest.approx(118.0, abs=0.05))


def test_small_networks_share_their_computation():
    relation, convolution = (
        complexity.network_cost(get_variant(name), 10, 28).macs
        for name in ("lrnet_small", "resnet_small")
    )
    assert relation == pytest.approx(convolution, rel=0.05)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {}) for name in list_models() if "101" not in name),
        ("lrnet26", {"channels_per_group": -1, "query_key_dim": 2, "prior_hidden": 64}),
        ("lrnet26", {"scope": "full", "prior": "table", "image_size": 65}),
        ("lrnet26", {"stem": "convolution", "prior": "table", "stage_channels": 128}),
    ],
)
def test_parameters_of_every_layer_are_those_of_its_module(name, fields):
    variant = dataclasses.replace(get_variant(name), **fields)
    model = nnx.eval_shape(lambda: create_from_variant(variant, 1000, nnx.Rngs(0)))
    counted = {layer.name: layer.parameters for layer in complexity.network_cost(variant).layers}
    found = dict.fromkeys(counted, 0)
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        text = ".".join(str(key.key) for key in path)
        if ".norm." in text or text.endswith(("theta.bias", "phi.bias", "g.bias")):
            continue  # the convention leaves them out
        (owner,) = (name for name in counted if text.startswith(f"{name}."))
        found[owner] += leaf.size
    assert found == counted
