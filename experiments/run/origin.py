"""Where a new run starts, if not from fresh weights: another run's network, or its whole state."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, ConfigError
from experiments.run.assemble import Run, abstract_state
from experiments.run.overrides import typed
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.training import checkpoints, processes
from lrnet_jax.training.checkpoints import CheckpointError, Metadata
from lrnet_jax.training.devices import replicate
from lrnet_jax.training.state import TrainState
from lrnet_jax.training.transfer import (
    Weights,
    move_optimizer,
    move_weights,
    read_weights,
    set_schedule,
)

# Fields of a variant that do not change what a network in evaluation computes, but for rounding.
_SAME_FUNCTION = frozenset(
    {"batch_norm_axis", "batch_norm_images", "dtype", "implementation", "prior_stddev", "remat",
     "zero_gamma"}
)  # fmt: skip


def start_from_origin(config: Config, workdir: pathlib.Path, dataset: Dataset, run: Run) -> Run:
    """A run with the first state that train.init_from or train.fork_from describes.

    A run that has saved a checkpoint goes on from there, and its origin is not read.

    Args:
      config: the configuration of the run.
      workdir: of the run.
      dataset: its images.
      run: from `assemble`.

    Raises:
      CheckpointError: there is no good checkpoint.
      ConfigError: it does not fit this run.
    """
    train = config.train
    if train.init_from is None and train.fork_from is None:
        return run
    started = processes.is_first() and checkpoints.steps_in(workdir / checkpoints.FOLDER)
    if processes.broadcast(bool(started)):
        return run
    if processes.is_first():
        run = _init(config, dataset, run) if train.init_from else _fork(config, dataset, run)
    return run._replace(state=replicate(processes.broadcast_arrays(run.state)))


def forked(path: str) -> Config:
    """The configuration of a run or step, as that of a run which goes on from there.

    Raises:
      CheckpointError: there is no good checkpoint.
      ConfigError: it has no configuration of this version.
    """
    config = _config_of(checkpoints.find(path).metadata, path)
    train = dataclasses.replace(config.train, init_from=None, fork_from=path)
    return dataclasses.replace(config, train=train)


def _init(config: Config, dataset: Dataset, run: Run) -> Run:
    """The network of train.init_from, in a run that is new otherwise."""
    path = str(config.train.init_from)
    weights = read_weights(path)
    same = _same_classes(weights.metadata, dataset)
    try:
        moved = move_weights(weights, run.state.params, run.state.batch_stats, head=same)
    except CheckpointError as error:
        raise ConfigError(f"train.init_from: {error}; {_mend(config, weights.metadata)}") from error
    state = _with_network(run.state, moved.params, moved.batch_stats)
    lines = [
        f"network of {_name(path, weights)}: took {len(moved.taken)} arrays of "
        f"{', '.join(_parts(moved.taken))}"
    ]
    if moved.left:
        classes = weights.metadata["num_classes"]
        lines.append(
            f"left its head of {_count(classes)}; the head of {_count(dataset.num_classes)} is new"
        )
    differing = _differing_fields(config, weights.metadata)
    if differing:
        lines.append(f"the networks differ: {'; '.join(differing)}")
    return run._replace(state=state, origin=tuple(lines))


def _fork(config: Config, dataset: Dataset, run: Run) -> Run:
    """The state of train.fork_from, with the schedule of this run."""
    path = str(config.train.fork_from)
    folder, metadata, _ = checkpoints.find(path)
    source = _config_of(metadata, path)
    if not (folder / "training").is_dir():
        raise ConfigError(f"--fork_from={path} is no run but an export; {_init_instead(path)}")
    if not _same_classes(metadata, dataset):
        raise ConfigError(f"--fork_from={path} has other classes; {_init_instead(path)}")
    old = checkpoints.read_state(folder, abstract_state(source, metadata["num_classes"]))
    try:
        weights = Weights(folder, metadata, False, checkpoints.model_item(old))
        move_weights(weights, run.state.params, run.state.batch_stats, head=True)
    except CheckpointError as error:
        raise ConfigError(f"--fork_from: {error}; {_mend(config, metadata)}") from error
    try:
        opt_state = move_optimizer(old.opt_state, run.state.opt_state)
    except ValueError as error:
        changed = [line for line in configs.differences(source, config) if line.startswith("optim")]
        raise ConfigError(
            f"--fork_from={path}: its optimiser does not fit ({'; '.join(changed)}): {error}; "
            f"{_init_instead(path)}"
        ) from error
    # A place in the data is a number of images.
    step = round(int(old.step) * source.train.batch_size / config.train.batch_size)
    if step >= run.total_steps:
        raise ConfigError(
            f"--fork_from={path} is at step {step}, and train.epochs {config.train.epochs} are "
            f"{run.total_steps} steps; use more, such as "
            f"--config.train.epochs={2 * config.train.epochs:g}, or {_init_instead(path)}"
        )
    state = _with_network(run.state, old.params, old.batch_stats)
    if state.ema is not None and old.ema is not None:
        state = dataclasses.replace(state, ema=old.ema)
    state = dataclasses.replace(
        state, step=jnp.int32(step), opt_state=set_schedule(opt_state, step)
    )
    changed = configs.differences(source, config, configs.FREE | {"train.fork_from"})
    line = f"fork of {path} after step {int(old.step)}"
    line += f", which is step {step} here" * (step != int(old.step))
    return run._replace(
        state=state, origin=(f"{line}; changed: {'; '.join(changed) or 'nothing'}",)
    )


def _with_network(state: TrainState, params: Any, batch_stats: Any) -> TrainState:
    ema = state.ema
    if ema is not None:
        # Copied, because the state is donated to the step and no buffer may be donated twice.
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=ema)


def _same_classes(metadata: Metadata, dataset: Dataset) -> bool:
    names, own = metadata.get("class_names"), dataset.class_names
    if names is not None and own is not None:
        return list(names) == list(own)
    return bool(metadata["num_classes"] == dataset.num_classes)


def _config_of(metadata: Metadata, path: str) -> Config:
    if "config" not in metadata:
        raise ConfigError(f"{path} has no configuration of a run; {_init_instead(path)}")
    return configs.from_dict(metadata["config"])


def _init_instead(path: str) -> str:
    return f"start with its weights alone: --config.train.init_from={path}"


def _mend(config: Config, metadata: Metadata) -> str:
    """What to type so that the network is the checkpoint's."""
    network = metadata.get("network")
    if network in lrnet_jax.list_models() and network != config.network:
        return f"use --config.network={network}"
    fields = _differing_fields(config, metadata)
    flags = (f"--config.model.{name}={typed(_old(metadata)[name])}" for name in _names(fields))
    return f"use {' '.join(flags)}" if fields else "use the network that wrote it"


def _differing_fields(config: Config, metadata: Metadata) -> list[str]:
    """The fields of the variants that make the networks differ, as "width: 64 -> 32"."""
    new = json.loads(json.dumps(dataclasses.asdict(config.variant)))
    return [
        f"{name}: {value} -> {new[name]}"
        for name, value in _old(metadata).items()
        if name not in _SAME_FUNCTION and new[name] != value
    ]


def _old(metadata: Metadata) -> dict[str, Any]:
    """The variant of a checkpoint, with fields that are newer than it, as JSON types."""
    try:
        variant = lrnet_jax.Variant(**metadata["variant"])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the checkpoint is of a network that this version cannot build: {error}"
        ) from error
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(variant)))
    return fields


def _names(fields: Iterable[str]) -> list[str]:
    return [field.partition(":")[0] for field in fields]


def _name(path: str, weights: Weights) -> str:
    step = weights.metadata.get("step")
    return path + (f", step {step}" if step is not None else "") + ", averaged" * weights.ema


def _parts(paths: Sequence[str]) -> list[str]:
    """The parts of a network that arrays belong to, in its order: stem, stages/0, head."""
    found = dict.fromkeys(
        "/".join(names[: 2 if names[0] == "stages" else 1])
        for names in (path.split("/")[1:] for path in paths)
    )
    return sorted(found, key=lambda part: ("stem", "stages", "head").index(part.split("/")[0]))


def _count(classes: int) -> str:
    return "1 class" if classes == 1 else f"{classes} classes"
