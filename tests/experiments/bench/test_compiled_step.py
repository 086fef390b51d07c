"""What is read from the text of a compiled program."""

from experiments.bench.compiled_step import largest_array, pallas_kernels_of


def test_the_largest_array_has_most_elements():
    text = """
      %a = f32[2,3]{1,0} add(%x, %y)
      %b = bf16[4,5]{1,0} fusion(%a)
      ROOT %c = f32[] reduce(%b)
    """
    assert largest_array(text) == ("bf16[4,5]", 20)


def test_equal_kernels_are_known():
    line = (
        '%c.{} = f32[8] custom-call(%x), custom_call_target="__gpu$xla.gpu.triton", metadata={{}}, '
    )
    line += 'backend_config={{grid_x = {} : i32, ir = "ML"}}'
    other = '%d = f32[8] custom-call(%x), custom_call_target="__cublas$gemm", backend_config={}'
    found = pallas_kernels_of("\n".join([*(line.format(n, n // 2) for n in range(3)), other]))
    assert len(found) == 3
    assert len(set(found)) == 2
