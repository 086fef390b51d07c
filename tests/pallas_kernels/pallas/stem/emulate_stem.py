"""Executes the compiled kernels of stem and projections on a CPU, and compares them with float64.

    PYTHONPATH=FOLDER_OF_PTXSIM python -m tests.pallas_kernels.pallas.stem.emulate_stem
        [--problems=network,res2] [--arch=8.0,9.0] [--dtypes=float32,bfloat16] [--route=plugin]
        [--plant-bug]

See `tests.pallas_kernels.pallas.emulate`. Exit code 1 means a difference or a hazard. Where ptxsim
does not run or a package is missing, the command prints why and exits with code 0.
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax.numpy as jnp  # noqa: E402

from pallas_kernels.pallas.projections import (  # noqa: E402
    forward_kernel,
    gradient_kernel,
    parts,
    sums_kernel,
)
from pallas_kernels.pallas.stem.blocks import Parameters  # noqa: E402
from tests.pallas_kernels.pallas.emulate import skipped  # noqa: E402
from tests.pallas_kernels.pallas.projections import projection_problems  # noqa: E402
from tests.pallas_kernels.pallas.projections.projection_problems import PROJECTIONS  # noqa: E402
from tests.pallas_kernels.pallas.stem import stem_problems  # noqa: E402
from tests.pallas_kernels.pallas.stem.stem_problems import STEMS, StemProblem  # noqa: E402

PROBLEMS: dict[str, Any] = {**STEMS, **PROJECTIONS}


def examine(problem: Any, dtype: Any, arch: str, route: str | None) -> list[str]:
    """All problems found."""
    from ptxsim import jaxrun

    run = functools.partial(problem.run, False)
    results, runs = jaxrun.simulate(run, *problem.arrays(dtype), arch=arch, route=route)
    of_stem = isinstance(problem, StemProblem)
    found = (stem_problems if of_stem else projection_problems).faults(problem, dtype, *results)
    for emulated in runs:
        if emulated.stats.hazards:
            found.append(f"{emulated.name}: {emulated.stats.hazards}")
        if any(emulated.stats.unwritten.values()):
            found.append(f"{emulated.name}: never written: {emulated.stats.unwritten}")
    assert len(runs) == (2 if of_stem else 3)
    return found


@contextlib.contextmanager
def plant_bug() -> Iterator[None]:
    """Lets every program take the parameters of the first group of images."""
    load, parameters = Parameters.load, parts.parameters
    with contextlib.ExitStack() as stack:
        first = mock.patch.object(Parameters, "load", lambda stem, refs, group: load(stem, refs, 0))
        stack.enter_context(first)
        for module in (forward_kernel, sums_kernel, gradient_kernel):
            stack.enter_context(
                mock.patch.object(
                    module,
                    "parameters",
                    lambda stem, refs, group, number, c: parameters(stem, refs, 0, number, c),
                )
            )
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--arch", default="8.0,9.0")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--route", default=None, help="ptxsim's: xla (default), plugin, triton")
    parser.add_argument("--plant-bug", action="store_true", help="show that an error is caught")
    options = parser.parse_args(arguments)
    if reason := skipped():
        print(f"SKIPPED: {reason}")
        return 0
    failures = 0
    for arch in options.arch.split(","):
        for dtype in options.dtypes.split(","):
            for name in options.problems.split(","):
                if name in PROJECTIONS and dtype == "float32":
                    continue  # they take 16 bits alone
                started = time.time()
                with plant_bug() if options.plant_bug else contextlib.nullcontext():
                    found = examine(PROBLEMS[name], jnp.dtype(dtype), arch, options.route)
                failures += bool(found)
                print(
                    f"sm_{arch.replace('.', '')} {dtype:8} {name:12} "
                    f"{time.time() - started:5.1f} s "
                    f"{'WRONG: ' + '; '.join(found) if found else 'ok'}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
