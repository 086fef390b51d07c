"""The paper's main claims on one CPU core in two hours: small networks of equal computation.

    python -m experiments.sweep --recipes='study/*' --seeds=0,1,2 --runs=runs/study
    python -m experiments.study --runs=runs/study

docs/study.md has the commands of the attacks and the results.

Every row is trained with the same settings on the embedded 10,000 images of 28 x 28, and tested on
the other 2,000. The settings were chosen for their time before any row was compared with another.
All networks have one skeleton: a 3x3 convolution of stride 2, a bottleneck block at 14 x 14 and one
at 7 x 7. The width keeps each at 2.0 M multiply-adds, as in the paper's Table 3.

`study/lrnet_flat` is a control. The prior network of `study/lrnet_k7` starts with a different
window for each group, while prior tables start flat. The prior network of `study/lrnet_flat` starts
flat as well.

The robust rows are trained on adversarial images only, targeted at a random wrong class within
eps 16, as the paper's. To save time they make 3 steps of 8 instead of 16 of 1, for fewer epochs.
"""

import dataclasses
from typing import Any, Literal

from experiments.config import Attack, Config, Data, Optim, Train, recipe

EPOCHS, ROBUST_EPOCHS = 7.0, 5.0


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """A system of the study.

    Attributes:
      recipe: name of the recipe that trains it.
      label: description of the system.
      network: name of the network in the zoo.
      width: width that gives it the multiply-adds of the others.
      fields: fields of the variant that the row changes, with their values.
      paper: the paper's top-1 on ImageNet of a row of this kind, in percent; None if it has none.
      source: the row and table of the paper.
      robust: whether the system is trained on adversarial images.
    """

    recipe: str
    label: str
    network: str
    width: int
    fields: dict[str, Any]
    paper: str | None
    source: str
    robust: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says of two systems, written down before the study was run.

    A claim is judged by the difference d of the two mean accuracies over seeds, left minus right.
    The threshold is the two-sided 95 % quantile of Student's t times the standard error of d, and
    at least `RESOLUTION`. The standard error comes from the standard deviation over seeds, pooled
    over all rows that were trained alike.

    Attributes:
      text: the claim.
      left: name of the recipe that the claim is about.
      right: name of the recipe that it is compared with.
      kind: "better" shows if d > threshold, does not show if d < -threshold, and cannot be told in
        between; "equal" shows if |d| <= threshold and otherwise does not; "no better" shows if
        d <= threshold and otherwise does not.
      paper: the paper's difference on ImageNet in points of top-1; None if it has none.
      measure: "clean" for top-1 without attack, or the kind of attack at eps 16.
    """

    text: str
    left: str
    right: str
    kind: Literal["better", "equal", "no better"]
    paper: float | None
    measure: Literal["clean", "targeted", "untargeted"] = "clean"


RESOLUTION = 0.7  # points of top-1 that 2,000 test images resolve

_LR, _CONV = "lrnet_small", "resnet_small"

STUDY_ROWS: tuple[StudyRow, ...] = (
    StudyRow("study/lrnet_k7", "LR, 7x7", _LR, 22, {}, "75.7", "LR-Net-26, Table 3"),
    StudyRow(
        "study/lrnet_k3", "LR, 3x3", _LR, 26, {"kernel_size": 3}, "73.6", "LR-Net-26, Table 3"
    ),
    StudyRow(
        "study/lrnet_full", "LR, full image", _LR, 23,
        {"scope": "full", "full_image_pool": (2, 1)}, "68.4", "LR-Net-26, Table 3",
    ),
    StudyRow(
        "study/lrnet_table", "LR, 7x7, prior table", _LR, 22, {"prior": "table"},
        "73.6", "LR-Net-26 (G*), Table 3",
    ),
    StudyRow(
        "study/lrnet_flat", "LR, 7x7, prior network from flat", _LR, 22, {"prior_stddev": 0.01},
        None, "",
    ),
    StudyRow(
        "study/lrnet_none", "LR, 7x7, no prior", _LR, 22, {"prior": "none"},
        "71.9", "LR-Net-26 (NG), Table 3",
    ),
    StudyRow(
        "study/lrnet_no_softmax", "LR, 7x7, no softmax", _LR, 22, {"normalization": "none"},
        "74.8", "LR-Net-26, Table 6",
    ),
    StudyRow(
        "study/lrnet_m1", "LR, 7x7, m = 1", _LR, 16, {"channels_per_group": 1},
        "75.3", "LR-Net-26, Table 5",
    ),
    StudyRow("study/conv_k3", "convolution, 3x3", _CONV, 16, {}, "72.8", "ResNet-26, Table 3"),
    StudyRow(
        "study/conv_k7", "convolution, 7x7", _CONV, 8, {"kernel_size": 7},
        "72.3", "ResNet-26, Table 3",
    ),
    StudyRow(
        "study/lrnet_robust", "LR, 7x7, adversarial training", _LR, 22, {},
        "52.1", "LR-Net-26, Table 9", robust=True,
    ),
    StudyRow(
        "study/conv_robust", "convolution, 3x3, adversarial training", _CONV, 16, {},
        "44.9", "ResNet-26, Table 9", robust=True,
    ),
)  # fmt: skip

CLAIMS: tuple[Claim, ...] = (
    Claim("local relations beat convolutions", "study/lrnet_k7", "study/conv_k3", "better", 2.9),
    Claim("local beats full image", "study/lrnet_k7", "study/lrnet_full", "better", 7.3),
    Claim(
        "a prior network beats a prior table", "study/lrnet_k7", "study/lrnet_table", "better", 2.1
    ),
    Claim(
        "control: so it does where both start flat", "study/lrnet_flat", "study/lrnet_table",
        "better", None,
    ),
    Claim("a prior table beats no prior", "study/lrnet_table", "study/lrnet_none", "better", 1.7),
    Claim("a prior network beats no prior", "study/lrnet_k7", "study/lrnet_none", "better", 3.8),
    Claim("softmax beats none", "study/lrnet_k7", "study/lrnet_no_softmax", "better", 0.9),
    Claim("7x7 beats 3x3 for local relations", "study/lrnet_k7", "study/lrnet_k3", "better", 2.1),
    Claim(
        "7x7 is no better than 3x3 for convolutions", "study/conv_k7", "study/conv_k3",
        "no better", -0.5,
    ),
    Claim("m = 8 equals m = 1", "study/lrnet_k7", "study/lrnet_m1", "equal", 0.4),
    Claim(
        "adversarially trained, LR beats convolution without attack",
        "study/lrnet_robust", "study/conv_robust", "better", 7.2,
    ),
    Claim(
        "adversarially trained, LR beats convolution under the targeted attack",
        "study/lrnet_robust", "study/conv_robust", "better", 6.3, "targeted",
    ),
    Claim(
        "adversarially trained, LR beats convolution under the untargeted attack",
        "study/lrnet_robust", "study/conv_robust", "better", 12.4, "untargeted",
    ),
)  # fmt: skip

_SKELETON = {
    "depths": (1, 1),
    "stem_strides": 2,
    "stem_channels": 16,
    "stage_channels": 48,
    "channels_per_group": 8,
}


def _config(row: StudyRow) -> Config:
    epochs = ROBUST_EPOCHS if row.robust else EPOCHS
    return recipe(
        row.recipe,
        row.network,
        model={**_SKELETON, "width": row.width, **row.fields},
        data=Data(name="fashion_mnist_subset", flip=True),
        optim=Optim(
            learning_rate=0.06, nesterov=True, weight_decay=5e-4, warmup_epochs=1.0, decay="cosine"
        ),
        train=Train(
            batch_size=64, eval_batch_size=500, epochs=epochs, eval_every_epochs=0.0, log_every=50,
            checkpoint_every=1000,
        ),
        attack=Attack(steps=3, step_size=8.0) if row.robust else Attack(),
    )  # fmt: skip


CONFIGS: tuple[Config, ...] = tuple(map(_config, STUDY_ROWS))
