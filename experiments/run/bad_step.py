"""What a run that went wrong leaves behind, for `experiments.replay`."""

import json
import pathlib

import jax
import numpy as np

from experiments.config import Config
from lrnet_jax.data import order
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.training import checkpoints
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.divergence import DivergedError

FOLDER = "bad_step"  # below a workdir


def bad_step(
    workdir: pathlib.Path, config: Config, dataset: Dataset, number: int, reason: str
) -> DivergedError:
    """Writes down what is needed to replay a bad step; returns the error to raise.

    BAD_STEP/NUMBER holds step.json (reason, images by their number in the training split, the
    checkpoint to start from) and batch.npz (the global batch as the step was given it).
    """
    batch_size, seed = config.train.batch_size, config.seed
    positions = order.share(batch_size, 0, 1).positions(number - 1)
    _, examples = order.training_examples(positions, dataset.num_train, seed)
    saved = checkpoints.steps_in(workdir / checkpoints.FOLDER)
    images = [int(example) for example in examples]
    record = {
        "step": number,
        "reason": reason,
        "checkpoint": saved[-1] if saved else 0,
        "devices": jax.device_count(),
        "images": images,
    }
    folder = workdir / FOLDER / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "step.json", json.dumps(record) + "\n")
    batches = dataset.train_batches(batch_size, seed=seed, start_step=number - 1)
    batch = next(batches)
    np.savez_compressed(folder / "batch.npz", allow_pickle=False, **batch)
    if (close := getattr(batches, "close", None)) is not None:
        close()
    return DivergedError(
        f"step {number}: {reason}; stopped. The last good checkpoint is of step "
        f"{record['checkpoint']}; the images were {images[:8]} and so on, all in "
        f"{folder}. To look closer: python -m experiments.replay --bad_step={folder}. The same "
        "command as before goes on from the checkpoint (a fault of the machine will not repeat); "
        "otherwise lower --config.optim.learning_rate in another --workdir"
    )
