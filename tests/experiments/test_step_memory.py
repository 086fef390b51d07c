"""The table of planned memory, from steps that no compiler made."""

import pytest

from experiments import step_memory
from experiments.bench.compiled_step import LargestArray, PlannedStep, peer, with_policies
from experiments.bench.step_time import DOTS, Cost
from lrnet_jax.model_zoo import get_variant


def step(gib, milliseconds):
    costs = [Cost(DOTS, "stem", milliseconds / 1e3, 0)]
    return PlannedStep(int(gib * 2**30), costs, 51, 24, LargestArray("f32[8]", 8), 3.4)


def test_a_row_is_beside_the_resnet_of_its_depth_and_policy():
    found = {
        ("resnet26", "none"): step(4.0, 10.0), ("lrnet50", "none"): step(9.0, 30.0),
        ("resnet50", "none"): step(6.0, 20.0), ("resnet50", "blocks"): step(5.0, 24.0),
        ("lrnet50", "blocks"): step(6.0, 36.0),
    }  # fmt: skip
    assert step_memory.cells(found, ("lrnet50", "none")) == (
        "lrnet50", "none", "9.00", "1.50", "30.00", "1.50", "51 (24)", "3", "f32[8]",
    )  # fmt: skip
    assert step_memory.cells(found, ("lrnet50", "blocks"))[2:6] == ("6.00", "1.20", "36.00", "1.50")
    assert len(step_memory.COLUMNS) == len(step_memory.cells(found, ("lrnet50", "none")))


@pytest.mark.parametrize(
    ("name", "beside"),
    [("lrnet50:xla", "resnet50"), ("lrnet18", "lrnet50"), ("resnet50", "resnet50")],
)
def test_peers(name, beside):
    assert peer(name, ["lrnet50", "resnet50"]) == beside


def test_every_policy_of_every_network():
    variant = get_variant("lrnet26")
    found = with_policies({"a": variant}, ["none", "blocks"])
    assert {key: value.remat for key, value in found.items()} == {
        ("a", "none"): "none", ("a", "blocks"): "blocks",
    }  # fmt: skip
    assert with_policies({"a": variant}, []) == {("a", variant.remat): variant}
