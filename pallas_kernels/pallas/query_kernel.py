"""The kernel for d_query and d_prior; `backward_pass` has the equations.

A lane owns a group and a few strips of output pixels, one after the other: of several parts of the
image, and of several rounds of images. `query_pass` computes one strip, and `prior_columns` sums
d_prior.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import Layout, Operand, result
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.prior_columns import PriorColumns, add_columns, columns_result
from pallas_kernels.pallas.lanes.vectors import Scalar, loop
from pallas_kernels.pallas.output_strip import OutputStrip, output_strips, window_rows
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_pass import StripPass
from pallas_kernels.pallas.query_taps import PLAIN, PixelStats, Program, Results
from pallas_kernels.pallas.strips import BorderCase, Strips
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer, Residuals


def query_strips(problem: Problem, tile: Tile) -> tuple[Strips, list[BorderCase], int]:
    """How programs cover the output, its border cases, and rounds of images per program."""
    strips, cases = output_strips(problem, tile, problem.groups)
    rounds = min(tile.strips_per_lane, strips.grid[2])
    parts = min(tile.strips_per_lane // rounds, strips.rows)
    return dataclasses.replace(strips, parts=parts), cases, rounds


def query_gradients(
    problem: Problem, tile: Tile, residuals: Residuals, d_out: jax.Array, *, interpret: bool
) -> tuple[jax.Array, jax.Array | None, PixelStats | None]:
    """Runs the kernel.

    Args:
      problem: the problem.
      tile: how to cut it.
      residuals: flat arrays; see `backward_pass.in_memory`.
      d_out: flat, the gradient of the output.
      interpret: whether to run in JAX's interpreter.

    Returns:
      d_query: flat.
      d_prior: (Kh, G, Kw) float32, None without a prior.
      stats: None without softmax.
    """
    strips, cases, rounds = query_strips(problem, tile)
    along, across, all_rounds = strips.grid
    grid = along, across, pl.cdiv(all_rounds, rounds)
    columns = strips.lanes_per_part * across * grid[2]
    places = strips.batch * strips.rows * strips.columns * problem.groups
    pairs = severity = d_prior = None
    if problem.softmax:
        pairs = result(d_out, 2 * places, jnp.float32)
        lanes = strips.batch * across * strips.rows * problem.groups
        severity = result(d_out, lanes, jnp.int32)
    if problem.has_prior:
        d_prior = columns_result(problem, d_out, columns)
    d_query = Layout.query(problem).result(d_out, places * problem.depth)
    inputs, out, normalizer = residuals
    [results] = pl.pallas_call(
        functools.partial(_kernel, problem, strips, cases, rounds, columns, Alu.of(interpret)),
        grid=grid,
        out_shape=[Results(d_query, pairs, severity, d_prior)],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_query",
    )(inputs, d_out, out if problem.softmax else None, normalizer)
    stats = None
    if problem.softmax:
        stats = PixelStats(results.pairs, _by_key_row(problem, results.severity))
    summed = add_columns(problem, results.d_prior) if problem.has_prior else None
    return results.d_query, summed, stats


def _by_key_row(problem: Problem, severity: jax.Array) -> jax.Array:
    """The severity in each lane of the kernel, reduced as `PixelStats` describes."""
    spec, (rows, _) = problem.spec, problem.out_size
    lanes = severity.reshape(problem.batch, -1, rows, problem.groups)
    of_row = jnp.max(lanes, axis=(1, 3))[:, None]  # (B, 1, Ho)
    offset = jnp.arange(problem.height)[:, None] + spec.padding[0]
    offset = offset - jnp.arange(rows) * spec.stride  # (H, Ho), into the window
    in_window = (offset >= 0) & (offset <= (spec.kernel_size[0] - 1) * spec.dilation)
    return jnp.max(jnp.where(in_window, of_row, PLAIN), axis=2).reshape(-1)


def _kernel(
    problem: Problem,
    strips: Strips,
    cases: Sequence[BorderCase],
    rounds: int,
    columns: int,
    alu: Alu,
    inputs: Inputs,
    d_out: jax.Array,
    out: jax.Array | None,
    normalizer: Normalizer | None,
    results: Results,
) -> None:
    along, column, round_group = (pl.program_id(axis) for axis in range(3))
    first = along * strips.lanes_per_program
    lane = first + jnp.arange(strips.lanes_per_program, dtype=jnp.int32)
    first_column = (round_group * strips.strips_per_row + column) * strips.lanes_per_part
    whole = strips.lanes_per_part % strips.lanes_per_program == 0
    exists = None if whole else lane < strips.lanes_per_part
    zero = jnp.zeros((strips.lanes_per_program,), jnp.float32)
    priors = PriorColumns(problem, alu, results.d_prior, columns, first_column, lane, exists, zero)
    priors.clear()
    layout = Layout.value(problem)
    program = Program(
        problem=problem,
        alu=alu,
        operands=Operands.of(problem, alu, inputs),
        d_out=Operand(alu, d_out, layout),
        out=None if out is None else Operand(alu, out, layout),
        normalizer=normalizer,
        results=results,
        d_query=Components.of_queries(problem, alu, results.d_query),
        priors=priors,
        strips=strips,
        cases=cases,
        column=column,
        zero=zero,
    )

    def compute_strip(i: Scalar, part: Scalar) -> None:
        images = round_group * rounds + i
        rows = window_rows(problem, strips, part * strips.lanes_per_part + first)
        place = strips.place(first, column, images, part)
        strip = OutputStrip(problem, program.operands, place, strips.strip, strips.ragged)
        StripPass.of(program, strip, rows).run()

    def one_round(i: Scalar, carry: int) -> int:
        def one_part(part: Scalar, carry: int) -> int:
            compute_strip(i, part)
            return carry

        return loop(strips.parts, one_part, carry)

    remaining = strips.grid[2] - round_group * rounds
    loop(jnp.minimum(rounds, remaining) if strips.grid[2] % rounds else rounds, one_round, 0)
