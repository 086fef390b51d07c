"""Transforms of JAX over the Triton kernels, lowered for a GPU that is not here.

`tests.pallas_kernels.pallas.emulate_transforms` runs vmap, pmap and shard_map.
"""

import os

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from lrnet_jax.layers.local_relation import LocalRelation
from pallas_kernels import jax_triton, local_relation, pallas
from pallas_kernels.api import RESIDUALS_NAME
from pallas_kernels.jax_triton import stack
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape, make_inputs
from tests.pallas_kernels.lowered import kernel_calls

pytestmark = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))

SMALL = Shape("transformed", 3, 4, 4, Spec((3, 3), 4), batch=2)
ONE_OF_EACH = {"forward": 1, "backward": 2}


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """The default on a GPU is jax_triton, as on a JAX without Pallas-Triton."""
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")


def operator(*inputs):
    return local_relation(*inputs, **SMALL.options)


def loss(*inputs):
    return operator(*inputs).sum()


def lowered(function, *arguments):
    """The text of a program for a GPU."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_one_artifact_for_cpu_and_cuda(tmp_path):
    """It runs in a process that has JAX alone, and is not written unless a check is disabled."""
    inputs = make_inputs(SMALL)

    def both(*inputs):
        return operator(*inputs), *jax.grad(loss, argnums=(0, 1, 2, 3))(*inputs)

    exporter = functools.partial(export.export, jax.jit(both), platforms=("cpu", "cuda"))
    artifact = exporter(disabled_checks=jax_triton.EXPORT_CHECKS)(*inputs)
    with pytest.raises(
        ValueError, match="custom calls whose targets have no compatibility guarantees"
    ):
        exporter()(*inputs)
    (tmp_path / "program").write_bytes(artifact.serialize())
    np.savez(tmp_path / "inputs", *inputs)
    program = """if True:
        import sys
        import jax, numpy as np
        from jax import export

        inputs = np.load("inputs.npz")
        loaded = export.deserialize(bytearray(open("program", "rb").read()))
        assert loaded.platforms == ("cpu", "cuda")
        np.savez("results", *loaded.call(*(inputs[name] for name in inputs)))
        assert not {"pallas_kernels", "triton", "jax_triton"} & set(sys.modules)
    """
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    results = np.load(tmp_path / "results.npz")
    for name, want in zip(results, both(*inputs), strict=True):
        np.testing.assert_allclose(results[name], want, atol=1e-5)


def test_of_an_artifact_only_the_cuda_half_has_kernels():
    inputs = SMALL.abstract_inputs(jnp.float32)
    exporter = functools.partial(
        export.export, jax.jit(operator), disabled_checks=jax_triton.EXPORT_CHECKS
    )
    for platforms, number in ((("cpu",), 0), (("cuda",), 1), (("cpu", "cuda"), 1)):
        text = exporter(platforms=platforms)(*inputs).mlir_module()
        targets = re.findall(r"custom_call @(\S+)\(", text)
        assert sum("triton_kernel_call" in target for target in targets) == number
        # What else a CPU would need must be known to every JAX.
        assert all("triton_kernel_call" in target or target in KNOWN for target in targets)


KNOWN = ("Sharding",)


def test_without_remat_each_kernel_runs_once():
    text = lowered(jax.grad(loss, argnums=(0, 1, 2, 3)), *SMALL.abstract_inputs(jnp.float32))
    assert kernel_calls(text) == ONE_OF_EACH


def test_checkpoint_runs_the_forward_kernel_again():
    inputs = SMALL.abstract_inputs(jnp.float32)
    by_name = jax.checkpoint_policies.save_only_these_names(RESIDUALS_NAME)
    for policy, forward in ((None, 2), (by_name, 1)):
        layer = jax.checkpoint(lambda *x: jnp.sin(operator(*x)).sum(), policy=policy)
        # The value is asked for: otherwise the first of the forward passes has no use.
        text = lowered(jax.value_and_grad(layer, argnums=(0, 1, 2, 3)), *inputs)
        assert kernel_calls(text) == {"forward": forward, "backward": 2}


def test_nnx_remat_of_a_layer_runs_the_forward_kernel_again():
    layer = LocalRelation(4, 4, kernel_size=3, channels_per_group=4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    images = jax.ShapeDtypeStruct((2, 3, 4, 4), jnp.float32)

    def gradients(call, state, images):
        def loss(state):
            return jnp.sin(call(nnx.merge(graph, state), images)).sum()

        return jax.value_and_grad(loss)(state)

    for call, forward in ((LocalRelation.__call__, 1), (nnx.remat(lambda m, x: m(x)), 2)):
        text = lowered(functools.partial(gradients, call), state, images)
        assert kernel_calls(text) == {"forward": forward, "backward": 2}


@pytest.mark.parametrize("transform", ["vmap", "pmap", "shard_map"])
def test_gradients_of_transforms_are_lowered_with_kernels(transform):
    inputs = make_inputs(SMALL)
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))
    stacked = [jnp.stack([x, x]) for x in inputs]
    if transform == "vmap":  # a loop over the elements
        text = lowered(jax.vmap(gradients), *stacked)
        assert text.count("stablehlo.while") == 2
    elif transform == "pmap":
        text = lowered(jax.pmap(gradients, devices=jax.local_devices()[:2]), *stacked)
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "batch")
        split = jax.P("batch")
        text = lowered(
            jax.shard_map(
                gradients,
                mesh=mesh,
                in_specs=(split, split, split, jax.P()),
                out_specs=(split, split, split, jax.P()),
            ),
            *inputs,
        )
    assert kernel_calls(text) == ONE_OF_EACH
