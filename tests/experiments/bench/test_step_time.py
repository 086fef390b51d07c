"""The model of a step's time, on programs whose cost is counted by hand."""

import dataclasses
import functools

import pytest

from experiments.bench import step_time
from experiments.bench.compiled_step import MOST_MEMORY, MOST_TIME, compile_step
from experiments.bench.hlo_text import parse
from experiments.bench.step_time import milliseconds, step_costs
from lrnet_jax import Variant, get_variant
from pallas_kernels.tools.cross_compilation import GPUS, missing
from pallas_kernels.tools.empty_kernels import empty_kernels
from pallas_kernels.tools.kernel_report import report
from pallas_kernels.tools.shapes import SHAPES

needs_compiler = pytest.mark.skipif(missing() is not None, reason=str(missing()))
H100 = GPUS["h100"]
DRAM = 0.85 * 3.352e12

PROGRAM = """
%sliced (param_0: f32[1000,64]) -> f32[10,64] {
  %param_0 = f32[1000,64]{1,0} parameter(0)
  ROOT %slice = f32[10,64]{1,0} slice(%param_0), slice={[0:10], [0:64]}
}

%summed (param_0: f32[1000,64]) -> f32[64] {
  %param_0 = f32[1000,64]{1,0} parameter(0)
  ROOT %reduce = f32[64]{0} reduce(%param_0), metadata={op_name="jit(f)/res3/batch_norm/sum"}
}

ENTRY %main (x: f32[1000,64]) -> f32[64] {
  %x = f32[1000,64]{1,0} parameter(0)
  %cut = f32[10,64]{1,0} fusion(%x), kind=kLoop, calls=%sliced
  %sum = f32[64]{0} fusion(%x), kind=kInput, calls=%summed
  %query = bf16[3200]{0} copy(%x)
  %kernel = (bf16[3200]{0}, f32[3200]{0}) custom-call(%query, %query), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/stem/local_relation_forward"}
  %pixels = bf16[3200000]{0} broadcast(%query)
  %stem = (bf16[4800000]{0}, bf16[3200]{0}) custom-call(%pixels, %query), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/stem/stem_forward"}
  %project = (bf16[3200000]{0}, bf16[3200]{0}) custom-call(%pixels, %query), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/jvp(res2)/batch_norm/projections_forward"}
  %a = bf16[8192,4096]{1,0} broadcast(%query)
  %b = bf16[4096,1024]{1,0} broadcast(%query)
  %product = (bf16[8192,1024]{1,0}, s8[999]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/transpose(jvp(res2))/dot"}
  %images = bf16[128,56,56,64]{3,2,1,0} broadcast(%query)
  %filter = bf16[64,3,3,64]{3,2,1,0} broadcast(%query)
  %conv = (bf16[128,56,56,64]{3,2,1,0}, u8[0]{0}) custom-call(%images, %filter), custom_call_target="__cudnn$convForward"
}
"""  # noqa: E501


def found(gpu=H100, program=PROGRAM):
    costs = step_costs(parse(program), Variant(), gpu)
    names = "cut sum query kernel pixels stem project a b product images filter conv"
    return dict(zip(names.split(), costs, strict=True))


def test_kinds_and_stages():
    kinds = {name: (cost.kind, cost.stage) for name, cost in found().items()}
    assert kinds["cut"] == ("copies", "rest")
    assert kinds["sum"] == ("statistics", "res3")
    assert kinds["kernel"] == ("LR kernels", "stem")
    assert kinds["stem"] == ("stem kernels", "stem")
    assert kinds["project"] == ("projection kernels", "res2")
    assert kinds["product"] == ("dots", "res2")
    assert kinds["conv"] == ("convolutions", "rest")


def test_a_fusion_reads_what_its_results_need():
    costs = found()
    assert costs["cut"].size == 2 * 4 * 10 * 64
    assert costs["sum"].size == 4 * (1000 * 64 + 64)
    assert costs["sum"].seconds == costs["sum"].size / DRAM


def test_arithmetic():
    costs = found()
    products = 2 * 8192 * 4096 * 1024 / (0.6 * 989e12)
    assert costs["product"].seconds == pytest.approx(products)
    taps = 2 * 128 * 56 * 56 * 64 * 9 * 64 / (0.6 * 989e12)
    assert costs["conv"].seconds == pytest.approx(max(taps, costs["conv"].size / DRAM))
    # 100 warps of queries, 49 taps each, 15.7 slots a tap, 132 SMs of 4 schedulers.
    slots = 100 * 49 * 15.7 / (132 * 4 * 1.98e9)
    assert costs["kernel"].seconds == pytest.approx(max(slots, costs["kernel"].size / DRAM))
    # Three channels of images and 64 of the map, 33.4 slots each.
    slots = 3200000 / 3 * 64 / 32 * 33.4 / (132 * 4 * 1.98e9)
    assert costs["stem"].seconds == pytest.approx(slots)
    # 35.9 slots for each channel of each pixel.
    slots = 3200000 / 32 * 35.9 / (132 * 4 * 1.98e9)
    assert costs["project"].seconds == pytest.approx(max(slots, costs["project"].size / DRAM))
    sums = milliseconds(list(costs.values()), "kind")
    assert sum(sums.values()) == pytest.approx(1e3 * sum(c.seconds for c in costs.values()))


@pytest.mark.parametrize(
    ("gpu", "name", "slots"),
    [
        ("a100", "forward", 15.7 + 11.6),  # 64 lanes: arithmetic takes two slots
        ("h100", "backward_key", 25.5),
        ("b200", "forward", 11.9),  # sums of two numbers take one slot
        ("b200", "backward_key", 21.3),  # and two of the lanes, which are fully used here
    ],
)
def test_issue_slots_of_each_gpu(gpu, name, slots):
    program = PROGRAM.replace("local_relation_forward", f"local_relation_{name}")
    program = program.replace("query = bf16[3200]", "query = bf16[32000000]")
    gpu = GPUS[gpu]
    seconds = 1e6 * 49 * slots / (gpu.cores * 4 * gpu.clock * 1e9)
    assert found(gpu, program)["kernel"].seconds == pytest.approx(seconds)


@needs_compiler
@pytest.mark.parametrize("gpu", ["h100", "b200"])
def test_slots_are_those_of_the_machine_code(gpu):
    shape = SHAPES["lrnet50/res2"].as_run("bfloat16").with_batch(128)
    counted = report(GPUS[gpu], shape, "bfloat16", "forward")
    fma = counted.parts["arithmetic"] + counted.classes.get("pair", 0)
    slots = step_time.SLOTS[GPUS[gpu].capability]["forward"]
    assert slots == pytest.approx((counted.average, fma), abs=0.1)
    assert ("pair" in counted.classes) == (gpu == "b200")


@functools.cache
def steps(depth):
    """Memory and modelled costs of both networks of a depth at batch 128, as recipes train them."""
    found = {}
    for name, remat in (("resnet", "none"), ("lrnet", "blocks")):
        variant = get_variant(f"{name}{depth}")
        variant = dataclasses.replace(variant, dtype="bfloat16", remat=remat)
        with empty_kernels():
            compiled = compile_step(variant, H100, 128, 224)
        costs = step_costs(parse(compiled.as_text()), variant, H100)
        found[name] = compiled.memory_analysis().temp_size_in_bytes, costs
    return found


@needs_compiler
@pytest.mark.parametrize("depth", [26, 50, pytest.param(101, marks=pytest.mark.slow)])
def test_an_lr_network_beside_its_resnet(depth):
    found = steps(depth)
    memory = {name: size for name, (size, _) in found.items()}
    assert memory["lrnet"] <= MOST_MEMORY * memory["resnet"]
    seconds = {name: sum(cost.seconds for cost in costs) for name, (_, costs) in found.items()}
    assert seconds["lrnet"] <= MOST_TIME[depth] * seconds["resnet"]


@needs_compiler
def test_every_class_and_stage_of_a_step_is_found():
    _, costs = steps(50)["lrnet"]
    assert set(milliseconds(costs, "kind")) == set(step_time.CLASSES) - {step_time.CONVOLUTIONS}
    by_stage = milliseconds(costs, "stage")
    assert set(by_stage) == {"stem", "res2", "res3", "res4", "res5", "rest"}
    assert by_stage["rest"] < 0.1 * sum(by_stage.values())
