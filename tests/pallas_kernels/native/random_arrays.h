// Random arrays of the sweeps beside this file, and how their results are compared.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "problem.h"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

std::mt19937_64 generator;

inline Int draw(Int low, Int high) {
  return std::uniform_int_distribution<Int>(low, high)(generator);
}

inline Floats normal(Int count) {
  std::normal_distribution<float> distribution;
  Floats found(count);
  for (float& x : found) x = distribution(generator);
  return found;
}

// Eighths: their products and sums are exact, so that float32 sees the same signs.
inline Floats eighths(Int count) {
  Floats found = normal(count);
  for (float& x : found) x = std::round(8 * x) / 8;
  return found;
}

// Whether all errors are within `rounding` of the largest number, or of 1.
inline bool close(const char* name, const Floats& got, const Doubles& want, double rounding) {
  const bool complete = got.size() == want.size();
  double scale = 1, error = 0;
  for (double x : want) scale = std::max(scale, fabs(x));
  for (size_t i = 0; complete && i < want.size() && error == error; ++i) {
    double e = fabs(got[i] - want[i]);
    error = e <= error ? error : e;  // also if it is NaN
  }
  if (complete && error <= rounding * scale) return true;
  printf("%s: error %g of %g\n", name, error, scale);
  return false;
}

}  // namespace
