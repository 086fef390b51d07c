"""The comparison of the kernels with the reference: its table, its exit code, its errors."""

import pytest

from experiments import compare_kernels
from experiments.bench import kernel_comparison
from experiments.cli import command_line
from experiments.config import ConfigError
from pallas_kernels.spec import Inputs
from pallas_kernels.tools.comparison import reference_results

SMALL = ["--shapes=odd/single_pixel", "--dtypes=float32"]


def compare(*arguments):
    """Runs the command; returns its exit code."""
    return compare_kernels.main(command_line.parse(arguments, compare_kernels.define_flags))


def reference(shape, interpret, *arrays):
    return reference_results(shape, Inputs(*arrays[:4]), arrays[4])


def test_interpreted_kernels_stay_within_their_budgets(capsys):
    assert compare(*SMALL) == 0
    text = capsys.readouterr().out
    assert "INTERPRET MODE: JAX computes on cpu here" in text
    for result in ("out", "d_query", "d_key", "d_value", "d_prior"):
        assert f"odd/single_pixel                   float32  {result:8}" in text
    assert "float32: 16 roundings of float32 of the terms that cancel" in text
    assert text.endswith("0 results beyond their budget\n")


def test_an_error_beyond_its_budget_is_the_exit_code(monkeypatch, capsys):
    def wrong(*arguments):
        out, d_query, *others = reference(*arguments)
        return out, d_query + 1e-3, *others

    monkeypatch.setattr(kernel_comparison, "run_kernels", wrong)
    assert compare(*SMALL) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "BEYOND" in line]
    assert "d_query" in line


def test_networks_are_cut_and_compared_once(monkeypatch, capsys):
    monkeypatch.setattr(kernel_comparison, "run_kernels", reference)
    assert compare("--shapes=lrnet18/res5,lrnet50/res5", "--dtypes=float32") == 0
    assert capsys.readouterr().out.count(" d_value ") == 1


def test_on_a_gpu_it_measures_too(monkeypatch, capsys):
    monkeypatch.setattr(compare_kernels, "unavailable", lambda: None)
    monkeypatch.setattr(kernel_comparison, "run_kernels", reference)
    measured = []

    def measure(shape, names, dtype, rounds):
        measured.append((shape.name, shape.batch, names, dtype))
        return []

    monkeypatch.setattr(compare_kernels, "measure", measure)
    assert compare(*SMALL, "--batch=2") == 0
    assert measured == [("odd/single_pixel", 1, ("reference", "xla", "pallas"), "float32")]
    assert "INTERPRET" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--shapes=lrnet27/*", r"--shapes=lrnet27/\* matches none of stem, lrnet18/res2"),
        ("--dtypes=float32,float8", "--dtypes has float8; use float32, float16, bfloat16"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(argument, message):
    with pytest.raises(ConfigError, match=message):
        compare(argument)


def test_kernels_in_triton_have_no_interpret_mode():
    with pytest.raises(ConfigError, match="--implementation=jax_triton cannot run here: JAX comp"):
        compare(*SMALL, "--implementation=jax_triton")


def test_an_implementation_is_compared_by_its_name():
    """Here with one that runs on this machine."""
    [shape] = kernel_comparison.choose_shapes(["odd/single_pixel"], 1, interpret=False)
    found = list(kernel_comparison.compare(shape, "float32", "xla", interpret=False))
    assert len(found) == 5
    assert all(error.ok for error in found)
