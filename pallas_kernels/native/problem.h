// What one local relation computes, how its work is cut, and the face of the kernels.
//
// Everything here is plain data, because it is compiled once for every instruction set.
#pragma once
#include <cstdint>

using Int = int64_t;

enum Similarity { SQUARED_DIFFERENCE, ABSOLUTE_DIFFERENCE, MULTIPLICATION };

// Sizes and options, with the names of the glossary. Arrays are dense and channels come last.
struct Problem {
  Int batch, height, width, channels, out_height, out_width, groups, depth;
  Int kernel_height, kernel_width, channels_per_group, stride, dilation;
  Int priors;  // images [i * batch / priors, (i + 1) * batch / priors) have prior i
  Int similarity;
  Int inputs;  // channels of the images that values are computed from; 0 where they are an array
  Int means;   // images [i * batch / means, (i + 1) * batch / means) have mean and weights i
  bool softmax;
  float scale;
};

// An array of float32, or of bfloat16 if it is narrow.
struct Array {
  void* data;
  bool narrow;
};

// Images that values are computed from, value = relu((x - mean) @ weights + bias), as float32: x is
// (batch, height, width, inputs), mean (means, inputs), weights (means, inputs, channels).
struct ImageArrays {
  const float *x, *mean, *weights, *bias;
};

// Named as in pallas_kernels/spec.py. Without softmax there is no shift and no factor. The value is
// not read where the image is.
struct ForwardArrays {
  Array query, key, value;
  const float* prior;
  Array out;
  float *shift, *factor;
  ImageArrays image;
};

struct BackwardArrays {
  Array query, key, value;
  const float* prior;
  const float* out;  // not rounded; only read with softmax
  Array d_out;
  const float *shift, *factor;
  Array d_query, d_key, d_value;
  float* d_prior;  // (batch * blocks, groups, taps): a sum of its own for each block of output rows
  ImageArrays image;
  // (batch * blocks, 1 + inputs, channels): for each block of rows, the sums of the gradients of the
  // values before their ReLU, and of these times each channel of the image. Null if not asked for;
  // of values that are computed from an image, d_value may be too.
  float* sums;
};

// The part of the work that one thread does in one go. Parts write to different memory.
struct Task {
  Int image;
  Int first_group, groups;
  Int first_block, last_block;
  Int first_row, last_row;  // of the output
};

// How the work is cut. Chunks and blocks depend on the problem alone, and not on the machine or the
// number of threads, because the order of some sums depends on them. A band is as many blocks as a
// thread does in one go.
struct Plan {
  Int chunk;   // groups of a task; the last chunk of an image may have fewer
  Int chunks;  // of an image
  Int blocks;  // of output rows of an image
  Int bands;   // of an image
  Int tasks;
};

static inline Int least(Int a, Int b) { return a < b ? a : b; }
static inline Int most(Int a, Int b) { return a > b ? a : b; }
static inline Int divide_up(Int a, Int b) { return (a + b - 1) / b; }

static inline Plan make_plan(const Problem& p, Int workers) {
  // With 16 groups a step to the next column is a whole vector, so that all loads are aligned.
  Plan plan;
  plan.chunk = least(p.groups, 16);
  plan.chunks = divide_up(p.groups, plan.chunk);
  // Enough blocks for many cores. One of few rows would load most input rows twice.
  plan.blocks = most(1, least(divide_up(64, p.batch * plan.chunks), p.out_height / 16));
  // A few tasks for each thread, so that all end at about the same time. Rows at the border of two
  // bands are loaded twice, and the backward pass computes them twice.
  plan.bands = least(plan.blocks, divide_up(4 * workers, p.batch * plan.chunks));
  plan.tasks = p.batch * plan.chunks * plan.bands;
  return plan;
}

// The first output row of a block.
static inline Int block_row(const Problem& p, const Plan& plan, Int block) {
  return block * p.out_height / plan.blocks;
}

static inline Task make_task(const Problem& p, const Plan& plan, Int number) {
  Task task;
  Int chunk = number % plan.chunks;
  Int band = number / plan.chunks % plan.bands;
  task.image = number / plan.chunks / plan.bands;
  task.first_group = chunk * plan.chunk;
  task.groups = least(plan.chunk, p.groups - task.first_group);
  task.first_block = band * plan.blocks / plan.bands;
  task.last_block = (band + 1) * plan.blocks / plan.bands;
  task.first_row = block_row(p, plan, task.first_block);
  task.last_row = block_row(p, plan, task.last_block);
  return task;
}

// The kernels as compiled for one instruction set.
struct Kernels {
  // Floats of memory that any task of a pass needs.
  Int (*forward_memory)(const Problem&);
  Int (*backward_memory)(const Problem&);
  void (*forward)(const Problem&, const ForwardArrays&, const Task&, float* memory);
  void (*backward)(const Problem&, const BackwardArrays&, const Plan&, const Task&, float* memory);
};
