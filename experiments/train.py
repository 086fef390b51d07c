"""Trains a network.

    python -m experiments.train --config=lrnet50 --workdir=runs/lrnet50
    python -m experiments.train --config=quickstart --config.train.epochs=3

The same command goes on from the last checkpoint. Ends with an evaluation of the whole split.

Read top to bottom: configuration, data, network, state, loop, end.
"""

import contextlib
import json
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

import lrnet_jax
from experiments import command_line
from experiments import config as configs
from experiments.config import Config, ConfigError
from experiments.inputs import (
    eval_batches,
    make_attack,
    make_augment,
    make_mix,
    make_normalize,
    open_data,
)
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.data.prefetch import prefetch
from lrnet_jax.training import checkpoints, steps
from lrnet_jax.training.evaluation import evaluate
from lrnet_jax.training.optimizer import learning_rate_schedule, sgd
from lrnet_jax.training.reporting import Reporter, duration

RESULT = "result.json"

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; runs/NAME of the recipe by default."
)


def main() -> None:
    """Entry point."""
    if command_line.wants_help():
        command_line.print_help()
        return
    config = command_line.chosen_config()
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.recipe}")
    train(config, workdir)


def train(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs a configuration in a workdir, from its last checkpoint if it has one.

    Returns:
      The result: top1, top5 (percent), loss, count of the evaluation split, and step.

    Raises:
      ConfigError: it cannot run here as configured, or the workdir is another run's.
    """
    started = time.monotonic()

    # ---- what was asked for, checked before anything is written
    check_devices(config)
    dataset = open_data(config)
    new = claim_workdir(config, workdir, dry_run=True)
    if (workdir / RESULT).exists():
        result = json.loads((workdir / RESULT).read_text())
        print(f"{workdir} is finished; delete it to train again")
        say_final(workdir, result)
        return result
    steps_per_epoch = dataset.num_train / config.train.batch_size
    total_steps = round(config.train.epochs * steps_per_epoch)
    if total_steps < 1:
        raise ConfigError(
            f"train.epochs {config.train.epochs} is less than one step of "
            f"train.batch_size {config.train.batch_size}"
        )

    # ---- network, optimiser, state
    model = lrnet_jax.create_from_variant(
        config.model, dataset.num_classes, rngs=nnx.Rngs(config.seed)
    )
    functional, params, batch_stats = steps.split(model)
    schedule = learning_rate_schedule(
        config.optim.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(config.optim.warmup_epochs * steps_per_epoch),
        decay=config.optim.decay,
        boundaries=[round(epoch * steps_per_epoch) for epoch in config.optim.boundaries],
        decay_factor=config.optim.decay_factor,
    )
    optimizer = sgd(
        schedule,
        momentum=config.optim.momentum,
        nesterov=config.optim.nesterov,
        weight_decay=config.optim.weight_decay,
    )
    state = steps.replicate(
        steps.init_state(
            params, batch_stats, optimizer, config.seed, ema=config.train.ema_decay > 0
        )
    )

    with contextlib.ExitStack() as closing:  # however it ends, saves in flight are finished
        # ---- what there is already
        claim_workdir(config, workdir)
        manager = closing.enter_context(
            checkpoints.open_manager(workdir, keep=config.train.keep_checkpoints)
        )
        state = checkpoints.restore(manager, like=state) or state
        first_step = int(jax.device_get(state.step))
        metadata = describe_network(config, dataset)

        # ---- the two compiled functions
        train_step = steps.parallel(
            steps.train_step(
                functional,
                optimizer,
                schedule,
                augment=make_augment(config, dataset),
                mix=make_mix(config),
                label_smoothing=config.optim.label_smoothing,
                ema_decay=config.train.ema_decay,
                attack=make_attack(config, dataset, functional),
            ),
            donate=True,
        )
        eval_step = steps.parallel(steps.eval_step(functional, make_normalize(config, dataset)))

        def evaluation(state: steps.TrainState) -> dict[str, Any]:
            batches = eval_batches(dataset, config.train.eval_batch_size)
            return evaluate(eval_step, *state.evaluated, batches)

        # ---- the loop
        reporter = closing.enter_context(
            Reporter(workdir, total_steps=total_steps, first_step=first_step)
        )
        say = reporter.line
        say(f"{'new run' if new else f'resumed at step {first_step}'} in {workdir}")
        if new:
            say(f"configuration:\n{configs.describe(config)}")
        say(
            f"{config.network} ({count(params) / 1e6:.3f} M parameters) on {dataset.name} "
            f"({dataset.num_train} + {dataset.num_eval} images), {total_steps} steps of "
            f"{config.train.batch_size} on {jax.device_count()} x {jax.devices()[0].device_kind}"
        )
        eval_every = round(config.train.eval_every_epochs * steps_per_epoch)
        pending: list[Any] = []  # metrics still on the device
        batches = closing.enter_context(
            prefetch(
                dataset.train_batches(
                    config.train.batch_size, seed=config.seed, start_step=first_step
                ),
                steps.shard,
            )
        )
        for step in range(first_step + 1, total_steps + 1):
            batch = next(batches)
            with jax.transfer_guard("disallow"):  # a hidden copy a step would stall the device
                state, metrics = train_step(state, batch)
            pending.append(metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                say(f"first step after {duration(time.monotonic() - started)}, compilation in it")
            if step % config.train.log_every == 0 or step == total_steps:
                for offset, values in enumerate(jax.device_get(pending)):
                    reporter.scalars("train", step - len(pending) + 1 + offset, values)
                pending.clear()
                epoch = step / steps_per_epoch
                reporter.progress(
                    step,
                    f"epoch {epoch:.2f}  loss {values['loss']:.3f}  "
                    f"accuracy {100 * values['accuracy']:.1f} %",
                )
            if step % config.train.checkpoint_every == 0 and step != total_steps:
                checkpoints.save(manager, state, metadata)
            if eval_every and step % eval_every == 0 and step != total_steps:
                result = evaluation(state)
                reporter.scalars("eval", step, result)
                say(f"evaluation at step {step}: {describe_result(result)}")

        # ---- the end: save first, then evaluate; nothing computed is lost
        checkpoints.save(manager, state, metadata)
        manager.wait_until_finished()
        result = {"step": total_steps, **evaluation(state)}
        reporter.scalars("eval", total_steps, result)
    write_atomically(workdir / RESULT, json.dumps(result, indent=2) + "\n")
    print(f"trained in {duration(time.monotonic() - started)}")
    say_final(workdir, result)
    return result


def check_devices(config: Config) -> None:
    """Refuses batches that the devices cannot share.

    Raises:
      ConfigError: says which batch, and the nearest that fits.
    """
    devices = jax.device_count()
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config.train, name)
        if size % devices:
            near = max(devices, size - size % devices)
            raise ConfigError(
                f"train.{name} {size} is not divisible by {devices} devices; "
                f"use --config.train.{name}={near}"
            )
    if config.data.mixes and config.train.batch_size // devices % 2:
        raise ConfigError(
            f"{config.train.batch_size // devices} images a device (train.batch_size "
            f"{config.train.batch_size} over {devices} devices) cannot be mixed in pairs; "
            f"use --config.train.batch_size={config.train.batch_size + devices}, or "
            "--config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
        )
    images = config.model.batch_norm_images
    if images is not None and config.train.batch_size // devices % images:
        raise ConfigError(
            f"{config.train.batch_size // devices} images a device (train.batch_size "
            f"{config.train.batch_size} over {devices} devices) are not divisible by "
            f"model.batch_norm_images {images}; use --config.train.batch_size={images * devices}, "
            "or another --config.model.batch_norm_images"
        )


def claim_workdir(config: Config, workdir: pathlib.Path, dry_run: bool = False) -> bool:
    """Makes the workdir this run's, or checks that it is; True for a new one.

    Raises:
      ConfigError: it holds another configuration's run, or something that is no run.
    """
    path = workdir / configs.FILE
    if path.exists():
        differing = configs.differences(configs.load(path), config)
        if differing:
            raise ConfigError(
                f"{workdir} holds a run with another configuration ({'; '.join(differing)}); "
                "give another --workdir, or the same configuration to resume"
            )
        return False
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ConfigError(f"{workdir} is not empty and no run of ours; give another --workdir")
    if not dry_run:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(configs.to_dict(config), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write to --workdir={workdir}: {error}") from error
    return True


def describe_network(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to build the network and evaluate it."""
    record = configs.to_dict(config)
    return {
        "network": config.network,
        "variant": record["model"],
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        "image_size": dataset.image_size,
        "config": record,
        "versions": {"lrnet_jax": lrnet_jax.__version__, "jax": jax.__version__},
    }


def describe_result(result: dict[str, Any]) -> str:
    """An evaluation in a line."""
    return (
        f"top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"loss {result['loss']:.4f}  on {result['count']} images"
    )


def say_final(workdir: pathlib.Path, result: dict[str, Any]) -> None:
    """The last lines of a run: what it reached, where it lies, what to type next."""
    print(
        f"final: {describe_result(result)}\n"
        f"checkpoint: {workdir / checkpoints.FOLDER / str(result['step'])}\n"
        f"next: python -m experiments.evaluate --checkpoint={workdir}\n"
        f"      tensorboard --logdir={workdir}"
    )


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either the old one or the new one, never half of it."""
    spare = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    spare.write_text(text)
    spare.replace(path)


if __name__ == "__main__":
    command_line.run(main)
