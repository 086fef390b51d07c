"""A network for a GPU on a JAX without Pallas-Triton: its kernels are those of jax_triton."""

import os

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import lrnet_jax
from pallas_kernels import pallas
from pallas_kernels.jax_triton import stack


@pytest.mark.slow  # it compiles 24 kernels
@pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))
def test_gradients_of_a_network_are_lowered_with_triton_kernels(monkeypatch):
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
    model = lrnet_jax.create_model(
        "lrnet26", num_classes=3, kernel_size=3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(model)

    @jax.jit
    def gradients(state, images):
        return jax.grad(lambda s: nnx.merge(graph, s)(images).sum(), allow_int=True)(state)

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    text = gradients.trace(shapes, images).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton_kernel_call" in text
    assert "__gpu$xla.gpu.triton" not in text
