"""Fine-tuning: a trained network learns other classes, from few images and in short time.

    python -m experiments.train --config=finetune --workdir=runs/pets --config.data.data_dir=pets

`finetune` is for a folder of images, and starts with the weights of runs/lrnet50, or those of
`--config.train.init_from=RUN`. AdamW with a small rate moves the weights little, and less the
nearer they are to the stem (`layer_decay`). The head is new and has the whole rate. Short runs need
no more than a cosine and an epoch of warm-up. BatchNorm takes its statistics over the images of
each device, because a batch may be small. It has not been run here: it needs trained weights of
LR-Net-50.

    python -m experiments.train --config=quickstart
    python -m experiments.photographs --out=runs/photographs
    python -m experiments.train --config=finetune_quick

`finetune_quick` does so in a minute: the network of `quickstart`, which knows clothes, learns three
photographs of 28 x 28. With a network of 90.05 % it reached 100 % on 30 images. On 2 cores that
were busy with other work it took 28 seconds with an empty compilation cache, 11 of processor time.

    python -m experiments.transfer --runs=runs/transfer

compares trainings with each of three seeds. `transfer/pretrain` learns the classes 0 to 4 of the
embedded Fashion-MNIST. `transfer/finetune_short` starts with its weights and learns the classes 5
to 9 from a tenth of their images, 500. `transfer/scratch_short` is the same training with fresh
weights. The names with `long` train ten times as long. Each run takes one or two minutes on a CPU.
The mean top-1 over the seeds was 88.77 % against 86.27 % with fresh weights after 4 epochs, and
92.80 % against 92.07 % after 40. `docs/howto/finetuning.md` has all numbers.
"""

from typing import Any

from experiments.config import Config, Data, Optim, Train, recipe

_TRANSFER_MODEL = {  # that of the study: 2.0 M multiply-adds at 28 x 28
    "depths": (1, 1), "stem_strides": 2, "stem_channels": 16, "stage_channels": 48,
    "channels_per_group": 8, "width": 22,
}  # fmt: skip


def _optim(**fields: Any) -> Optim:
    defaults = {
        "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 0.8,
        "clip_norm": 1.0, "label_smoothing": 0.1, "warmup_epochs": 1.0, "decay": "cosine",
    }  # fmt: skip
    return Optim(**{**defaults, **fields})


def _transfer(name: str, data: str, optim: Optim, epochs: float, **train: Any) -> Config:
    return recipe(
        f"transfer/{name}",
        "lrnet_small",
        model=_TRANSFER_MODEL,
        data=Data(name=data, flip=True),
        optim=optim,
        train=Train(
            batch_size=50, eval_batch_size=500, epochs=epochs, eval_every_epochs=0.0, **train
        ),
    )


PRETRAIN = "transfer/pretrain"
SHORT, LONG = 4.0, 40.0  # epochs
# The same training from both beginnings; the rate is the better of 3e-3 and 1e-2 for either.
_FEW = _optim(learning_rate=1e-2, layer_decay=1.0)


def _from_few_images(start: str, length: str, epochs: float) -> Config:
    data, origin = "fashion_mnist_second_half_tenth", f"runs/{PRETRAIN}"
    init_from = origin if start == "finetune" else None
    return _transfer(f"{start}_{length}", data, _FEW, epochs, init_from=init_from)


CONFIGS: tuple[Config, ...] = (
    recipe(
        "finetune",
        "lrnet50",
        model={"dtype": "bfloat16", "remat": "blocks"},
        data=Data(name="folder"),
        optim=_optim(),
        train=Train(
            init_from="runs/lrnet50", batch_size=64, eval_batch_size=256, epochs=20.0,
            eval_every_epochs=1.0, drop_path=0.1,
        ),
    ),
    recipe(
        "finetune_quick",
        "lrnet_small",
        data=Data(name="folder", data_dir="runs/photographs", image_size=28, workers=0),
        optim=_optim(),
        train=Train(
            init_from="runs/quickstart", batch_size=24, eval_batch_size=32, epochs=10.0,
            eval_every_epochs=5.0, log_every=10,
        ),
    ),
    _transfer(
        "pretrain", "fashion_mnist_first_half",
        Optim(
            learning_rate=0.06, nesterov=True, weight_decay=5e-4, warmup_epochs=1.0, decay="cosine"
        ),
        10.0,
    ),
    *(
        _from_few_images(start, length, epochs)
        for length, epochs in (("short", SHORT), ("long", LONG))
        for start in ("finetune", "scratch")
    ),
)  # fmt: skip
