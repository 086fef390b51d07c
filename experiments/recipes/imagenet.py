"""ImageNet: the paper's training of every network of its Tables 7 and 8, and a modern one.

    python -m experiments.train --config=lrnet50 --workdir=runs/lrnet50

The paper's training (section 4.1) is SGD with momentum 0.9, weight decay 1e-4 and batches of 1024
images, 64 on each GPU. The learning rate rises linearly to 0.4 over 5 epochs and is multiplied by
0.1 at epochs 30, 60 and 90 of 110. Training images are random-resized crops of 224, half of them
flipped. Evaluation takes the centre crop of 224 out of 256. BatchNorm statistics are taken over 64
images, as on the paper's GPUs, whatever the number of devices.

LR-Nets train with model.remat=blocks. By a model, a step of LR-Net-50 then takes 1.2 times the
memory of one of ResNet-50 instead of 1.6, and 3 % more time (docs/gpu_kernels.md). Where memory is
plenty, use --config.model.remat=none. The result is the same but for rounding.

    python -m experiments.train --config=lrnet50_modern --workdir=runs/lrnet50_modern

NAME_modern trains LR-Net-26, LR-Net-50 and their ResNets as has become usual since: 300 epochs
with a cosine decay, label smoothing 0.1, RandAugment (2 operations of magnitude 9), random erasing
(0.1), Mixup (0.2) and CutMix (1) in turn, drop path (0.05), weight decay 2e-5, and evaluation with
averaged weights. It follows torchvision's second recipe for ResNet-50, with RandAugment for
TrivialAugment, without the smaller training crops, and with half of its epochs. The drop path is
that of "ResNet strikes back" (arXiv 2110.00476). Compare a network of this family only with another
of this family.

The paper's top-1: ResNet-18 70.1, LR-Net-18 74.6, ResNet-26 72.8, LR-Net-26 75.7, ResNet-50 76.3,
LR-Net-50 77.3, ResNet-101 77.9, LR-Net-101 78.5. Neither family has been run here yet.
"""

import dataclasses
from typing import Any

from experiments.config import Config, Data, Optim, Train, recipe, remat_on_gpu
from lrnet_jax import get_variant

_NETWORKS = (
    "lrnet18", "lrnet26", "lrnet50", "lrnet101",
    "resnet18", "resnet26", "resnet50", "resnet101",
    "resnet26_dw", "nl26", "resnet26_nl", "lrnet26_nl",
)  # fmt: skip

_MODERN = ("lrnet26", "lrnet50", "resnet26", "resnet50")


def gpu_model(network: str, **fields: Any) -> dict[str, Any]:
    """Fields of a variant for training on GPUs.

    Args:
      network: a network of the zoo.
      **fields: those that the recipe changes besides.
    """
    given = {"dtype": "bfloat16", "batch_norm_images": 64, **fields}
    variant = dataclasses.replace(get_variant(network), **given)
    return {"remat": remat_on_gpu(variant), **given}


CONFIGS: tuple[Config, ...] = tuple(
    recipe(name, name, model=gpu_model(name)) for name in _NETWORKS
) + tuple(
    recipe(
        f"{name}_modern",
        name,
        model=gpu_model(name),
        data=Data(randaugment=2, random_erasing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0),
        optim=Optim(learning_rate=0.5, weight_decay=2e-5, label_smoothing=0.1, decay="cosine"),
        train=Train(epochs=300.0, ema_decay=0.9999, drop_path=0.05),
    )
    for name in _MODERN
)
