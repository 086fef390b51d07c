"""What is read from the text of a compiled program."""

import pytest

from experiments.bench.hlo_text import Array, parse

TEXT = """HloModule jit_f, is_scheduled=true

%fused_add (param_0: f32[4,6]) -> f32[4,6] {
  %param_0 = f32[4,6]{1,0} parameter(0)
  ROOT %add.1 = f32[4,6]{1,0} add(%param_0, %param_0), metadata={op_name="jit(f)/res2/add"}
}

ENTRY %main (x: f32[4,6]) -> (f32[4,6], bf16[2]) {
  %x = f32[4,6]{1,0} parameter(0)
  %add_fusion = f32[4,6]{1,0} fusion(%x), kind=kLoop, calls=%fused_add
  %call = (bf16[2]{0}, s8[32]{0}, pred[]) custom-call(%add_fusion, /*index=1*/%x), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/stem/dot"}
  ROOT %tuple = (f32[4,6]{1,0}, bf16[2]{0}) tuple(%add_fusion, %call)
}
"""  # noqa: E501


def test_instructions_with_their_arrays_operands_and_attributes():
    program = parse(TEXT)
    assert program.entry == "main"
    assert list(program.by_name) == ["x", "add_fusion", "call", "tuple"]
    fusion, call = program.by_name["add_fusion"], program.by_name["call"]
    assert fusion.operation == "fusion"
    assert fusion.called == "fused_add"
    assert (fusion.elements, fusion.size) == (24, 96)
    assert call.results == (Array("bf16", (2,)), Array("s8", (32,)), Array("pred", ()))
    assert call.operands == ("add_fusion", "x")
    assert (call.target, call.source) == ("__cublas$gemm", "jit(f)/stem/dot")
    assert program.computations["fused_add"][-1].source == "jit(f)/res2/add"


def test_a_text_without_an_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule jit_f")
