"""The forward kernel. Windows, logits and weights stay in registers.

A lane owns a group and a strip of output pixels. It keeps the pixels' queries, their sums of
weights and their sums of weighted values in registers, loops over the rows of the windows, and
visits the columns of keys of a row one by one. Each key and value that it loads serves all pixels
of the strip whose windows contain it. `forward_taps` has these loops.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.forward_taps import Program, Results
from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.memory import Layout, result
from pallas_kernels.pallas.lanes.operands import Operands, in_memory
from pallas_kernels.pallas.output_strip import OutputStrip, output_strips, window_rows
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import BorderCase, Strips, by_border_case
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer, Spec


def forward(
    spec: Spec, inputs: Inputs, *, interpret: bool = False, tile: Tile | None = None
) -> tuple[jax.Array, Normalizer | None]:
    """The output, and what the backward pass needs to compute the weights again.

    Args:
      spec: the static options.
      inputs: the arrays.
      interpret: whether to run the kernel in JAX's interpreter: on any platform, slowly.
      tile: how to cut the problem; None chooses, see tiling.py.

    Returns:
      out: (B, Ho, Wo, C) in value.dtype.
      normalizer: float32; None without softmax.
    """
    problem, query = Problem.of(spec, inputs), inputs.query
    tile = tile or tiling.chosen(problem, "forward")
    strips, cases = output_strips(problem, tile, problem.groups * problem.chunks)
    layout = Layout.value(problem)
    pixels = query[..., 0, 0].size
    normalizer = None
    if problem.softmax:
        number = result(query, pixels * problem.groups, jnp.float32)
        normalizer = Normalizer(number, number)
    [results] = pl.pallas_call(
        functools.partial(_kernel, problem, strips, cases, Alu.of(interpret)),
        grid=strips.grid,
        # In a list, because a tuple at the top would reach the kernel as one argument per field.
        out_shape=[Results(layout.result(query, pixels * problem.channels), normalizer)],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_forward",
    )(in_memory(problem, inputs))
    out = layout.unflatten(results.out, (*query.shape[:3], problem.channels))
    return out, jax.tree.map(lambda x: x.reshape(query.shape[:4]), results.normalizer)


def _kernel(
    problem: Problem,
    strips: Strips,
    cases: Sequence[BorderCase],
    alu: Alu,
    inputs: Inputs,
    results: Results,
) -> None:
    first, column = pl.program_id(0) * strips.lanes_per_program, pl.program_id(1)
    place = strips.place(first, column, pl.program_id(2))
    group, chunk = place.unit // problem.chunks, place.unit % problem.chunks
    channels = Channels.of(problem, group, chunk)
    zero = jnp.zeros((strips.lanes_per_program,), jnp.float32)
    operands = Operands.of(problem, alu, inputs)
    place = place._replace(unit=group)
    strip = OutputStrip(problem, operands, place, strips.strip, strips.ragged)
    rows = window_rows(problem, strips, first)
    program = Program(
        problem=problem,
        alu=alu,
        operands=operands,
        results=results,
        strip=strip,
        rows=rows,
        channels=channels,
        chunk=chunk,
        zero=zero,
    )
    failed = by_border_case(cases, column, program.single_pass)
    if failed is not None:
        pl.when(failed > 0)(program.exact_pass)
