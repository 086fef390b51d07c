"""What a lowered program calls, counted in its text."""

import collections
import re


def kernel_calls(text):
    """How often the program calls a kernel of jax_triton, by the pass that calls it.

    A function of the module counts for each of its calls. A loop counts as one round.

    Args:
      text: of a module that was lowered for CUDA.
    """
    bodies = {}
    for quoted, plain, body in re.findall(
        r'func\.func \w+ @(?:"([^"]+)"|(\w+))(.*?)\n  }', text, re.DOTALL
    ):
        bodies[quoted or plain] = body
    found = collections.Counter()

    def visit(name, direction):
        plain = re.sub(r"_\d+$", "", name)
        if plain in ("forward", "backward"):
            direction = plain
        found[direction] += len(re.findall(r"custom_call @triton_kernel_call", bodies[name]))
        # A kept kernel is a function whose name, of an exported lambda, is in quotes.
        for quoted, plain in re.findall(r'\bcall @(?:"([^"]+)"|(\w+))', bodies[name]):
            visit(quoted or plain, direction)

    visit("main", "neither")
    return {name: number for name, number in found.items() if number}
