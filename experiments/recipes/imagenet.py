"""The paper's recipe on ImageNet (section 4.1), for every network of its Table 8 and Table 7.

    python -m experiments.train --config=lrnet50 --workdir=runs/lrnet50

SGD with momentum 0.9, weight decay 1e-4, batch 1024 (64 images a GPU), rate 0.4 after 5 epochs of
linear warm-up, x0.1 at epochs 30, 60 and 90 of 110; random-resized crop of 224 and flip; evaluated
on the centre crop of 224 out of 256. BatchNorm statistics are taken over 64 images, as on the
paper's GPUs, whatever the number of devices here.

The paper's top-1: ResNet-18 70.1, LR-Net-18 74.6, ResNet-26 72.8, LR-Net-26 75.7, ResNet-50 76.3,
LR-Net-50 77.3, ResNet-101 77.9, LR-Net-101 78.5. Not run here yet.
"""

from experiments.config import Config, recipe

_NETWORKS = (
    "lrnet18", "lrnet26", "lrnet50", "lrnet101",
    "resnet18", "resnet26", "resnet50", "resnet101",
    "resnet26_dw", "nl26", "resnet26_nl", "lrnet26_nl",
)  # fmt: skip

CONFIGS: tuple[Config, ...] = tuple(
    recipe(name, name, model={"dtype": "bfloat16", "batch_norm_images": 64}) for name in _NETWORKS
)
