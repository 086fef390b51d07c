"""Lists the commands: `python -m experiments`.

Docstrings are read without importing the modules, because an import of JAX takes seconds.
"""

import ast
import pathlib
import sys

from experiments.cli.stdout import print_lines

GROUPS = {
    "Train and use a network": (
        "train", "evaluate", "predict", "export", "import_weights", "replay",
    ),
    "Reproduce the paper": ("sweep", "tables", "figures", "study"),
    "Try out": ("photographs", "transfer"),
    "Prepare a machine": ("doctor", "prepare_imagenet"),
    "Measure": (
        "gpu_report", "benchmark_networks", "benchmark_torch", "benchmark_input", "compare_kernels",
        "measure_saving", "step_memory",
        "step_model",
    ),
}  # fmt: skip


def main() -> None:
    """Prints every command with the first line of its docstring."""
    if sys.argv[1:]:
        print(
            f"error: {sys.argv[1]!r} is not read; type python -m experiments.COMMAND",
            file=sys.stderr,
        )
        sys.exit(2)
    lines = ["python -m experiments.COMMAND --help"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:20s}{summary(name)}" for name in commands)]
    print_lines("\n".join(lines))


def summary(command: str) -> str:
    """The first line of a command's docstring."""
    source = pathlib.Path(__file__).with_name(f"{command}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
