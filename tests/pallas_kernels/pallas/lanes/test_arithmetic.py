"""Arithmetic recorded as PTX: one operation, with the same functions as on arrays."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.pallas.lanes.arithmetic import Alu, JnpOps, Ops, dot
from pallas_kernels.pallas.lanes.ptx import PtxOps


@pytest.mark.parametrize("implementation", [JnpOps, PtxOps])
def test_implementations_have_the_operations_of_the_protocol(implementation):
    operations = [name for name in vars(Ops) if not name.startswith("_")]
    assert "fma" in operations
    for name in operations:
        expected = inspect.signature(getattr(Ops, name)).parameters
        assert list(inspect.signature(getattr(implementation, name)).parameters) == list(expected)


def test_inline_records_one_operation():
    x = jnp.ones((32,), jnp.float32)

    def body(ops, a, b, start):
        total = dot(ops, a, b, start)
        return total, ops.exp2(-total)

    def run(*inputs):
        return Alu(ptx=True).inline(body, *inputs)

    [block] = jax.make_jaxpr(run)([x, x], [x, x], x).eqns
    assert block.params["constraints"] == "=f,=f,f,f,f,f,f"
    assert block.params["text"] == (
        "{ .reg .b32 t<4>; fma.rn.f32 t0, $2, $4, $6; fma.rn.f32 t1, $3, $5, t0; "
        "neg.f32 t2, t1; ex2.approx.ftz.f32 t3, t2; mov.b32 $0, t1; mov.b32 $1, t3; }"
    )


def test_inline_each_shares_inputs():
    x = jnp.arange(4.0)
    found = Alu(ptx=False).inline_each(lambda ops, a, b: a * b, (x,), [(x,), (2 * x,)])
    assert [y.tolist() for y in found] == [[0, 1, 4, 9], [0, 2, 8, 18]]
