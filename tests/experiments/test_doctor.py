"""The doctor: its report on this machine, on machines that are simulated, and on broken ones."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

from experiments import doctor
from experiments.cli.command_line import parse
from experiments.report import machine_checks, software_checks
from experiments.report.diagnosis import WIDTH, Finding, as_json, as_text, examine
from experiments.run import device_settings, installed
from lrnet_jax.training.workdir_lock import lock_workdir
from pallas_kernels import api, pallas
from pallas_kernels.jax_triton import stack
from pallas_kernels.tools import shapes


@pytest.fixture
def install_gpu(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` first into the path that answers both queries as one with a GPU does."""

    def install(gpu, program=""):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "nvidia-smi").write_text(
            f"#!/bin/sh\ncase $1 in *compute-apps*) echo '{program}';; *) echo '{gpu}';; esac\n"
        )
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


def findings(check):
    return {finding.subject: finding for finding in check}


def test_this_machine(tmp_path):
    """As it is typed: one screen, each line with a state, and every mend below its line."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor", f"--runs={tmp_path}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) < 45
    for line in lines[:-2]:
        assert re.match(r"(ok|attention|broken) {1,8}\w| {26}\S", line), line
    assert f"jax {jax.__version__}" in " ".join(done.stdout.split())
    built = api.IMPLEMENTATIONS["native"].unavailable() is None
    assert f"{'native' if built else api.DEFAULT} for " in done.stdout
    assert "not pallas: JAX computes on cpu here" in " ".join(done.stdout.split())


def test_json_has_what_the_screen_has(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # which the doctor sets itself
    options = [f"--runs={tmp_path}", f"--data_dir={tmp_path}"]
    doctor.main(parse(options, doctor.define_flags))
    screen = " ".join(capsys.readouterr().out.split())
    doctor.main(parse([*options, "--json"], doctor.define_flags))
    records = json.loads(capsys.readouterr().out)
    assert {record["subject"] for record in records} >= {
        "versions", "packages", "devices", "operator", "programs", "precision", "GPU memory",
        "environment", "data", "disk", "processors", "processes",
    }  # fmt: skip
    for record in records:
        if record["subject"] not in ("processors", "programs", "disk"):  # other programs run
            assert " ".join(record["text"].split()) in screen
            assert record["mend"] in screen
        assert bool(record["mend"]) == (record["state"] != "ok")


def test_a_gpu_beside_jax_for_the_cpu(install_gpu, monkeypatch):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    install_gpu("NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559 MiB")
    found = findings(software_checks.check_devices())
    assert found["devices"].state == "attention"
    assert "NVIDIA H100 80GB HBM3 is idle" in found["devices"].text
    assert found["devices"].mend == "make env ACCELERATOR=cuda13"
    assert "driver 580.65.06, JAX for cuda13" in found["NVIDIA driver"].text


def test_no_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = findings(software_checks.check_devices())
    assert list(found) == ["devices"]
    assert found["devices"].state == "ok"


def test_jax_without_its_device(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more")

    monkeypatch.setattr(jax, "devices", fail)
    (finding,) = software_checks.check_devices()
    assert finding.state == "broken"
    assert finding.text == "JAX finds no device: Unable to initialize backend 'cuda'"
    assert "make clean env ACCELERATOR=" in finding.mend


def test_an_implementation_that_should_run_and_does_not(monkeypatch):
    monkeypatch.setitem(api.PREFERRED, jax.default_backend(), ("pallas",))
    first, *_ = software_checks.check_operator()
    assert first.state == "attention"
    assert "need an NVIDIA GPU" in first.mend


NO_PALLAS = "JAX 0.13 has no Pallas-Triton (No module named 'triton'); use 'jax_triton' or 'xla'"
NO_TRITON = "the package jax-triton is not installed; pip install, or use 'xla'"
H100, B200 = ("NVIDIA H100 80GB HBM3", "9.0"), ("NVIDIA B200", "10.0")
V100 = ("Tesla V100-SXM2-16GB", "7.0")
OLD = "Tesla V100-SXM2-16GB has compute capability 7.0 and the kernels need 8.0 (Ampere); use 'xla'"


class TestOperatorOnAGpu:
    @pytest.fixture
    def lines(self, monkeypatch):
        """(state, text, mend) of the doctor's lines on a GPU, with or without the packages."""

        def examine(gpu, no_pallas=None, no_triton=None):
            kind, capability = gpu
            device = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
            monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
            monkeypatch.setattr(jax, "devices", lambda: [device])
            monkeypatch.setattr(pallas, "backend_gone", lambda: no_pallas)
            monkeypatch.setattr(stack, "missing", lambda: no_triton)
            found = list(software_checks.check_operator())
            names = ("native", "reference", "xla", "pallas_interpret")
            return [
                (line.state, line.text, line.mend)
                for line in found
                if not any(f"not {name}:" in line.text for name in names)
            ]

        return examine

    @pytest.mark.parametrize(
        ("gpu", "missing", "state", "runs", "mend", "others"),
        [
            (H100, {}, "ok", "pallas", "", ["jax_triton would run too: the default is pallas"]),
            (H100, {"no_triton": NO_TRITON}, "ok", "pallas", "", [f"not jax_triton: {NO_TRITON}"]),
            (H100, {"no_pallas": NO_PALLAS}, "ok", "jax_triton", "", [f"not pallas: {NO_PALLAS}"]),
            (
                H100, {"no_pallas": NO_PALLAS, "no_triton": NO_TRITON}, "attention", "xla",
                f"{NO_PALLAS}; {NO_TRITON}",
                [f"not pallas: {NO_PALLAS}", f"not jax_triton: {NO_TRITON}"],
            ),
            (B200, {}, "ok", "jax_triton", "", ["pallas would run too: the default is jax_triton"]),
            (
                B200, {"no_triton": NO_TRITON}, "attention", "pallas", NO_TRITON,
                [f"not jax_triton: {NO_TRITON}"],
            ),
            (V100, {}, "attention", "xla", OLD, [f"not pallas: {OLD}", f"not jax_triton: {OLD}"]),
        ],
    )  # fmt: skip
    def test_it_says_what_runs_and_why(self, lines, gpu, missing, state, runs, mend, others):
        first, *rest, stem = lines(gpu, **missing)
        assert first[0] == state
        assert re.fullmatch(rf"{runs} for (\d) of the \1 shapes of lrnet50 on cuda", first[1])
        assert first[2] == mend
        assert [line[1] for line in rest] == others
        gone = missing.get("no_pallas") or (OLD if gpu == V100 else None)
        how = f"plain JAX, since {gone}" if gone else "Pallas kernels"
        assert stem == ("ok", f"values, keys and queries of the stem: {how}", "")

    @pytest.mark.parametrize(("gpu", "name"), [(H100, "pallas"), (B200, "jax_triton")])
    def test_implementations_say_which_is_the_default(self, lines, gpu, name):
        lines(gpu)
        layer = shapes.SHAPES["lrnet50/res2"]
        found = api.implementations(*layer.abstract_inputs("float32"), **layer.options)
        defaults = {key for key, support in found.items() if "the default here" in support.reason}
        assert defaults == {name}
        assert ("jax_triton comes first" in found[name].reason) == (gpu == B200)


def test_versions_that_were_never_compiled_together(monkeypatch):
    monkeypatch.setattr(stack, "untested", lambda: "jax-triton 0.5.0 ... never compiled")
    found = findings(software_checks.check_versions())["packages"]
    assert (found.state, found.text) == ("attention", "jax-triton 0.5.0 ... never compiled")
    assert found.mend.startswith("make clean env ACCELERATOR=")


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        ({"grain": None}, "grain is not installed"),
        ({"jax-cuda13-plugin": "0.9.0"}, "jax-cuda13-plugin 0.9.0 is for another jaxlib than"),
        ({"jax-cuda12-plugin": "1", "jax-cuda13-plugin": "1", "jaxlib": "1"}, "both installed"),
    ],
)
def test_packages_that_do_not_fit(monkeypatch, versions, text):
    real = installed.versions()
    monkeypatch.setattr(installed, "versions", lambda: real | versions)
    broken = [found for found in software_checks.check_versions() if found.state == "broken"]
    assert any(text in found.text for found in broken)
    assert all(found.mend for found in broken)


def test_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(device_settings, "option", {
        "jax_compilation_cache_dir": str(tmp_path), "jax_enable_compilation_cache": True,
    }.get)  # fmt: skip
    (tmp_path / "program").write_bytes(b"1" * 2**20)
    found = findings(software_checks.check_programs())
    assert f"{tmp_path}: 1 files, 0.00 GiB of at most 4 GiB" in found["programs"].text
    assert "float32 in float32" in found["precision"].text
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "tf32 is faster" in findings(software_checks.check_programs())["precision"].text
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert findings(software_checks.check_programs())["precision"].state == "attention"


def test_memory_of_a_gpu():
    def text(*variables):
        (finding,) = software_checks.check_preallocation(*variables)
        return finding.text

    assert "takes 75 % of each GPU" in text(None, None)
    assert "takes 90 % of each GPU" in text("true", ".9")
    assert "as it needs it" in text("false", None)


def test_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "FREE_DISK", 1)
    assert findings(machine_checks.check_disks(tmp_path / "a" / "b"))["disk"].state == "ok"
    monkeypatch.setattr(machine_checks, "FREE_DISK", 2**70)
    assert findings(machine_checks.check_disks(tmp_path))["disk"].state == "attention"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert findings(machine_checks.check_disks(tmp_path))["disk"].state == "broken"


def test_data(tmp_path):
    found = list(machine_checks.check_data(str(tmp_path)))
    assert "10000 + 2000 images" in found[0].text
    assert found[-1].state == "attention"
    assert (
        f"-m experiments.prepare_imagenet --manual_dir=DIR_OF_THE_TARS --data_dir={tmp_path}"
        in (found[-1].mend)
    )
    (tmp_path / "flowers" / "1.0.0").mkdir(parents=True)
    (tmp_path / "flowers" / "1.0.0" / "dataset_info.json").write_text("{}")
    assert f"flowers in {tmp_path}" in [item.text for item in machine_checks.check_data(tmp_path)]


def test_processes(tmp_path, install_gpu):
    install_gpu("", program="4711, python, 60000 MiB")
    workdir = tmp_path / "seed0" / "lrnet"
    workdir.mkdir(parents=True)
    with lock_workdir(workdir):
        found = list(machine_checks.check_processes(tmp_path))
    assert found[0].text == f"a training runs in {workdir}"
    assert found[1].text == "on the GPUs: 4711, python, 60000 MiB"
    (done, *_) = machine_checks.check_processes(tmp_path)
    assert done.text == f"no training runs in {tmp_path}"


def test_a_check_that_fails_is_a_finding():
    def fail():
        yield Finding("memory", "ok", "much")
        raise OSError("no such\nthing")

    found = examine({"disk": fail, "data": lambda: [Finding("data", "ok", "here")]})
    assert [(item.subject, item.state) for item in found] == [
        ("memory", "ok"), ("disk", "broken"), ("data", "ok"),
    ]  # fmt: skip
    assert found[1].text == "OSError: no such"


def test_text_is_wrapped_and_commands_stay_whole():
    command = "python -m " + "x " * WIDTH
    text = as_text([Finding("a", "ok", "word " * 60), Finding("b", "broken", "bad", command)])
    assert all(len(line) <= WIDTH for line in text.splitlines() if command not in line)
    assert command in text
    assert text.endswith("\n1 broken")
    assert json.loads(as_json([Finding("a", "ok", "b")])) == [
        {"subject": "a", "state": "ok", "text": "b", "mend": ""}
    ]


def test_doctor_is_asked_for_by_the_issue_template():
    template = pathlib.Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE" / "bug.yml"
    assert "python -m experiments.doctor --json" in template.read_text()
