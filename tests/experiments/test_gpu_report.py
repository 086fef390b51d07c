"""The report of a GPU: its page, what counts as wrong, and a trial without a GPU."""

import json
import subprocess
import sys

import pytest

from experiments import gpu_report
from experiments.bench import gpu_model
from experiments.bench.gpu_parts import PARTS
from experiments.cli import command_line
from experiments.config import ConfigError
from pallas_kernels.tools.cross_compilation import GPUS, missing

PASSES = ("forward", "forward_backward")
TIME = {"least": 1e-3, "lower": 1e-3, "median": 2e-3, "upper": 3e-3, "temp_bytes": 0}
RESULTS = {
    "environment": {
        "machine": {
            "device": "NVIDIA H100", "no GPU": None, "GPUs": [{"name": "H100", "driver": "580"}],
            "capability": "9.0", "python": "3.12.1", "cores": 16, "versions": {"jax": "0.12.0"},
            "implementations": {"pallas": {"runs": True, "reason": "fused kernels"}},
        }
    },
    "correctness": {
        "lrnet50/res2 float32 pallas": {
            "errors": {"out": [1e-7, 1e-6], "d_key": [5e-7, 1e-6]}, "beyond": [], "repeated": True,
        }
    },
    "kernels": {
        "hardware": {"bytes_per_second": 1e12, "multiply_adds_per_second": 1e13},
        "lrnet50/res2": {
            "dtype": "bfloat16", "batch": 128,
            "work": {direction: {"bytes": 1e9, "multiply_adds": 1e9} for direction in PASSES},
            "passes": {direction: {"pallas": TIME, "xla": TIME} for direction in PASSES},
        },
    },
    "steps": {
        "resnet50:none": {
            "batch": 128, "dtype": "bfloat16", "images_per_second": 3200.0,
            "peak_bytes": 2**33, "first_step_cold": 30.0, "first_step_warm": 3.0,
        },
        "lrnet50:blocks": {
            "batch": 128, "dtype": "bfloat16", "images_per_second": 2000.0,
            "peak_bytes": 2**33 * 1.25, "first_step_cold": 90.0, "first_step_warm": 9.0,
        },
    },
    "model": {
        "resnet50:none": {"modelled": 0.02, "temp_bytes": 2**32},
        "lrnet50:blocks": {"modelled": 0.032, "temp_bytes": 1.1 * 2**32},
    },
}  # fmt: skip


def run(arguments):
    return gpu_report.main(command_line.parse(arguments, gpu_report.define_flags))


def written(tmp_path, results):
    path = tmp_path / "h100.json"
    path.write_text(json.dumps(results))
    done = run([f"--draw={path}"])
    return done, path.with_suffix(".md").read_text()


def test_the_page(tmp_path):
    code, page = written(tmp_path, RESULTS)
    assert code == 0
    assert "# NVIDIA H100" in page
    assert "| pallas | float32 | 1 | 0.50 (d_key of lrnet50/res2) | all |" in page
    # 1e9 bytes at 1e12 a second
    assert "| lrnet50/res2, bfloat16, batch 128 | 1.000 | 2.000 (2.0 bounds) |" in page
    assert "| lrnet50:blocks | 128 | bfloat16 | 2000 | 10.00 | 90.0 | 9.0 |" in page
    # 128 images at 2000 a second take 64 ms.
    assert "| step of lrnet50:blocks | 32.000 | 64.000 | 2.00 |" in page
    assert "| lrnet50/res2, forward, pallas | 1.000 | 2.000 | 2.00 |" in page
    assert "| lrnet50:blocks : resnet50:none | 1.60 | 1.25 | 1.60 | 1.10 |" in page
    assert "![Times of the layers beside their bounds](h100.png)" in page
    assert (tmp_path / "h100.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("part", "unit"),
    [
        ("correctness", {"errors": {"out": [2.0, 1.0]}, "beyond": ["out"], "repeated": True}),
        ("correctness", {"errors": {"out": [0.0, 1.0]}, "beyond": [], "repeated": False}),
        ("steps", {"error": "RuntimeError: out of memory"}),
    ],
)
def test_what_is_wrong_gives_exit_code_1(tmp_path, part, unit):
    code, page = written(tmp_path, {**RESULTS, part: {"stem float32 pallas": unit}})
    assert code == 1
    assert ("failed" in page) == ("error" in unit)


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match="--parts has colours; use environment, correctness"):
        run(["--parts=colours"])


def test_a_gpu_without_a_data_sheet_is_not_modelled(tmp_path):
    found = gpu_model.model_network("lrnet50:blocks", 128, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert found == {"summary": "not modelled: no data sheet of this GPU", "skipped": True}
    _, page = written(tmp_path, {"model": {"lrnet50:blocks": found}})
    assert "not modelled: no data sheet of this GPU" in page


@pytest.mark.skipif(missing(()) is not None, reason=str(missing(())))
def test_the_model_of_a_step():
    found = gpu_model.model_network("lrnet_small:blocks", 2, GPUS["h200"].name)
    assert found["modelled"] == pytest.approx(sum(found["kinds"].values()) / 1e3)
    assert found["temp_bytes"] > 2**20


def test_without_matplotlib_the_page_says_how_to_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, page = written(tmp_path, RESULTS)
    line = "python -m experiments.gpu_report --draw="
    assert code == 0
    assert "not drawn, because matplotlib is not installed" in page
    assert line in page
    assert "![" not in page
    assert not (tmp_path / "h100.png").exists()


def test_it_needs_few_packages(tmp_path):
    """It runs on a bare CUDA image with jax, flax, optax, numpy and orbax."""
    program = """
import sys
absent = ("PIL", "grain", "tensorflow_datasets", "tensorboardX", "tqdm", "scipy.stats",
          "google_crc32c", "matplotlib", "safetensors", "array_record")
sys.modules.update(dict.fromkeys(absent))
from experiments import gpu_report
from experiments.cli import command_line
from experiments.bench import gpu_steps
arguments = ["--parts=environment,model", f"--out={sys.argv[1]}"]
sys.exit(gpu_report.main(command_line.parse(arguments, gpu_report.define_flags)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_trial_without_a_gpu(tmp_path):
    assert run([f"--out={tmp_path}"]) == 0
    results = json.loads((tmp_path / "no-gpu.json").read_text())
    assert set(results) == set(PARTS) - {"sanitizer", "tune"}
    page = (tmp_path / "no-gpu.md").read_text()
    assert page.startswith("# A trial without a GPU\n")
    assert "**There was no GPU" in page
