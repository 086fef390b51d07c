// The gradients of the kernels of 1x1 convolutions, and how their work is cut; see weight_gradients.cc.
//
// Plain data, because it is compiled once for every instruction set.
#pragma once
#include "problem.h"

// The gradient (inputs, outputs) follows from x (pixels, inputs) and from the gradient of the output
// (pixels, outputs).
struct Weights {
  Int pixels, inputs, outputs;
};

// How many pieces the pixels are cut into, and how many blocks the kernel along each axis. A task has
// a piece of the pixels and a block of the kernel.
struct WeightCut {
  Int pieces, inputs, outputs;
};

static inline Int weight_tasks(const WeightCut& cut) { return cut.pieces * cut.inputs * cut.outputs; }

// The pieces depend on sizes alone, and so do the sums. A piece has many pixels, so that its sums are
// cheap to write and to add beside its products. Blocks make no difference to the sums. They are as
// large as the L2 cache allows, because a large block reads its operands less often, and smaller if
// threads would have nothing to do.
static inline WeightCut make_weight_cut(const Weights& w, Int threads) {
  WeightCut cut = {most(1, least(16, w.pixels / 4096)), divide_up(w.inputs, 512),
                   divide_up(w.outputs, 512)};
  while (weight_tasks(cut) < threads) {
    const Int inputs = w.inputs / cut.inputs, outputs = w.outputs / cut.outputs;
    if (most(inputs, outputs) < 128) break;
    ++(inputs > outputs ? cut.inputs : cut.outputs);
  }
  return cut;
}

constexpr Int BLOCK_PIXELS = 128;  // that a task multiplies at a time

// Floats from one pixel to the next in the memory of a task: an odd number of cache lines, so that
// the pixels lie in different sets of a cache. There is room for a last tile that is not full.
static inline Int padded_width(Int channels) { return (divide_up(channels + 12, 16) | 1) * 16; }

// Floats that a worker needs: copies of both operands, and sums.
static inline Int weight_memory(const Weights& w, const WeightCut& cut) {
  const Int inputs = padded_width(divide_up(w.inputs, cut.inputs));
  const Int outputs = padded_width(divide_up(w.outputs, cut.outputs));
  return (inputs + outputs) * BLOCK_PIXELS + inputs * outputs;
}

// The first piece writes to the result itself, the others to sums of their own, (pieces - 1, inputs,
// outputs), which are added to it at the end.
struct WeightArrays {
  const float *x, *gradient;
  float *result, *sums;
};

constexpr Int ADDED = 1 << 14;  // floats of the result that a task of `add` writes

struct WeightKernels {
  void (*multiply)(const Weights&, const WeightCut&, const WeightArrays&, Int task, float* memory);
  void (*add)(const Weights&, const WeightCut&, const WeightArrays&, Int task);
};
