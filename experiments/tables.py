"""The paper's tables: its numbers beside ours, or "not run".

    python -m experiments.tables                              # all, as Markdown
    python -m experiments.tables --table=3 --table=8 --runs=runs
    python -m experiments.tables --out=tables                 # table3.md, table3.csv, ...

Ours come from finished runs below --runs: one that computed what a row's recipe does, under any
name, or one of that name; what it had otherwise stands in the last column. Numbers under attack
are those that `experiments.evaluate --attack` kept there, of both budgets the lower.

Parameters and multiply-adds (MACs, at 224 x 224) are counted by `lrnet_jax.complexity`. The paper's
FLOPs of the bottleneck networks are these MACs plus a constant 0.22 to 0.25 G that its text does
not explain, and that of ResNet-18 fits no count.
"""

import argparse
import csv
import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence

import lrnet_jax
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.recipes.paper_tables import PAPER_SIZES, ROBUST_ROWS, ROWS
from experiments.report.finished_runs import Run, find_runs, run_of
from lrnet_jax import Variant, complexity
from lrnet_jax.plan import LayerPlan, plan_blocks, plan_stem

NOT_RUN = "not run"

TITLES = {
    "networks": "Networks",
    "2": "Table 2: architecture",
    "3": "Table 3: aggregation and its scope",
    "4": "Table 4: dimension of queries and keys",
    "5": "Table 5: channels per group",
    "6": "Table 6: similarity and normalisation",
    "7": "Table 7: non-local networks",
    "8": "Table 8: depth",
    "9": "Table 9: top-1 of adversarially trained networks",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As GitHub renders it."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def csv(self) -> str:
        """As spreadsheets read it."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def networks(runs: Sequence[Run]) -> Table:
    """The sizes of the zoo's networks beside the paper's; needs no runs."""
    rows = [
        (name, *_sizes(lrnet_jax.get_variant(name)), *PAPER_SIZES.get(name, ("", "")))
        for name in (*PAPER_SIZES, "resnet26_dw")
    ]
    sizes = ("parameters (M)", "MACs (G)", "paper: parameters (M)", "paper: FLOPs (G)")
    return Table(("network", *sizes), tuple(rows))


def architecture(runs: Sequence[Run]) -> Table:
    """ResNet-50 and LR-Net-50 stage by stage, as they are built; needs no runs."""
    names = ("resnet50", "lrnet50")
    parts = [_stages(lrnet_jax.get_variant(name)) for name in names]
    rows = [(*left, right[-1]) for left, right in zip(*parts, strict=True)]
    ours = [_sizes(lrnet_jax.get_variant(name)) for name in names]
    for index, (what, unit) in enumerate((("parameters", "M"), ("MACs", "G"))):
        rows.append((f"{what} ({unit})", "", *(size[index] for size in ours)))
        paper = "FLOPs" if what == "MACs" else what
        rows.append((f"paper: {paper} ({unit})", "", *(PAPER_SIZES[n][index] for n in names)))
    return Table(("stage", "output", "ResNet-50", "LR-Net-50"), tuple(rows))


def scores(number: int, runs: Sequence[Run]) -> Table:
    """Tables 3 to 8: top-1 and top-5, beside the paper's."""
    chosen = [row for row in ROWS if row.table == number]
    top5, sized = chosen[0].top5 is not None, number > 6
    rows = []
    for row in chosen:
        config = RECIPES[row.recipe]
        cells = [row.label, row.recipe, str(config.model.width), *_sizes(config.model)]
        cells += PAPER_SIZES[row.network] if sized else ()
        cells += [row.top1, *([row.top5 or ""] if top5 else [])]
        found = run_of(config, runs)
        if found is None:
            cells += [NOT_RUN, *([""] if top5 else []), ""]
        else:
            run, changed = found
            cells += [_percent(run.result["top1"])]
            cells += [_percent(run.result["top5"])] if top5 else []
            cells += [_remark(run, changed)]
        rows.append(tuple(cells))
    columns = ["system", "recipe", "width", "parameters (M)", "MACs (G)"]
    columns += ["paper: parameters (M)", "paper: FLOPs (G)"] if sized else []
    columns += ["paper: top-1", "paper: top-5"] if top5 else ["paper: top-1"]
    columns += ["top-1", "top-5", "run"] if top5 else ["top-1", "run"]
    return Table(tuple(columns), tuple(rows))


def robustness(runs: Sequence[Run]) -> Table:
    """Table 9: clean and under attack."""
    rows = []
    for row in ROBUST_ROWS:
        cells = [row.label, row.recipe, row.clean, row.targeted, row.untargeted, row.regular]
        remarks = []
        robust = run_of(RECIPES[row.recipe], runs)
        regular = run_of(RECIPES[row.regular_recipe], runs)
        if robust is None:
            cells += [NOT_RUN] * 3
        else:
            run, changed = robust
            remarks.append(_remark(run, changed))
            cells += [_percent(run.result["top1"])]
            for kind in ("targeted", "untargeted"):
                top1 = [
                    r["top1"] for r in run.attacked if r["kind"] == kind and r["epsilon"] == 16
                ]  # fmt: skip
                cells.append(_percent(min(top1)) if top1 else NOT_RUN)
        if regular is None:
            cells.append(NOT_RUN)
        else:
            remarks.append(_remark(*regular))
            cells.append(_percent(regular[0].result["top1"]))
        rows.append((*cells, "; ".join(remarks)))
    kinds = ("clean", "targeted", "untargeted", "regular training, clean")
    paper = tuple(f"paper: {kind}" for kind in kinds)
    return Table(("system", "recipe", *paper, *kinds, "run"), tuple(rows))


TABLES: dict[str, Callable[[Sequence[Run]], Table]] = {
    "networks": networks,
    "2": architecture,
    **{str(number): functools.partial(scores, number) for number in range(3, 9)},
    "9": robustness,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints tables, and writes them where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--table", action="append", choices=list(TABLES), help="all by default")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for Markdown and CSV files")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.runs)
    except ConfigError as error:
        parser.error(f"{error}; move that run out of --runs={options.runs}")
    for name in options.table or TABLES:
        table = TABLES[name](runs)
        print(f"## {TITLES[name]}\n\n{table.markdown()}\n")
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            stem = name if name == "networks" else f"table{name}"
            (options.out / f"{stem}.md").write_text(f"{table.markdown()}\n")
            (options.out / f"{stem}.csv").write_text(table.csv())


def _stages(variant: Variant) -> list[tuple[str, str, str]]:
    """(stage, output size, layers) from the stem to the head, at 224."""
    sizes = {layer.name: layer.output[0] for layer in complexity.network_cost(variant).layers}
    names = {"channel_transformation": "1x1", "convolution": "conv", "local_relation": "LR"}

    def describe(layer: LayerPlan) -> str:
        kind = names[layer.kind]
        k = layer.kernel_size
        text = kind if kind == "1x1" else f"{k}x{k} {kind}"
        groups = f", m={layer.channels_per_group}" if kind == "LR" else ""
        return f"{text}, {layer.out_features}{groups}"

    stem = plan_stem(variant)
    size = sizes[f"stem.{len(stem) - 1}.layer"]
    text = "; ".join(map(describe, stem)) + f", stride {stem[-1].strides}"
    rows = [("res1", f"{size} x {size}", text)]
    for stage, depth in enumerate(variant.depths):
        plan = next(p for p in plan_blocks(variant) if (p.stage, p.index) == (stage, depth - 1))
        size = sizes[f"stages.{stage}.{depth - 1}.branch.2.layer"]
        pool = "3x3 max pool, stride 2; " if stage == 0 and variant.stem_pool else ""
        text = f"{pool}[{'; '.join(map(describe, plan.branch))}] x {depth}"
        rows.append((f"res{stage + 2}", f"{size} x {size}", text))
    return [*rows, ("head", "1 x 1", "global average pool; 1000-d fc; softmax")]


def _sizes(variant: Variant) -> tuple[str, str]:
    cost = complexity.network_cost(variant)
    return f"{cost.parameters / 1e6:.3f}", f"{cost.macs / 1e9:.3f}"


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _remark(run: Run, changed: Sequence[str]) -> str:
    return f"{run.workdir} ({', '.join(changed)})" if changed else str(run.workdir)


if __name__ == "__main__":
    main()
