"""Arithmetic recorded as PTX: one operation, with the same functions as on arrays."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.pallas.lanes.arithmetic import Alu, JnpOps, Ops
from pallas_kernels.pallas.lanes.ptx import PtxOps, Register
from pallas_kernels.platform_switch import compiling_for


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
        total = ops.dot(a, b, start)
        return total, ops.exp2(-total)

    def run(*inputs):
        return Alu(ptx=True).inline(body, *inputs)

    [block] = jax.make_jaxpr(run)([x, x], [x, x], x).eqns
    assert block.params["constraints"] == "=f,=f,f,f,f,f,f"
    assert block.params["text"] == (
        "{ .reg .b32 t<4>; fma.rn.f32 t0, $2, $4, $6; fma.rn.f32 t1, $3, $5, t0; "
        "neg.f32 t2, t1; ex2.approx.ftz.f32 t3, t2; mov.b32 $0, t1; mov.b32 $1, t3; }"
    )


def test_pairs_are_packed_once_and_multiplied_in_one_instruction():
    ops = PtxOps(pairs=True)
    weight, *x = [Register(ops, f"#{i}#") for i in range(5)]
    sums = ops.add_weighted(weight, x, x)
    total = ops.dot(sums, x, weight)
    assert [line for line in ops.lines if "mov" not in line] == [
        "fma.rn.f32x2 w2, w0, w1, w1;",
        "fma.rn.f32x2 w4, w0, w3, w3;",
        "mul.rn.f32 t4, #0#, 0f3F000000;",  # half of the start in each half of the pair
        "fma.rn.f32x2 w7, w6, w1, w5;",
        "fma.rn.f32x2 w9, w8, w3, w7;",
        "add.rn.f32 t7, t5, t6;",
    ]
    packed = [line for line in ops.lines if line.startswith("mov.b64 w")]
    assert len(packed) == len(set(packed)) == 6
    assert total.name == "t7"
    assert "{ .reg .b32 t<8>; .reg .b64 w<10>;" in ops.text([total], 5)


@pytest.mark.parametrize(("count", "pairs"), [(1, 0), (2, 0), (3, 0), (4, 2), (6, 3)])
def test_few_products_and_an_odd_number_of_them_stay_single(count, pairs):
    ops = PtxOps(pairs=True)
    x = [Register(ops, f"#{i}#") for i in range(count)]
    ops.dot(x, x, x[0])
    assert sum("fma.rn.f32x2" in line for line in ops.lines) == pairs
    assert sum("fma.rn.f32 " in line for line in ops.lines) == (0 if pairs else count)


@pytest.mark.parametrize(("capability", "pairs"), [(8.0, False), (9.0, False), (10.0, True)])
def test_pairs_where_the_gpu_has_them(capability, pairs):
    assert Alu.of(interpret=False) == Alu(ptx=True)
    with compiling_for(capability):
        assert Alu.of(interpret=False) == Alu(ptx=True, pairs=pairs)
        assert Alu.of(interpret=True) == Alu(ptx=False)


def test_inline_each_shares_inputs():
    x = jnp.arange(4.0)
    found = Alu(ptx=False).inline_each(lambda ops, a, b: a * b, (x,), [(x,), (2 * x,)])
    assert [y.tolist() for y in found] == [[0, 1, 4, 9], [0, 2, 8, 18]]
