// The means over pixels that batch normalisation needs, and how their work is cut; see channel_sums.cc.
//
// Plain data, because it is compiled once for every instruction set.
#pragma once
#include "problem.h"

// Arrays are (groups, pixels, channels), of groups of images that share statistics.
struct Pixels {
  Int groups, pixels, channels;
};

// How many pieces the pixels of a group are cut into. It depends on sizes alone, and so do the sums.
static inline Int sum_pieces(const Pixels& p) {
  return most(1, least(p.pixels / 4, p.pixels * p.channels >> 17));
}

constexpr Int SUMS = 2;  // of a channel

// The sums of a task as it keeps them: whole vectors of every instruction set.
static inline Int sum_floats(const Pixels& p) { return SUMS * divide_up(p.channels, 16) * 16; }

// What is multiplied by the gradient of relu(x * gain + offset), or without a ReLU of x. Gain and
// offset are (groups, channels).
struct GradientArrays {
  const float *x, *gradient, *gain, *offset;
  bool relu;
};

// Task number group * pieces + piece. Each has sums of its own.
struct SumKernels {
  // Of x - pivot and of its square; the pivot is (channels).
  void (*moments)(const Pixels&, const float* x, const float* pivot, float* sums, Int task);
  // Of the gradient before the ReLU and of its product with x.
  void (*products)(const Pixels&, const GradientArrays&, float* sums, Int task);
};

// The means that follow from the sums of all tasks, (groups, channels) each. They are added up in
// double precision, since a task adds few pixels and there are many tasks.
static inline void average(const Pixels& p, const float* sums, float* first, float* second) {
  const Int pieces = sum_pieces(p), task = sum_floats(p), row = task / SUMS;
  for (Int group = 0; group < p.groups; ++group)
    for (Int c = 0; c < p.channels; ++c) {
      double totals[SUMS] = {};
      for (Int piece = 0; piece < pieces; ++piece)
        for (Int i = 0; i < SUMS; ++i) totals[i] += sums[(group * pieces + piece) * task + i * row + c];
      first[group * p.channels + c] = static_cast<float>(totals[0] / static_cast<double>(p.pixels));
      second[group * p.channels + c] = static_cast<float>(totals[1] / static_cast<double>(p.pixels));
    }
}
