"""The page of a GPU: tables and pictures of the results that `experiments.gpu_report` keeps."""

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.bench.compiled_step import MOST_MEMORY, MOST_TIME
from experiments.bench.gpu_bounds import bound_seconds
from experiments.bench.gpu_model import measured_seconds
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
    files, shown = [kept.path, path], no_picture(kept)
    if shown is None and _has_times(kept.results):
        draw_times(kept.results).savefig(picture, dpi=DPI)
        files.append(picture)
        shown = f"![Times of the layers beside their bounds]({picture.name})"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(kept.results, shown))
    return files


def no_picture(kept: KeptResults) -> str | None:
    """Why the times are not drawn, and how to draw them; None if they are, or there are none."""
    if not _has_times(kept.results) or _has_matplotlib():
        return None
    return (
        "The times are not drawn, because matplotlib is not installed. Elsewhere this draws them: "
        f"python -m experiments.gpu_report --draw={kept.path}"
    )


def _has_matplotlib() -> bool:
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # a module without a description, as where an import is forbidden
        return False


def page(results: Results, picture: str | None) -> str:
    """The page as Markdown.

    Args:
      results: by part and key.
      picture: the line below the times of the layers, with their picture, if there is one.
    """
    machine = results.get("environment", {}).get("machine", {})
    title = "A trial without a GPU" if machine.get("no GPU") else machine.get("device", "GPU")
    lines = [f"# {title}", ""]
    lines += [
        "`python -m experiments.gpu_report` wrote this page. Figures are medians of runs in turn.",
        "",
    ]
    if machine.get("no GPU"):
        lines += [f"**There was no GPU: {machine['no GPU']}. The times say nothing.**", ""]
    sections: dict[str, Callable[[Mapping[str, Result]], str]] = {
        "environment": _environment,
        "correctness": _correctness,
        "sanitizer": _summaries,
        "tune": _tiles,
        "kernels": _kernels,
        "steps": _steps,
        "model": functools.partial(_model_against_clock, results),
        "quickstart": _summaries,
    }
    for name, section in sections.items():
        if results.get(name):
            lines += [f"## {name.capitalize()}", "", section(results[name]), ""]
            if name == "kernels" and picture:
                lines += [picture, ""]
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


def _model_against_clock(results: Results, units: Mapping[str, Result]) -> str:
    """The modelled step and its planned memory beside what was measured, and layers likewise."""
    measured = {name: unit for name, unit in results.get("steps", {}).items() if "batch" in unit}
    modelled = {name: unit for name, unit in units.items() if "modelled" in unit}
    rows = [
        _beside(f"step of {name}", unit["modelled"], measured_seconds(measured[name]))
        for name, unit in modelled.items()
        if name in measured
    ]
    layers = results.get("kernels", {})
    for name, unit in layers.items():
        for direction, times in unit.get("passes", {}).items():
            bound = bound_seconds(unit["work"][direction], layers["hardware"])
            kernel, time = next(iter(times.items()))
            title = f"{name}, {TITLES[direction]}, {kernel}"
            rows.append(_beside(title, bound, time["median"]))
    skipped = [unit["summary"] for unit in units.values() if "skipped" in unit][:1]
    columns = ("", "MODEL of the step, or bound of the layer, ms", "measured, ms", "ratio")
    return "\n\n".join(
        [*skipped, Table(columns, tuple(rows)).markdown(), *_pairs(modelled, measured)]
    )


def _beside(title: str, modelled: float, measured: float) -> tuple[str, ...]:
    return title, f"{1e3 * modelled:.3f}", f"{1e3 * measured:.3f}", f"{measured / modelled:.2f}"


def _pairs(modelled: Mapping[str, Result], measured: Mapping[str, Result]) -> list[str]:
    """A table of each LR-Net in units of its ResNet, by the model and as measured."""
    rows = []
    for name, unit in measured.items():
        network = name.partition(":")[0]
        beside = f"{network.replace('lrnet', 'resnet')}:none"
        if not network.startswith("lrnet") or beside not in measured:
            continue
        cells = [f"{measured_seconds(unit) / measured_seconds(measured[beside]):.2f}"]
        peaks = unit["peak_bytes"], measured[beside]["peak_bytes"]
        cells.append(f"{peaks[0] / peaks[1]:.2f}" if all(peaks) else "-")
        for key in ("modelled", "temp_bytes"):
            known = name in modelled and beside in modelled
            ratio = modelled[name][key] / modelled[beside][key] if known else None
            cells.append(f"{ratio:.2f}" if ratio else "-")
        rows.append((f"{name} : {beside}", *cells))
    if not rows:
        return []
    columns = ("", "step, measured", "peak memory, measured", "step, MODEL", "temporary, planned")
    held = (
        f"Without a GPU, the tests hold LR-Net-50 to {MOST_TIME[50]} times the modelled step and "
        f"{MOST_MEMORY} times the planned temporary memory of ResNet-50."
    )
    return [Table(columns, tuple(rows)).markdown(), held]


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
