"""Compares the fused kernels with the reference: errors of the output and all four gradients.

    python -m experiments.compare_kernels [--shapes='odd/*'] [--dtypes=float32,bfloat16]
        [--batch=8] [--implementation=jax_triton]

On an NVIDIA GPU the command runs the real kernels, and also prints time and temporary memory
beside those of the reference and of XLA, with ratios to the reference (see
`pallas_kernels.tools.benchmark`). Elsewhere it runs the same kernels in interpret mode on small
shapes, and prints errors only. Kernels in the Triton language have no interpret mode. Each error
has a budget beside it, and the end of the table explains the budgets. The exit code is 1 if an
error is beyond its budget.
"""

from collections.abc import Sequence

from absl import flags

from experiments.bench.kernel_comparison import choose_shapes, compare, describe_budgets
from experiments.cli import command_line
from experiments.config import ConfigError
from pallas_kernels import jax_triton
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.pallas import unavailable
from pallas_kernels.tools.benchmark import measure, table
from pallas_kernels.tools.comparison import REASON
from pallas_kernels.tools.shapes import Shape, make_inputs


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list(
        "shapes", None, "Names of shapes, or patterns such as lrnet26/*.", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "implementation",
        "pallas",
        ["pallas", "jax_triton"],
        "Whose kernels.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "dtypes", "float32,bfloat16", "Dtypes of all arrays.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch", 8, "Images of a shape of a network, on a GPU.",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip


def main(options: flags.FlagValues) -> int:
    """Prints the errors; the exit code is 1 if one is beyond its budget."""
    reason = unavailable()
    interpret = reason is not None
    check_dtypes(options.dtypes)
    if options.implementation == "jax_triton" and (obstacle := jax_triton.unavailable()):
        raise ConfigError(f"--implementation=jax_triton cannot run here: {obstacle}")
    shapes = choose_shapes(options.shapes, options.batch, interpret=interpret)
    if interpret:
        print(f"INTERPRET MODE: {reason}.\nShapes of networks are cut down; no times.\n")
    print(f"{'shape':34} {'dtype':8} {'result':8} {'error':>9} {'budget':>9}")
    beyond = sum(
        print_errors(shape, dtype, options.implementation, interpret=interpret)
        for shape in shapes
        for dtype in options.dtypes
    )
    print(f"\n{describe_budgets(options.dtypes)}")
    print(f"{beyond} results beyond their budget")
    return int(beyond > 0)


def check_dtypes(names: Sequence[str]) -> None:
    """Checks the names of --dtypes.

    Raises:
      ConfigError: the budgets do not know one.
    """
    unknown = [name for name in names if name not in REASON]
    if unknown:
        raise ConfigError(f"--dtypes has {', '.join(unknown)}; use {', '.join(REASON)}")


def print_errors(shape: Shape, dtype: str, implementation: str, *, interpret: bool) -> int:
    """Prints the errors of one shape, and on a GPU its times.

    Returns:
      The number of results beyond their budget.
    """
    reason = IMPLEMENTATIONS[implementation].unsupported(shape.spec, make_inputs(shape, dtype))
    if reason:
        print(f"{shape.name:34} {dtype:8} not run by the kernels: {reason}")
        return 0
    beyond = 0
    for found in compare(shape, dtype, implementation, interpret=interpret):
        beyond += not found.ok
        print(
            f"{shape.name:34} {dtype:8} {found.result:8} {found.error:9.2e} {found.budget:9.2e}"
            f"{'' if found.ok else '  BEYOND'}",
            flush=True,
        )
    if not interpret:
        print(table(measure(shape, ("reference", "xla", implementation), dtype, rounds=10)))
    return beyond


if __name__ == "__main__":
    command_line.run(main, define_flags)
