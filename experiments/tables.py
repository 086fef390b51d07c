"""Prints the networks of the paper with their parameters and computation, as a Markdown table.

    python -m experiments.tables [--ablations]

Our numbers are counted by `lrnet_jax.complexity`; those marked "paper" are quoted from it. The
paper's FLOPs of the bottleneck networks are our multiply-adds (MACs) plus a constant 0.22 to
0.25 G that its text does not explain, and that of ResNet-18 fits no count.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import lrnet_jax
from lrnet_jax import complexity

# Parameters in millions and FLOPs in billions as printed in Tables 3, 7 and 8 of the paper.
PAPER = {
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

# The paper's ablations keep the computation equal by the width: field, value and width of each.
ABLATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "lrnet26": (
        *({"kernel_size": k, "width": w} for k, w in ((3, 102), (5, 101), (7, 100), (9, 98))),
        {"scope": "full", "width": 96},
        {"prior": "table", "width": 100},
        {"prior": "none", "width": 100},
        *(
            {"query_key_dim": d, "width": w}
            for d, w in ((1, 100), (2, 96), (4, 88), (8, 78), (16, 66))
        ),
        *(
            {"channels_per_group": m, "width": w}
            for m, w in ((1, 79), (2, 89), (4, 96), (8, 100), (16, 102), (-1, 105))
        ),
    ),
    "resnet26": tuple(
        {"kernel_size": k, "width": w} for k, w in ((3, 64), (5, 44), (7, 33), (9, 27))
    ),
    "resnet26_dw": tuple(
        {"kernel_size": k, "width": w} for k, w in ((3, 126), (5, 125), (7, 122), (9, 119))
    ),
}


def networks() -> str:
    """The networks of the zoo beside the paper's numbers."""
    rows = []
    for name in [*PAPER, "resnet26_dw"]:
        count = complexity.count(lrnet_jax.get_variant(name))
        rows.append([name, *_numbers(count), *PAPER.get(name, ("", ""))])
    columns = ["network", "parameters (M)", "MACs (G)", "paper: parameters (M)"]
    return _markdown([*columns, "paper: FLOPs (G)"], rows)


def ablations() -> str:
    """The widths that the ablations use, and that they are equal in computation."""
    rows = []
    for name, changes in ABLATIONS.items():
        for fields in changes:
            variant = dataclasses.replace(lrnet_jax.get_variant(name), **fields)
            text = ", ".join(f"{field} {value}" for field, value in fields.items())
            rows.append([name, text, *_numbers(complexity.count(variant))])
    return _markdown(["network", "fields", "parameters (M)", "MACs (G)"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ablations", action="store_true", help="the ablations' widths too")
    options = parser.parse_args(arguments)
    print(networks())
    if options.ablations:
        print()
        print(ablations())


def _numbers(count: complexity.Count) -> tuple[str, str]:
    return f"{count.parameters / 1e6:.3f}", f"{count.macs / 1e9:.3f}"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
