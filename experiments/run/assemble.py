"""From a configuration to what a run is made of: initial state and compiled steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, ConfigError
from experiments.run.inputs import make_attack, make_augment, make_mix, make_normalize
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.functional import split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel, replicate
from lrnet_jax.training.optimizer import learning_rate_schedule, sgd
from lrnet_jax.training.state import TrainState, init_state


class Run(NamedTuple):
    """What a run is made of.

    Attributes:
      state: before the first step, on all devices.
      train_step: (state, batch on the devices) -> (state, metrics); takes the state's memory.
      eval_step: ((params, batch_stats), batch on the devices) -> sums.
      steps_per_epoch: a fraction in general.
      total_steps: of the whole run.
      metadata: what a checkpoint says of itself: enough to build the network and evaluate it.
    """

    state: TrainState
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    steps_per_epoch: float
    total_steps: int
    metadata: dict[str, Any]


def assemble(config: Config, dataset: Dataset) -> Run:
    """Builds network, optimiser, state and steps; nothing is compiled yet.

    Raises:
      ConfigError: the run would have no step.
    """
    steps_per_epoch = dataset.num_train / config.train.batch_size
    total_steps = round(config.train.epochs * steps_per_epoch)
    if total_steps < 1:
        raise ConfigError(
            f"train.epochs {config.train.epochs} is less than one step of "
            f"train.batch_size {config.train.batch_size}"
        )

    # ---- network, optimiser, state
    model = lrnet_jax.create_from_variant(
        config.variant, dataset.num_classes, rngs=nnx.Rngs(config.seed)
    )
    functional, params, batch_stats = split(model)
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
    state = replicate(
        init_state(params, batch_stats, optimizer, config.seed, ema=config.train.ema_decay > 0)
    )
    train_step = steps.train_step(
        functional,
        optimizer,
        schedule,
        augment=make_augment(config, dataset),
        mix=make_mix(config),
        label_smoothing=config.optim.label_smoothing,
        ema_decay=config.train.ema_decay,
        attack=make_attack(config, dataset, functional),
        accumulate=config.train.accumulate,
    )
    return Run(
        state=state,
        train_step=parallel(train_step, donate=True),
        eval_step=parallel(steps.eval_step(functional, make_normalize(config, dataset))),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        metadata=describe_network(config, dataset),
    )


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
    share, parts = config.train.batch_size // devices, config.train.accumulate
    if share % parts:
        raise ConfigError(
            f"{share} images a device (train.batch_size {config.train.batch_size} over {devices} "
            f"devices) are not divisible by train.accumulate {parts}; use "
            f"--config.train.accumulate={math.gcd(share, parts)}"
        )
    part = share // parts
    images_of = "images a device" + f" and part (train.accumulate {parts})" * (parts > 1)
    if config.data.mixes and part % 2:
        raise ConfigError(
            f"{part} {images_of} (train.batch_size "
            f"{config.train.batch_size} over {devices} devices) cannot be mixed in pairs; "
            f"use --config.train.batch_size={config.train.batch_size + devices * parts}, or "
            "--config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
        )
    images = config.variant.batch_norm_images
    if images is not None and part % images:
        raise ConfigError(
            f"{part} {images_of} (train.batch_size "
            f"{config.train.batch_size} over {devices} devices) are not divisible by "
            f"model.batch_norm_images {images}; use "
            f"--config.train.batch_size={images * devices * parts}, "
            "or another --config.model.batch_norm_images"
        )


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


def num_params(params: Any) -> int:
    """Number of parameters."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
