"""Tables 3 to 6 and 9 of the paper: a recipe for each row, and the numbers of every table.

    python -m experiments.train --config=table3/lrnet26_k9 --workdir=runs/table3/lrnet26_k9
    python -m experiments.sweep --recipes='table3/*'
    python -m experiments.tables --runs=runs

The networks are trained as in `imagenet.py`, which holds the recipes of Tables 7 and 8. The width
of each ablation keeps the computation of its family: 2.38 G multiply-adds for LR-Net-26, 2.34 G for
ResNet-26 and ResNet-DW-26. Some rows are the same training: LR-Net-26 with 7 x 7 kernels is a row
of four tables. Each of them has a name of its own, and one finished run counts for all of them.

The networks of Table 9 are trained on adversarial images only. Each attack targets a random wrong
class within eps 16, in 16 steps of 1 from a random start, all in levels of 255. It uses the running
statistics of BatchNorm. The paper gives eps and the number of steps. The other settings are those
of the work that it cites, so they are likely but not certain.

None of these recipes has been run here. `PAPER_SIZES` and the scores of the rows are quoted from
the paper.
"""

import dataclasses
from typing import Any

from experiments.config import Attack, Config, recipe
from experiments.recipes.imagenet import gpu_model


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of Tables 3 to 8.

    Attributes:
      table: number of the table.
      label: name of the system in the paper.
      recipe: name of the recipe that trains it.
      network: name of the network in the zoo.
      fields: fields of the variant that the row changes, with their values.
      top1: the paper's accuracy in percent, as printed.
      top5: likewise; None where the paper gives none.
    """

    table: int
    label: str
    recipe: str
    network: str
    fields: dict[str, Any]
    top1: str
    top5: str | None = None


@dataclasses.dataclass(frozen=True)
class RobustRow:
    """A row of Table 9: the paper's top-1 of an adversarially trained network, in percent.

    Attributes:
      label: name of the system.
      recipe: name of the recipe of adversarial training.
      regular_recipe: name of the recipe that trains the same network without attack.
      clean: top-1 after adversarial training, without attack.
      targeted: top-1 after adversarial training, under the targeted attack.
      untargeted: top-1 after adversarial training, under the untargeted attack.
      regular: top-1 after regular training, without attack.
    """

    label: str
    recipe: str
    regular_recipe: str
    clean: str
    targeted: str
    untargeted: str
    regular: str


# Parameters in millions and FLOPs in billions, as printed in Tables 3, 7 and 8.
PAPER_SIZES = {
    "resnet18": ("11.7", "3.1"),
    "lrnet18": ("14.4", "2.5"),
    "resnet26": ("16.0", "2.6"),
    "lrnet26": ("14.7", "2.6"),
    "resnet50": ("25.5", "4.3"),
    "lrnet50": ("23.3", "4.3"),
    "resnet101": ("44.4", "8.0"),
    "lrnet101": ("42.0", "8.0"),
    "nl26": ("17.3", "2.6"),
    "resnet26_nl": ("38.2", "5.6"),
    "lrnet26_nl": ("37.1", "5.6"),
}

_KERNELS = (3, 5, 7, 9)
# Widths that keep the computation of LR-Net-26, one for each kernel size.
_WIDTHS = (102, 101, 100, 98)
_FULL = {"scope": "full", "width": 96}
# In the ablations LR-Net-26 with 7 x 7 kernels has width 100, in Table 7 it has 101.
_PLAIN = {"width": 100}


def _by_kernel(
    network: str, name: str, label: str, widths: tuple[int, ...], scores: str, **fields: Any
) -> list[PaperRow]:
    """Rows of Table 3 for kernels 3, 5, 7 and 9; `scores` is "top1/top5 top1/top5 ..."."""
    rows = []
    for k, width, score in zip(_KERNELS, widths, scores.split(), strict=True):
        changed = {"kernel_size": k, "width": width, **fields}
        top1, top5 = score.split("/")
        label_k = f"{label}, {k}x{k}"
        rows.append(PaperRow(3, label_k, f"table3/{name}_k{k}", network, changed, top1, top5))
    return rows


def _full_image(name: str, label: str, score: str, **fields: Any) -> PaperRow:
    top1, top5 = score.split("/")
    changed = {**_FULL, **fields}
    return PaperRow(
        3, f"{label}, full image", f"table3/{name}_full", "lrnet26", changed, top1, top5
    )  # fmt: skip


def _ablation(table: int, name: str, label: str, top1: str, **fields: Any) -> PaperRow:
    changed = {**_PLAIN, **fields}
    return PaperRow(
        table, f"LR-Net-26, {label}", f"table{table}/lrnet26_{name}", "lrnet26", changed, top1
    )  # fmt: skip


def _network(table: int, name: str, label: str, score: str) -> PaperRow:
    return PaperRow(table, label, name, name, {}, *score.split("/"))


_TABLE3 = (
    *_by_kernel("resnet26", "resnet26", "ResNet-26", (64, 44, 33, 27),
                "72.8/91.0 73.0/91.1 72.3/90.7 71.4/90.3"),
    *_by_kernel("resnet26_dw", "resnet26_dw", "ResNet-DW-26", (126, 125, 122, 119),
                "73.7/91.5 73.9/91.6 73.8/91.6 73.8/91.6"),
    *_by_kernel("lrnet26", "lrnet26_ng", "LR-Net-26 (NG)", _WIDTHS,
                "70.8/89.8 71.5/90.1 71.9/90.4 70.2/89.3", prior="none"),
    _full_image("lrnet26_ng", "LR-Net-26 (NG)", "50.7/74.7", prior="none"),
    *_by_kernel("lrnet26", "lrnet26_table", "LR-Net-26 (G*)", _WIDTHS,
                "73.2/91.1 74.1/91.7 73.6/91.2 72.3/90.7", prior="table"),
    _full_image("lrnet26_table", "LR-Net-26 (G*)", "60.3/82.1", prior="table", image_size=224),
    *_by_kernel("lrnet26", "lrnet26", "LR-Net-26", _WIDTHS,
                "73.6/91.6 74.9/92.3 75.7/92.6 75.4/92.4"),
    _full_image("lrnet26", "LR-Net-26", "68.4/88.0"),
)  # fmt: skip

_TABLE4 = tuple(
    _ablation(4, f"d{d}", f"query and key dimension {d}", top1, query_key_dim=d, width=width)
    for d, width, top1 in (
        (1, 100, "75.7"), (2, 96, "75.4"), (4, 88, "75.1"), (8, 78, "74.7"), (16, 66, "73.7"),
    )
)  # fmt: skip

_TABLE5 = (
    *(
        _ablation(5, f"m{m}", f"m = {m}", top1, channels_per_group=m, width=width)
        for m, width, top1 in (
            (1, 79, "75.3"), (2, 89, "75.5"), (4, 96, "75.5"), (8, 100, "75.7"), (16, 102, "75.3"),
        )
    ),
    _ablation(5, "mC", "m = C", "70.9", channels_per_group=-1, width=105),
)  # fmt: skip

_TABLE6 = (
    _ablation(6, "eqn3", "squared difference (Eqn. 3)", "75.7"),
    _ablation(
        6, "eqn4", "absolute difference (Eqn. 4)", "75.5", similarity="absolute_difference"
    ),
    _ablation(6, "eqn5", "multiplication (Eqn. 5)", "75.7", similarity="multiplication"),
    _ablation(6, "softmax", "softmax", "75.7"),
    _ablation(6, "no_softmax", "no softmax", "74.8", normalization="none"),
)  # fmt: skip

_TABLE7 = (
    _network(7, "resnet26", "ResNet-26", "72.8/91.0"),
    _network(7, "nl26", "NL-26", "47.7/72.1"),
    _network(7, "resnet26_nl", "ResNet-26-NL", "73.4/91.2"),
    _network(7, "lrnet26", "LR-Net-26", "75.7/92.6"),
    _network(7, "lrnet26_nl", "LR-Net-26-NL", "76.0/92.8"),
)

_TABLE8 = (
    _network(8, "resnet18", "ResNet-18", "70.1/89.4"),
    _network(8, "lrnet18", "LR-Net-18", "74.6/92.0"),
    _network(8, "resnet50", "ResNet-50", "76.3/93.2"),
    _network(8, "lrnet50", "LR-Net-50", "77.3/93.6"),
    _network(8, "resnet101", "ResNet-101", "77.9/94.0"),
    _network(8, "lrnet101", "LR-Net-101", "78.5/94.3"),
)

PAPER_ROWS: tuple[PaperRow, ...] = (*_TABLE3, *_TABLE4, *_TABLE5, *_TABLE6, *_TABLE7, *_TABLE8)

ROBUST_ROWS: tuple[RobustRow, ...] = (
    RobustRow("ResNet-26", "table9/resnet26", "resnet26", "44.9", "37.9", "14.4", "72.8"),
    RobustRow("ResNet-50", "table9/resnet50", "resnet50", "52.0", "43.0", "22.5", "76.3"),
    RobustRow("LR-Net-26", "table9/lrnet26", "lrnet26", "52.1", "44.2", "26.8", "75.7"),
)

CONFIGS: tuple[Config, ...] = (
    *(
        recipe(row.recipe, row.network, model=gpu_model(row.network, **row.fields))
        for row in PAPER_ROWS
        if row.table < 7
    ),
    *(
        recipe(
            row.recipe, row.regular_recipe, model=gpu_model(row.regular_recipe),
            attack=Attack(steps=16),
        )
        for row in ROBUST_ROWS
    ),
)  # fmt: skip
