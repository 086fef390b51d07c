"""Compiled kernels on disk. What needs Triton runs in `make test-compiled`."""

import dataclasses
import os

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import jax_triton
from pallas_kernels.jax_triton import kept, stack
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape

SHAPE = Shape("kept", 3, 4, 4, Spec((3, 3), 4))

needs_triton = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))


def lowered(shape=SHAPE, dtype=jnp.float32):
    """The text of the forward pass, lowered for a GPU by a new function."""
    inputs = shape.abstract_inputs(dtype)
    program = jax.jit(lambda *x: jax_triton.forward(shape.spec, type(inputs)(*x)))
    return program.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()


def test_what_is_written_is_read(tmp_path):
    kept.write(tmp_path / "folder" / "file", b"artifact")
    assert kept.read(tmp_path / "folder" / "file") == b"artifact"
    assert [x.name for x in (tmp_path / "folder").iterdir()] == ["file"]  # no other is left


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x[:-1] + b"?", lambda x: b""])
def test_a_damaged_file_is_as_none(tmp_path, damage):
    file = tmp_path / "file"
    assert kept.read(file) is None
    kept.write(file, b"artifact")
    file.write_bytes(damage(file.read_bytes()))
    assert kept.read(file) is None


def test_without_a_gpu_nothing_is_kept(tmp_path):
    assert kept.folder() is None
    with kept.keeping(tmp_path):
        assert kept.folder() == tmp_path


@needs_triton
def test_a_second_start_compiles_nothing(tmp_path, monkeypatch):
    with kept.keeping(tmp_path):
        first = lowered()
        assert "triton_kernel_call" in first
        [file] = tmp_path.iterdir()
        with monkeypatch.context() as patch:
            patch.setattr(stack.Call, "run", None)
            assert "triton_kernel_call" in lowered()
            with pytest.raises(TypeError):
                lowered(dtype=jnp.bfloat16)  # another kernel
        file.write_bytes(file.read_bytes()[:-1])
        lowered()  # compiled again
        assert kept.read(file) is not None


@needs_triton
def test_a_name_holds_all_that_an_artifact_depends_on():
    inputs = SHAPE.abstract_inputs(jnp.float32)
    with stack.recorded() as calls:
        jax.eval_shape(lambda *x: jax_triton.forward(SHAPE.spec, type(inputs)(*x)), *inputs)
    [(call, arrays)] = calls
    name = kept.name_of(call, arrays)
    assert name == kept.name_of(dataclasses.replace(call), arrays)
    others = [
        dataclasses.replace(call, compute_capability=90),
        dataclasses.replace(call, warps=2),
        dataclasses.replace(call, grid=(9, 9, 9)),
        dataclasses.replace(call, plan=dataclasses.replace(call.plan, m=2)),
    ]
    assert len({name, *(kept.name_of(other, arrays) for other in others)}) == 5
    assert name != kept.name_of(call, arrays[::-1])


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_tools_see_the_code_that_runs(capability):
    """`Call.compile` is what jax-triton embeds in the program."""
    ptxsim = pytest.importorskip("ptxsim.jaxtriton")
    inputs = SHAPE.abstract_inputs(jnp.float32)

    def forward(*x):
        return jax_triton.forward(SHAPE.spec, type(inputs)(*x))

    with stack.target(capability), stack.recorded() as calls:
        program = jax.jit(forward).trace(*inputs)
        [embedded] = ptxsim.calls(program.lower(lowering_platforms=("cuda",)))
    [(call, arrays)] = calls
    assert call.compute_capability == capability
    assert instructions(call.compile(arrays)[0]) == instructions(embedded.ptx)


def instructions(ptx):
    """The instructions, without lines and files of the source.

    Triton's own cache may hold a program that was compiled in another checkout.
    """
    code = ptx.partition(".section")[0].splitlines()
    return [line for line in code if line.strip() and "//" not in line and ".file" not in line]
