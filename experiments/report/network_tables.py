"""The tables of the paper that need no runs: sizes of the networks, and Table 2."""

from collections.abc import Iterable

import lrnet_jax
from experiments.recipes.paper_tables import PAPER_SIZES
from experiments.report.table import Table
from lrnet_jax import Variant, complexity
from lrnet_jax.plan import LayerPlan, plan_blocks, plan_stem

_SYSTEMS = {"resnet50": "ResNet-50", "lrnet50": "LR-Net-50"}
_KINDS = {"channel_transformation": "1x1", "convolution": "conv", "local_relation": "LR"}


def network_sizes() -> Table:
    """The sizes of the zoo's networks beside the paper's."""
    rows = [
        (name, *model_size(lrnet_jax.get_variant(name)), *PAPER_SIZES.get(name, ("", "")))
        for name in (*PAPER_SIZES, "resnet26_dw")
    ]
    sizes = ("parameters (M)", "MACs (G)", "paper: parameters (M)", "paper: FLOPs (G)")
    return Table(("network", *sizes), tuple(rows))


def architecture() -> Table:
    """Table 2: ResNet-50 and LR-Net-50 stage by stage, as they are built."""
    variants = [lrnet_jax.get_variant(name) for name in _SYSTEMS]
    rows = [(*left, right[-1]) for left, right in zip(*map(_stage_rows, variants), strict=True)]
    ours = [model_size(variant) for variant in variants]
    paper = [PAPER_SIZES[name] for name in _SYSTEMS]
    quantities = (("parameters (M)", "parameters (M)"), ("MACs (G)", "FLOPs (G)"))
    for index, (ours_in, papers_in) in enumerate(quantities):
        rows.append((ours_in, "", *(size[index] for size in ours)))
        rows.append((f"paper: {papers_in}", "", *(size[index] for size in paper)))
    return Table(("stage", "output", *_SYSTEMS.values()), tuple(rows))


def model_size(variant: Variant) -> tuple[str, str]:
    """Parameters in millions and multiply-adds in billions at 224 x 224."""
    cost = complexity.network_cost(variant)
    return f"{cost.parameters / 1e6:.3f}", f"{cost.macs / 1e9:.3f}"


def _stage_rows(variant: Variant) -> list[tuple[str, str, str]]:
    """(stage, output size, layers) from the stem to the head, at 224 x 224."""
    sizes = {layer.name: layer.output[0] for layer in complexity.network_cost(variant).layers}
    stem = plan_stem(variant)
    size = sizes[f"stem.{len(stem) - 1}.layer"]
    rows = [("res1", f"{size} x {size}", f"{_layers(stem)}, stride {stem[-1].strides}")]
    for stage, depth in enumerate(variant.depths):
        last = depth - 1
        block = next(b for b in plan_blocks(variant) if (b.stage, b.index) == (stage, last))
        size = sizes[f"stages.{stage}.{last}.branch.2.layer"]
        pool = "3x3 max pool, stride 2; " if stage == 0 and variant.stem_pool else ""
        text = f"{pool}[{_layers(block.branch)}] x {depth}"
        rows.append((f"res{stage + 2}", f"{size} x {size}", text))
    return [*rows, ("head", "1 x 1", "global average pool; 1000-d fc; softmax")]


def _layers(layers: Iterable[LayerPlan]) -> str:
    return "; ".join(map(_layer, layers))


def _layer(layer: LayerPlan) -> str:
    kind, k = _KINDS[layer.kind], layer.kernel_size
    text = kind if kind == "1x1" else f"{k}x{k} {kind}"
    groups = f", m={layer.channels_per_group}" if kind == "LR" else ""
    return f"{text}, {layer.out_features}{groups}"
