"""The kernel for d_key and d_value; `backward_pass` has the equations.

A lane owns a group and a strip of keys. It keeps the keys, their values and the sums of both
gradients in registers, loops over the rows of output pixels whose windows contain the keys, and
visits the columns of outputs of a row one by one. Each query and output gradient that it loads
serves all keys of the strip that the output's window contains. `key_taps` has these loops.

If all shifts of these outputs are 0, weights are 2**logit * factor. Otherwise the program takes the
exact path, as few keys at a time as the stride allows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.key_strip import key_strips, output_rows
from pallas_kernels.pallas.key_taps import Program
from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import Layout, Operand, load
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.vectors import Ref
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_taps import SHIFTED, PixelStats
from pallas_kernels.pallas.strips import BorderCase, Strips, by_border_case
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs


class Results(NamedTuple):
    """What the kernel writes, flat."""

    d_key: Ref
    d_value: Ref


def key_gradients(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
    *,
    interpret: bool,
) -> Results:
    """Runs the kernel.

    Args:
      problem: the problem.
      tile: how to cut it.
      inputs: flat arrays; see `operands.in_memory`.
      d_out: flat, the gradient of the output.
      shift: of the normalizer, flat; None without softmax.
      stats: what the query kernel stored for this one; None without softmax.
      interpret: whether to run in JAX's interpreter.
    """
    strips, cases = key_strips(problem, tile)
    places = problem.batch * problem.height * problem.width
    d_key = Layout.key(problem).result(d_out, places * problem.groups * problem.depth)
    d_value = Layout.value(problem).result(d_out, places * problem.channels)
    [results] = pl.pallas_call(
        functools.partial(_kernel, problem, strips, cases, Alu.of(interpret)),
        grid=strips.grid,
        out_shape=[Results(d_key, d_value)],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_key",
    )(inputs, d_out, shift, stats)
    return results


def _kernel(
    problem: Problem,
    strips: Strips,
    cases: Sequence[BorderCase],
    alu: Alu,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
    results: Results,
) -> None:
    first, column = pl.program_id(0) * strips.lanes_per_program, pl.program_id(1)
    place = strips.place(first, column, pl.program_id(2))
    zero = jnp.zeros((strips.lanes_per_program,), jnp.float32)
    layout = Layout.value(problem)
    program = Program(
        problem=problem,
        alu=alu,
        operands=Operands.of(problem, alu, inputs),
        d_out=Operand(alu, d_out, layout),
        shift=shift,
        stats=stats,
        d_key=Components.of_keys(problem, alu, results.d_key),
        d_value=Operand(alu, results.d_value, layout),
        strips=strips,
        place=place,
        rows=output_rows(problem, strips, first),
        zero=zero,
    )

    def gather_all() -> None:
        by_border_case(cases, column, program.gather_case)

    if stats is None:
        gather_all()
        return
    severity = load(stats.severity, place.image * problem.height + place.row)
    lax.cond(jnp.max(severity) != SHIFTED, gather_all, program.gather_exact)
