"""Compiled programs of whole networks, and their time and memory."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lrnet_jax
from lrnet_jax.data.augment import normalize
from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Functional, split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel, replicate, shard
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import TrainState, init_state
from lrnet_jax.variant import Variant
from pallas_kernels.api import DEFAULT, IMPLEMENTATIONS, preferred
from pallas_kernels.platform_switch import current_platform
from pallas_kernels.tools.timing import Program, Timing, interleave, prepare

CLASSES = 1000
MEAN, STD = (127.5, 127.5, 127.5), (60.0, 60.0, 60.0)
PASSES = ("forward", "train_step")


class TrainingStep(NamedTuple):
    """A training step that is not compiled.

    Attributes:
      functional: the network as functions.
      step: (state, batch) -> (state, metrics), as training takes it.
      state: the first state.
    """

    functional: Functional
    step: Callable[..., Any]
    state: TrainState


def describe_relations(variants: Mapping[str, Variant]) -> list[str]:
    """A line for each network with local relations: what runs them here, and why not better."""
    lines = []
    for name, variant in variants.items():
        if variant.operator != "local_relation" or variant.scope != "local":
            continue
        line = f"{name}: local relations by {variant.implementation}"
        if variant.implementation is None:
            obstacles = {n: IMPLEMENTATIONS[n].unavailable() for n in preferred(current_platform())}
            runs = next((n for n, obstacle in obstacles.items() if obstacle is None), DEFAULT)
            line = f"{name}: local relations by {runs}"
            if runs == DEFAULT:
                line += "".join(f"; {n} cannot run: {why}" for n, why in obstacles.items())
        lines.append(line)
    return lines


def make_training_step(variant: Variant) -> TrainingStep:
    """The training step of a network, without augmentation."""
    model = lrnet_jax.create_from_variant(variant, CLASSES, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    optimizer = sgd(lambda _: 0.1)
    dtype = jnp.dtype(variant.dtype)
    step = steps.TrainStep(
        functional,
        optimizer,
        lambda _: 0.1,
        augment=lambda images, index, key: normalize(images, MEAN, STD, dtype),
    )
    return TrainingStep(functional, step, init_state(params, batch_stats, optimizer, 0))


def compile_passes(variant: Variant, *, batch_size: int, image_size: int) -> dict[str, Program]:
    """The compiled forward pass (in evaluation mode) and training step, on one device.

    Args:
      variant: of the network.
      batch_size: images of the batch.
      image_size: height and width of the images.

    Returns:
      A program for each of `PASSES`.
    """
    functional, step, state = make_training_step(variant)
    dtype = jnp.dtype(variant.dtype)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), dtype=np.uint8)
    batch: Batch = {
        "image": images,
        "label": rng.integers(0, CLASSES, batch_size).astype(np.int32),
        "index": np.arange(batch_size, dtype=np.int32),
    }
    devices = jax.local_devices()[:1]
    state = replicate(state, devices)
    return {
        "forward": prepare(
            lambda p, s, x: functional.apply(p, s, normalize(x, MEAN, STD, dtype)),
            state.params,
            state.batch_stats,
            jax.device_put(images),
        ),
        "train_step": prepare(parallel(step, devices=devices), state, shard(batch, devices)),
    }


class Measurement(NamedTuple):
    """Time and memory of a program.

    Attributes:
      timing: seconds over several runs.
      ratio: median time relative to the first program.
      temp_bytes: temporary memory.
      compile_seconds: time to trace, lower and compile the program.
      compile_cpu: processor time of that, all threads together.
    """

    timing: Timing
    ratio: float
    temp_bytes: int
    compile_seconds: float
    compile_cpu: float

    def as_json(self) -> dict[str, float]:
        """All numbers by their names."""
        return {
            **dataclasses.asdict(self.timing),
            "ratio": self.ratio,
            "temp_bytes": self.temp_bytes,
            "compile_seconds": self.compile_seconds,
            "compile_cpu": self.compile_cpu,
        }


def measure(programs: Mapping[str, Program], rounds: int) -> dict[str, Measurement]:
    """Runs programs in turn.

    Args:
      programs: by the names of their networks.
      rounds: number of runs of each that count.
    """
    timings = interleave({name: program.run for name, program in programs.items()}, rounds)
    first = next(iter(timings.values())).median
    return {
        name: Measurement(
            timing,
            timing.median / first,
            programs[name].temp_bytes,
            programs[name].compile_seconds,
            programs[name].compile_cpu,
        )
        for name, timing in timings.items()
    }


def describe_measurements(title: str, measurements: Mapping[str, Measurement]) -> str:
    """The measurements of one pass as lines of text."""
    columns = (
        f"{'median ms':>10s} {'quartiles':>15s} {'ratio':>6s} {'CPU ms':>8s} {'ratio':>6s} "
        f"{'temp MiB':>9s} compile s {'CPU s':>6s}"
    )
    first = next(iter(measurements.values())).timing.cpu or 1.0
    lines = [f"{title:12s} {columns}"]
    for name, measured in measurements.items():
        time = measured.timing
        lines.append(
            f"{name:12s} {1e3 * time.median:10.1f} {1e3 * time.lower:7.1f}-{1e3 * time.upper:<7.1f}"
            f" {measured.ratio:6.2f} {1e3 * time.cpu:8.1f} {time.cpu / first:6.2f}"
            f" {measured.temp_bytes / 2**20:9.1f} "
            f"{measured.compile_seconds:9.1f} {measured.compile_cpu:6.1f}"
        )
    return "\n".join(lines)
