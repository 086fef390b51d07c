"""Time and memory of whole networks, in turn within one process.

    python -m experiments.benchmark_networks [--networks=resnet26,lrnet26] [--batch_size=2]

Forward (evaluation) and one training step of each, random images. Ratios are to the first network;
a busy machine slows all alike, so trust them rather than the milliseconds. Temporary memory is what
the compiler reports, without parameters and images. Times are of the whole step, input excluded.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lrnet_jax
from lrnet_jax.data.augment import normalize
from lrnet_jax.functional import Functional, split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel, replicate, shard
from lrnet_jax.training.optimizer import sgd
from lrnet_jax.training.state import TrainState, init_state
from lrnet_jax.variant import Variant
from pallas_kernels.tools.timing import Program, Timing, interleave, machine, prepare

MEAN, STD = (127.5, 127.5, 127.5), (60.0, 60.0, 60.0)


def training_step(
    variant: Variant, classes: int = 1000
) -> tuple[Functional, Callable[..., Any], TrainState]:
    """A network's functions, the step as training takes it, not compiled, and its first state."""
    model = lrnet_jax.create_from_variant(variant, classes, nnx.Rngs(0))
    functional, params, batch_stats = split(model)
    optimizer = sgd(lambda _: 0.1)
    dtype = jnp.dtype(variant.dtype)
    step = steps.train_step(
        functional,
        optimizer,
        lambda _: 0.1,
        augment=lambda images, index, key: normalize(images, MEAN, STD, dtype),
    )
    return functional, step, init_state(params, batch_stats, optimizer, 0)


def programs(
    name: str, *, batch_size: int, image_size: int, dtype: Any, classes: int = 1000
) -> dict[str, Program]:
    """The compiled forward pass and training step of a network of the zoo."""
    variant = dataclasses.replace(lrnet_jax.get_variant(name), dtype=dtype)
    functional, step, state = training_step(variant, classes)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), dtype=np.uint8)
    batch = {
        "image": images,
        "label": rng.integers(0, classes, batch_size).astype(np.int32),
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="resnet26,lrnet26", help="of the zoo, with commas")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=9, help="counted runs of each")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    names = args.networks.split(",")
    try:
        for name in names:
            lrnet_jax.get_variant(name)
    except ValueError as error:
        parser.error(str(error))

    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    print(f"batch {args.batch_size}, {args.image_size}x{args.image_size}, {args.dtype}\n")
    compiled = {
        name: programs(
            name, batch_size=args.batch_size, image_size=args.image_size, dtype=args.dtype
        )
        for name in names
    }
    figures: dict[str, Any] = {"machine": machine(), **vars(args), "results": {}}
    for kind in ("forward", "train_step"):
        of_kind = {name: compiled[name][kind] for name in names}
        timings = interleave({n: p.run for n, p in of_kind.items()}, args.rounds)
        figures["results"][kind] = _report(kind, of_kind, timings)
    if args.json:
        with pathlib.Path(args.json).open("w") as file:
            json.dump(figures, file, indent=2)


def _report(
    kind: str, compiled: dict[str, Program], timings: dict[str, Timing]
) -> dict[str, dict[str, float]]:
    base = timings[next(iter(compiled))].median
    print(
        f"{kind:12s} {'median ms':>10s} {'quartiles':>15s} {'ratio':>6s} {'temp MiB':>9s} compile s"
    )
    rows = {}
    for name, program in compiled.items():
        t = timings[name]
        rows[name] = {
            **dataclasses.asdict(t),
            "ratio": t.median / base,
            "temp_bytes": program.temp_bytes,
            "compile_seconds": program.compile_seconds,
        }
        print(
            f"{name:12s} {1e3 * t.median:10.1f} {1e3 * t.lower:7.1f}-{1e3 * t.upper:<7.1f} "
            f"{t.median / base:6.2f} {program.temp_bytes / 2**20:9.1f} "
            f"{program.compile_seconds:9.1f}"
        )
    print()
    return rows


if __name__ == "__main__":
    main()
