"""The page of a GPU: tables and pictures of the results that `experiments.gpu_report` keeps."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.bench.gpu_bounds import bound_seconds
from experiments.bench.kept_results import KeptResults, Result
from experiments.report.drawing import new_figure
from experiments.report.table import Table
from lrnet_jax.training.atomic import write_atomically

Results = Mapping[str, Mapping[str, Result]]
DPI = 200
TITLES = {"forward": "forward", "forward_backward": "forward and backward"}


def write(kept: KeptResults) -> list[pathlib.Path]:
    """Writes the page beside the results, and the picture of its times where matplotlib is there.

    Returns:
      The files.
    """
    path = kept.path.with_suffix(".md")
    picture = kept.path.with_suffix(".png")
    files = [kept.path, path]
    drawn = importlib.util.find_spec("matplotlib") is not None and _has_times(kept.results)
    if drawn:
        draw_times(kept.results).savefig(picture, dpi=DPI)
        files.append(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(kept.results, picture.name if drawn else None))
    return files


def page(results: Results, picture: str | None) -> str:
    """The page as Markdown.

    Args:
      results: by part and key.
      picture: name of the file of the times, if it was drawn.
    """
    machine = results.get("environment", {}).get("machine", {})
    lines = [f"# {machine.get('device', 'GPU')}", ""]
    lines += [
        "`python -m experiments.gpu_report` wrote this page. Figures are medians of runs in turn.",
        "",
    ]
    if machine.get("no GPU"):
        lines += [f"**There was no GPU: {machine['no GPU']}. The times say nothing.**", ""]
    sections = {
        "environment": _environment,
        "correctness": _correctness,
        "sanitizer": _summaries,
        "tune": _tiles,
        "kernels": _kernels,
        "steps": _steps,
        "quickstart": _summaries,
    }
    for name, section in sections.items():
        if results.get(name):
            lines += [f"## {name.capitalize()}", "", section(results[name]), ""]
            if name == "kernels" and picture:
                lines += [f"![Times of the layers beside their bounds]({picture})", ""]
            failed = {key: unit["error"] for key, unit in results[name].items() if "error" in unit}
            lines += [f"**{key} failed**: {error}\n" for key, error in failed.items()]
    return "\n".join(lines)


def _environment(units: Mapping[str, Result]) -> str:
    machine = units["machine"]
    if "error" in machine:
        return ""
    rows = [(name, str(version)) for name, version in machine["versions"].items()]
    rows += [("Python", machine["python"]), ("compute capability", machine["capability"])]
    rows += [(f"GPU {n}", ", ".join(gpu.values())) for n, gpu in enumerate(_texts(machine["GPUs"]))]
    rows += [
        (f"`{name}`", f"{'runs' if found['runs'] else 'does not run'}: {found['reason']}")
        for name, found in machine["implementations"].items()
    ]
    return Table(("", ""), tuple(rows)).markdown()


def _texts(rows: Any) -> list[dict[str, str]]:
    return [{key: str(value) for key, value in row.items()} for row in rows]


def _correctness(units: Mapping[str, Result]) -> str:
    """The worst result of each dtype and kernel, in units of its budget."""
    groups: dict[tuple[str, str], list[tuple[float, str, bool]]] = {}
    for key, unit in units.items():
        if "errors" in unit:
            shape, dtype, kernel = key.split(" ")
            worst, name = max(
                (error / budget if budget else float(error > 0), result)
                for result, (error, budget) in unit["errors"].items()
            )
            at = f"{name} of {shape}"
            groups.setdefault((kernel, dtype), []).append((worst, at, unit["repeated"]))
    rows = [
        (
            kernel, dtype, str(len(found)), f"{max(found)[0]:.2f} ({max(found)[1]})",
            "all" if all(repeated for _, _, repeated in found) else "NOT ALL",
        )
        for (kernel, dtype), found in groups.items()
    ]  # fmt: skip
    columns = ("kernels", "dtype", "shapes", "largest error / budget", "repeated to the bit")
    return Table(columns, tuple(rows)).markdown()


def _summaries(units: Mapping[str, Result]) -> str:
    return "\n".join(f"* {key}: {unit.get('summary', '')}" for key, unit in units.items())


def _tiles(units: Mapping[str, Result]) -> str:
    return "\n".join(f"* {line}" for unit in units.values() for line in unit.get("tiles", ()))


def _kernels(units: Mapping[str, Result]) -> str:
    hardware = units.get("hardware", {})
    if "bytes_per_second" not in hardware:
        return ""
    lines = [
        f"A copy of a large array moves {hardware['bytes_per_second'] / 1e9:.0f} GB/s, and a chain "
        f"of float32 multiply-adds runs {hardware['multiply_adds_per_second'] / 1e12:.2f} T/s. The "
        "bound is the larger of the times that a layer's arrays and arithmetic take at these rates."
    ]
    for direction, title in TITLES.items():
        lines += ["", f"### {title.capitalize()}", "", _times(units, direction, hardware)]
    return "\n".join(lines)


def _times(units: Mapping[str, Result], direction: str, hardware: Result) -> str:
    timed = {key: unit for key, unit in units.items() if "passes" in unit}
    names = list(dict.fromkeys(n for unit in timed.values() for n in unit["passes"][direction]))
    rows = []
    for key, unit in timed.items():
        bound = bound_seconds(unit["work"][direction], hardware)
        cells = [f"{key}, {unit['dtype']}, batch {unit['batch']}", f"{1e3 * bound:.3f}"]
        for name in names:
            time = unit["passes"][direction].get(name)
            cells.append(
                f"{1e3 * time['median']:.3f} ({time['median'] / bound:.1f} bounds)" if time else "-"
            )
        rows.append(tuple(cells))
    return Table(("layer", "bound, ms", *(f"{name}, ms" for name in names)), tuple(rows)).markdown()


def _steps(units: Mapping[str, Result]) -> str:
    rows = [
        (
            name, str(unit["batch"]), unit["dtype"], f"{unit['images_per_second']:.0f}",
            f"{unit['peak_bytes'] / 2**30:.2f}" if unit["peak_bytes"] else "-",
            f"{unit['first_step_cold']:.1f}", f"{unit['first_step_warm']:.1f}",
        )
        for name, unit in units.items() if "batch" in unit
    ]  # fmt: skip
    columns = (
        "network", "batch", "dtype", "images / s", "peak memory, GiB", "first step, s",
        "first step again, s",
    )  # fmt: skip
    return Table(columns, tuple(rows)).markdown()


def _has_times(results: Results) -> bool:
    units = results.get("kernels", {})
    return "bytes_per_second" in units.get("hardware", {}) and any(
        "passes" in u for u in units.values()
    )


def draw_times(results: Results) -> Any:
    """Times of the layers, forward and backward together, in units of their bounds."""
    units = results["kernels"]
    hardware = units["hardware"]
    timed = {key: unit for key, unit in units.items() if "passes" in unit}
    direction = "forward_backward"
    names = list(dict.fromkeys(n for unit in timed.values() for n in unit["passes"][direction]))
    figure = new_figure(0.6 + 0.16 * len(timed) * len(names))
    axis = figure.subplots()
    for n, name in enumerate(names):
        places, values = [], []
        for row, unit in enumerate(timed.values()):
            if name in unit["passes"][direction]:
                bound = bound_seconds(unit["work"][direction], hardware)
                places.append(row + 0.8 * (n - (len(names) - 1) / 2) / len(names))
                values.append(unit["passes"][direction][name]["median"] / bound)
        axis.barh(places, values, height=0.8 / len(names), label=name)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(timed)), list(timed), fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("forward and backward, in units of the layer's bound", fontsize=8)
    axis.legend(fontsize=7)
    return figure
