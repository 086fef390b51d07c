"""Training for a GPU on a JAX without Pallas-Triton: the kernels are those of jax_triton."""

import pytest

from pallas_kernels.jax_triton import stack
from pallas_kernels.tools.shapes import LAYERS
from tests.lrnet_jax import second_start

SMALL = {"network": "lrnet26", "kernel_size": 3, "image_size": 32, "batch_size": 2}
KERNELS = ("forward", "backward_query", "backward_key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def starts(folder):
    """What two processes say that lower the training step of LR-Net-26, one after the other."""
    return [second_start.start(folder, **SMALL, capability=80) for _ in range(2)]


@pytest.fixture(scope="module")
def recomputing(folder, starts):
    """What a third process says of the step of a network that computes its blocks again."""
    return second_start.start(folder, **SMALL, capability=80, remat="blocks")


@pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))
class TestStep:
    def test_it_is_lowered_with_kernels_of_triton(self, starts):
        """The layers have 8 shapes, the stem's among them; without jax_triton it would be xla."""
        first, _ = starts
        assert first["backend"].startswith("JAX ")
        assert "has no Pallas-Triton (import of jax.experimental.pallas.triton" in first["backend"]
        assert first["kernels"] == {f"local_relation_{name}": 8 for name in KERNELS}
        triton = {name: n for name, n in first["targets"].items() if "triton" in name}
        [(name, number)] = triton.items()
        assert name.startswith("triton_kernel_call")  # that of Pallas has another name
        assert number == 24

    def test_it_is_the_whole_step(self, starts):
        """It returns a new state and four metrics."""
        first, _ = starts
        assert first["results"] == first["state"] + 4

    def test_a_second_process_compiles_no_kernel(self, starts):
        first, second = starts
        assert (first["compiled"], second["compiled"]) == (24, 0)
        assert second["kernels"] == first["kernels"]
        assert second["module"] == first["module"]

    def test_each_layer_runs_its_three_kernels_once(self, starts):
        """One kernel in the forward pass, and those of queries and keys in the backward pass."""
        layers = sum(LAYERS["lrnet26"].values())
        assert starts[0]["calls"] == {"forward": layers, "backward": 2 * layers}

    def test_a_network_that_computes_blocks_again_runs_no_kernel_again(self, starts, recomputing):
        """It keeps the results of local relations, and computes again what is around them."""
        assert recomputing["module"] != starts[0]["module"]
        assert recomputing["calls"] == starts[0]["calls"]
        assert recomputing["compiled"] == 0
