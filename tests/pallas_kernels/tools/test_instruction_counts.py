"""The command line that counts instructions, without NVIDIA's compiler."""

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
    ],
)
def test_an_unknown_name_is_one_clear_line_and_exit_code_2(argument, message, capsys):
    with pytest.raises(SystemExit) as stop:
        instruction_counts.main([argument])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


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
