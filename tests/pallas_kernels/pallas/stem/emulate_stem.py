"""Executes the compiled kernels of the stem on a CPU and compares them with float64.

    PYTHONPATH=FOLDER_OF_PTXSIM python -m tests.pallas_kernels.pallas.stem.emulate_stem
        [--problems=network,ghost] [--arch=8.0,9.0] [--dtypes=float32,bfloat16] [--route=plugin]
        [--plant-bug]

See `tests.pallas_kernels.pallas.emulate`. Exit code 1 means a difference or a hazard. Where ptxsim
does not run or a package is missing, the command prints why and exits with code 0.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax.numpy as jnp  # noqa: E402

from pallas_kernels.pallas import stem  # noqa: E402
from pallas_kernels.pallas.stem.blocks import Parameters  # noqa: E402
from tests.pallas_kernels.pallas.emulate import skipped  # noqa: E402
from tests.pallas_kernels.pallas.stem.stem_problems import STEMS, StemProblem, faults  # noqa: E402


def examine(problem: StemProblem, dtype: Any, arch: str, route: str | None) -> list[str]:
    """All problems found."""
    from ptxsim import jaxrun

    def run(inputs: Any, d_maps: Any) -> Any:
        maps = stem.forward(inputs, problem.stride)
        return maps, stem.backward(inputs, d_maps, problem.stride)

    (maps, sums), runs = jaxrun.simulate(run, *problem.arrays(dtype), arch=arch, route=route)
    found = faults(problem, dtype, maps, sums)
    for emulated in runs:
        if emulated.stats.hazards:
            found.append(f"{emulated.name}: {emulated.stats.hazards}")
        if any(emulated.stats.unwritten.values()):
            found.append(f"{emulated.name}: never written: {emulated.stats.unwritten}")
    assert len(runs) == 2
    return found


def plant_bug() -> Any:
    """Lets every program take the parameters of the first group of images."""
    true_load = Parameters.load
    return mock.patch.object(Parameters, "load", lambda stem, refs, group: true_load(stem, refs, 0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(STEMS))
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
                started = time.time()
                with plant_bug() if options.plant_bug else contextlib.nullcontext():
                    found = examine(STEMS[name], jnp.dtype(dtype), arch, options.route)
                failures += bool(found)
                print(
                    f"sm_{arch.replace('.', '')} {dtype:8} stem {name:12} "
                    f"{time.time() - started:5.1f} s "
                    f"{'WRONG: ' + '; '.join(found) if found else 'ok'}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
