"""What is read from the text of a compiled program."""

from experiments.bench.compiled_step import largest_array


def test_the_largest_array_has_most_elements():
    text = """
      %a = f32[2,3]{1,0} add(%x, %y)
      %b = bf16[4,5]{1,0} fusion(%a)
      ROOT %c = f32[] reduce(%b)
    """
    assert largest_array(text) == ("bf16[4,5]", 20)
