"""The rules of the house that a linter cannot know, read from the source without importing it."""

import ast
import collections
import functools
import graphlib
import pathlib
import re
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("pallas_kernels", "lrnet_jax", "experiments")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 350


class Module(NamedTuple):
    """A Python file, parsed."""

    name: str  # as `import` names it
    path: pathlib.Path
    text: str
    tree: ast.Module

    def within(self, *packages):
        """Whether this is one of the packages or a module of one."""
        return is_within(self.name, *packages)


def is_within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@functools.cache
def modules():
    """Every module of the three packages by its name."""
    found = {}
    for path in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, path, text, ast.parse(text))
    return found


@functools.cache
def imports():
    """The names that each module imports, wherever in the file: our modules whole, others too."""
    found = collections.defaultdict(set)
    for module in modules().values():
        for node in ast.walk(module.tree):
            found[module.name].update(imported_by(node))
    return found


def imported_by(node):
    """The names that a statement imports, as `imports` gives them."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        names = (f"{node.module}.{alias.name}" for alias in node.names)
        return {name if name in modules() else node.module for name in names}
    return set()


def offenders(importers, *forbidden):
    """The imports "a -> b" of the importers that are within the forbidden packages."""
    return [
        f"{name} -> {imported}"
        for name in importers
        for imported in sorted(imports()[name])
        if is_within(imported, *forbidden)
    ]


def members(*packages, without=()):
    return [
        name
        for name, module in modules().items()
        if module.within(*packages) and not module.within(*without)
    ]


def test_imports_go_one_way():
    """Imports go experiments -> lrnet_jax -> pallas_kernels."""
    assert not offenders(members("pallas_kernels"), "lrnet_jax", "experiments")
    assert not offenders(members("lrnet_jax"), "experiments")


def test_the_operator_needs_jax_and_numpy_only():
    """The package could be lifted out; only its tools draw pictures, one folder calls Triton."""
    triton = "pallas_kernels.jax_triton"
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    foreign = {
        imported
        for name in members("pallas_kernels", without=["pallas_kernels.tools"])
        for imported in imports()[name]
        if imported.partition(".")[0] not in allowed
        and not (is_within(name, triton) and is_within(imported, "triton", "jax_triton"))
    }
    assert not foreign


def test_triton_is_imported_when_a_kernel_is_lowered():
    """`kernels` is written in it, and is itself imported by functions only."""
    kernels = "pallas_kernels.jax_triton.kernels"
    early = [
        f"{module.name} -> {imported}"
        for module in modules().values()
        if not module.within(kernels)
        for node in module.tree.body
        for imported in imported_by(node)
        if is_within(imported, "triton", "jax_triton", kernels)
    ]
    assert not early


def test_nothing_above_imports_the_tools():
    """The entry `python -m pallas_kernels.benchmark` is the one exception, and only a doorway."""
    entry = "pallas_kernels.benchmark"
    above = members("pallas_kernels", "lrnet_jax", without=["pallas_kernels.tools", entry])
    assert not offenders(above, "pallas_kernels.tools", entry)


def test_only_experiments_reads_flags():
    """`data/loading.py` only marks the flags as parsed: grain's workers crash otherwise."""
    library = members("pallas_kernels", "lrnet_jax")
    assert offenders(library, "absl") == ["lrnet_jax.data.loading -> absl"]


def commands():
    """The files at the top level of `experiments`."""
    return [
        name
        for name, module in modules().items()
        if module.path.parent == ROOT / "experiments" and module.path.name != "__init__.py"
    ]


def test_no_part_imports_a_command():
    """What commands share is in the folders below `experiments`, which know no command."""
    assert not offenders(members("experiments", without=commands()), *commands())


def test_every_command_can_be_run():
    """The top level of `experiments` has what a user types, and nothing else."""
    assert not [
        name for name in commands() if 'if __name__ == "__main__":' not in modules()[name].text
    ]


def test_no_module_imports_itself_in_a_circle():
    graph = {name: {other for other in imports()[name] if other in modules()} for name in modules()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def functions():
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def reason_to_be_long(node):
    """The sentence of a docstring that explains why the function is long, or None."""
    return re.search(r"\bLong because \w", ast.get_docstring(node) or "")


def test_a_function_fits_a_screen():
    """A longer one gives its reason in its docstring, in a sentence "Long because ..."."""
    long = [
        f"{module.path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines"
        for module, node in functions()
        if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
        and not reason_to_be_long(node)
    ]
    assert not long


def test_no_function_excuses_itself_without_need():
    short = [
        f"{module.path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for module, node in functions()
        if node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES and reason_to_be_long(node)
    ]
    assert not short


def test_a_file_has_one_idea():
    long = [
        f"{module.path.relative_to(ROOT)} has {lines} lines"
        for module in modules().values()
        if (lines := module.text.count("\n")) > MAX_FILE_LINES
    ]
    assert not long


def test_no_room_for_leftovers():
    leftovers = {"utils", "util", "helpers", "misc", "common"}
    assert not [name for name in modules() if name.rpartition(".")[2] in leftovers]


def test_names_of_test_files_are_unique():
    """Folders of tests have no `__init__.py`, so pytest imports each file by its bare name."""
    names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, times in names.items() if times > 1]


def test_tests_mirror_the_tree():
    """Every folder of tests for a package is a folder of that package."""
    strays = [
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / "tests" / package).rglob("test_*.py")
        if not (ROOT / path.parent.relative_to(ROOT / "tests")).is_dir()
    ]
    assert not strays
