"""What a run leaves on the disk when a step goes wrong, for `experiments.replay`."""

import json
import pathlib

import jax
import numpy as np

from experiments.config import Config
from experiments.run import pasteable
from lrnet_jax.data import order
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.training import checkpoints
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.divergence import DivergedError

FOLDER = "bad_step"  # below a workdir


def save_bad_step(
    workdir: pathlib.Path, config: Config, dataset: Dataset, step: int, reason: str
) -> DivergedError:
    """Writes what is needed to replay a bad step; returns the error to raise.

    The folder bad_step/STEP of the workdir then holds step.json (the reason, the numbers of the
    images in the training split and the names of their files, the checkpoint to start from) and
    batch.npz (the global batch as the step was given it).
    """
    batch_size, seed = config.train.batch_size, config.seed
    positions = order.share(batch_size, 0, 1).positions(step - 1)
    _, examples = order.training_examples(positions, dataset.num_train, seed)
    images = [int(example) for example in examples]
    saved = checkpoints.steps_in(workdir / checkpoints.FOLDER)
    checkpoint = saved[-1] if saved else 0
    record = {
        "step": step,
        "reason": reason,
        "checkpoint": checkpoint,
        "devices": jax.device_count(),
        "images": images,
    }
    split = getattr(dataset, "train", None)  # of files; images in memory have no names
    if split is not None:
        record["names"] = [split.describe(image) for image in images]
    folder = workdir / FOLDER / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "step.json", json.dumps(record) + "\n")
    batches = dataset.train_batches(batch_size, seed=seed, start_step=step - 1)
    np.savez_compressed(folder / "batch.npz", allow_pickle=False, **next(batches))
    if (close := getattr(batches, "close", None)) is not None:
        close()
    replay = pasteable.command("experiments.replay", [f"--bad_step={folder}"])
    return DivergedError(
        f"step {step}: {reason}; the run stopped. The last good checkpoint is of step "
        f"{checkpoint}. The images were {images[:8]} and so on; {folder} has all of them. To "
        f"inspect the step, run {replay}. Rerun the same "
        "command to resume from the checkpoint, in case the machine was at fault; otherwise lower "
        "--config.optim.learning_rate in another --workdir"
    )
