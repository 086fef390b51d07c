"""The modelled time of a training step, to be put beside the clock of the GPU.

The step is compiled as `experiments.step_memory` compiles it, for the data sheet of the GPU: with
empty kernels, and without the autotuning that XLA does on the GPU itself. It runs in a process of
its own.
"""

import json
import sys
from collections.abc import Mapping

from experiments.bench import gpu_steps, step_time
from experiments.bench.compiled_step import plan_step
from experiments.bench.kept_results import Result
from pallas_kernels.tools import cross_compilation
from pallas_kernels.tools.cross_compilation import GPUS, Gpu


def data_sheet(kind: str) -> Gpu | None:
    """What is known of a GPU, by its name as the driver has it; None if it is not in the table.

    A part of a GPU (MIG) has another name, and so has one with less memory or fewer cores.
    """
    return next((gpu for gpu in GPUS.values() if gpu.name == kind), None)


def model_network(name: str, batch_size: int, kind: str) -> Result:
    """The model of a step of `gpu_steps.time_network`, in a process of its own.

    Args:
      name: of the network and its policy, as in `gpu_steps.NETWORKS`.
      batch_size: images.
      kind: name of the GPU.

    Returns:
      modelled, seconds of the step; temp_bytes, XLA's plan of temporary memory; kinds, milliseconds
      by class of kernel. {"skipped": True} if the GPU is not in the table, or nothing can be
      compiled for it here.
    """
    gpu = data_sheet(kind)
    missing = "no data sheet of this GPU" if gpu is None else cross_compilation.missing(())
    if missing is not None:
        return {"summary": f"not modelled: {missing}", "skipped": True}
    command = [sys.executable, "-m", "experiments.bench.gpu_model", name, str(batch_size), kind]
    return gpu_steps.json_of(command, {})


def model_here(name: str, batch_size: int, kind: str, image_size: int = 224) -> Result:
    """The model of a step, in this process."""
    gpu = data_sheet(kind)
    assert gpu is not None  # the caller has looked
    step = plan_step(gpu_steps.variant_of(name, "bfloat16"), gpu, batch_size, image_size)
    return {
        "modelled": step.milliseconds / 1e3,
        "temp_bytes": step.temp_bytes,
        "kinds": step_time.milliseconds(step.costs, "kind"),
        "summary": f"MODEL {step.milliseconds:.2f} ms, {step.temp_bytes / 2**30:.2f} GiB",
    }


def measured_seconds(unit: Mapping[str, float]) -> float:
    """Seconds of a step, from a result of `gpu_steps.time_network`."""
    return unit["batch"] / unit["images_per_second"]


if __name__ == "__main__":
    cross_compilation.prepare()
    print(json.dumps(model_here(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
