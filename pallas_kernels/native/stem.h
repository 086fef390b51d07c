// What a network's first layer makes of images, and how its work is cut; see stem.cc.
//
// Plain data, because it is compiled once for every instruction set.
#pragma once
#include "problem.h"

// Sizes as in pallas_kernels/pallas/stem/arrays.py: images have `inputs` channels, values `channels`,
// keys and queries the numbers of theirs. `groups` of consecutive images have a mean of their own.
struct Stem {
  Int batch, height, width, inputs, channels, keys, queries, groups, stride;
};

constexpr Int MAX_STEM_INPUTS = 4;

struct StemInputs {
  const float *x, *mean, *weights, *bias, *key, *query;
};

// Without a value, keys and queries alone are written.
struct StemMaps {
  float *value, *key, *query;
};

// Without a value, what else contributes to its gradient is summed alone.
struct StemGradients {
  const float *value, *key, *query;
};

static inline Int stem_bands(const Stem& s) {
  return most(1, least(divide_up(64, s.batch), s.height / 16));
}

// Sums over the pixels of a task are rows of `channels`: of the gradient, of its products with each
// channel of the image, and of the products of the values with the gradients of keys and queries.
static inline Int stem_sums(const Stem& s) { return 1 + s.inputs + s.keys + s.queries; }

// Task number image * bands + band. Each writes to rows of the maps, or sums, of its own.
struct StemKernels {
  Int (*forward_memory)(const Stem&);
  Int (*backward_memory)(const Stem&);
  void (*forward)(const Stem&, const StemInputs&, const StemMaps&, Int task, float* memory);
  void (*backward)(const Stem&, const StemInputs&, const StemGradients&, float* sums, Int task,
                   float* memory);
};
