"""The command line that counts instructions, without NVIDIA's compiler."""

import dataclasses

import pytest

from pallas_kernels.pallas.strips import BorderCase
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.tools import instruction_counts
from pallas_kernels.tools.cross_compilation import Kernel
from pallas_kernels.tools.kernel_report import Report, Use
from pallas_kernels.tools.sass import Code


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--kernels=query,kye", "--kernels: no kernel 'kye'; there are forward, query, key\n"),
        ("--shape=lrnet27/*", "no shape matches 'lrnet27/*'; there are stem, "),
        ("--gpu=h100,v100", "--gpu: no GPU 'v100'; there are a100, h100, h200, b200\n"),
        ("--dtype=float64", "--dtype: no dtype 'float64'; there are bfloat16, float16, float32\n"),
        ("--plot=x.svg --gpu=a100,h100", "--plot draws one GPU and one dtype; give one of each\n"),
    ],
)
def test_an_unknown_name_is_one_clear_line_and_exit_code_2(argument, message, capsys):
    with pytest.raises(SystemExit) as stop:
        instruction_counts.main(argument.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("spills", "code"), [(0, 0), (12, 1)])
def test_faults_are_counted_over_gpus_dtypes_shapes_and_kernels(spills, code, monkeypatch, capsys):
    asked = []

    def report(gpu, shape, dtype, name, tile, implementation):
        asked.append((gpu.name, str(dtype), shape.name, name, implementation))
        kernel = Kernel(name, "", "", grid=1, warps=1, registers=32, spills=0, shared=0)
        if len(asked) == 3:
            kernel = dataclasses.replace(kernel, spills=spills)
        return Report(kernel, Tile(1), Code(""), 1.0, Use([], [], [], 1.0, 1), {})

    monkeypatch.setattr(instruction_counts, "report", report)
    monkeypatch.setattr(instruction_counts.cross_compilation, "missing", lambda: None)
    arguments = "--faults --gpu=a100,b200 --dtype=bfloat16,float32 --shape=stem,lrnet50/res5"
    assert instruction_counts.main([*arguments.split(), "--kernels=query,key"]) == code
    assert len(set(asked)) == len(asked) == 16
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert ("FAULT: 12 bytes of registers spilled" in lines[2]) == bool(spills)
    assert lines[-1] == f"16 kernels of pallas, {bool(spills):d} with a fault"


def test_both_implementations_side_by_side(monkeypatch, capsys):
    averages = {("NVIDIA A100", "pallas"): 16.0, ("NVIDIA A100", "jax_triton"): 16.4,
                ("NVIDIA B200", "pallas"): 16.0, ("NVIDIA B200", "jax_triton"): 12.4}  # fmt: skip

    def report(gpu, shape, dtype, name, tile, implementation):
        kernel = Kernel(name, "", "", grid=1, warps=1, registers=32, spills=0, shared=0)
        found = Report(kernel, Tile(1), Code(""), 1.0, Use([], [], [], 1.0, 1), {})
        found.__dict__["average"] = averages[gpu.name[:11], implementation]
        return found

    monkeypatch.setattr(instruction_counts, "report", report)
    monkeypatch.setattr(instruction_counts.cross_compilation, "missing", lambda: None)
    monkeypatch.setattr(instruction_counts.stack, "missing", lambda: None)
    arguments = "--compare --gpu=a100,b200 --shape=stem --kernels=query,key"
    assert instruction_counts.main(arguments.split()) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| stem | query | 16.00, 16.40: 1.02 | 16.00, 12.40: 0.78 |",
        "| stem | key | 16.00, 16.40: 1.02 | 16.00, 12.40: 0.78 |",
    ]


def test_local_memory_is_a_fault_without_a_spill_too():
    code = Code("""
        /*0000*/                   STL [R1], R8 ;
        /*0010*/                   EXIT ;
""")
    kernel = Kernel("kernel", "", "", grid=1, warps=1, registers=32, spills=0, shared=0)
    report = Report(kernel, Tile(1), code, 1.0, Use([], [], [], 1.0, 1), {})
    assert report.faults == ["local memory"]
    spilling = dataclasses.replace(report, kernel=dataclasses.replace(kernel, spills=8))
    assert spilling.faults == ["8 bytes of registers spilled"]


def test_a_report_follows_the_paths_of_its_kernel_once(monkeypatch):
    calls = []

    class Counted(Code):
        def paths(self, *arguments, **options):
            calls.append(arguments)
            return super().paths(*arguments, **options)

    code = Counted("""
.L_x_1:
        /*0000*/                   FFMA R8, R4, R5, R8 ;
        /*0010*/              @!P1 BRA `(.L_x_1) ;
        /*0020*/                   EXIT ;
""")
    kernel = Kernel("kernel", "", "", grid=1, warps=1, registers=32, spills=0, shared=0)
    use = Use([BorderCase((0,), None)], [(1, True)], [1.0], rows=7.0, strips_per_lane=1)
    report = Report(kernel, Tile(1), code, taps=7.0, use=use, others={})
    assert report.average == (2 * 7 + 1) / 7
    assert sum(report.parts.values()) == report.average
    assert report.faults == []
    assert len(calls) == 1
