// Between (group, channel), as arrays have them, and (channel, group), as a task holds them.
#pragma once
#include <cstring>

#include "vectors.h"

namespace {

#if LANES >= 8

typedef float Eight __attribute__((vector_size(32)));
typedef float LooseEight __attribute__((vector_size(32), aligned(4), may_alias));

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t EightInts __attribute__((vector_size(32)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, (EightInts){__VA_ARGS__})
#endif

// Eight rows of eight to eight columns. Rows are `from` and `to` floats apart.
INLINE void transpose_eight(const float* source, Int from, float* target, Int to) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = *(const LooseEight*)(source + i * from);
  for (int i = 0; i < 8; i += 2) {
    b[i] = PICK(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = PICK(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      a[i + 2 * k] = PICK(b[i + k], b[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * k + 1] = PICK(b[i + k], b[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    *(LooseEight*)(target + i * to) = PICK(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *(LooseEight*)(target + (i + 4) * to) = PICK(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

#else

INLINE void transpose_eight(const float* source, Int from, float* target, Int to) {
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k) target[k * to + i] = source[i * from + k];
}

#endif

// Copies a few floats, without a call.
INLINE void copy_some(const float* source, Int count, float* target) {
  const Int step = 8;
  if (count < step) {
    for (Int i = 0; i < count; ++i) target[i] = source[i];
    return;
  }
  // The last eight may overlap those before them.
  for (Int i = 0; i < count; i += step) {
    const Int place = least(i, count - step);
    memcpy(target + place, source + place, sizeof(float) * step);
  }
}

// `count` floats of one pixel, (group, size), to `size` rows that are `row` floats apart.
INLINE void spread(const float* source, Int size, Int count, float* target, Int row) {
  if (size == 1) {
    return copy_some(source, count, target);
  }
  const Int full = count / size, rest = count % size;
  if (size == 8 && full >= 8) {
    // The last eight groups may overlap those before them.
    for (Int i = 0; i < full; i += 8) {
      Int g = least(i, full - 8);
      transpose_eight(source + g * 8, 8, target + g, row);
    }
  } else {
    for (Int i = 0; i < size; ++i)
      for (Int g = 0; g < full; ++g) target[i * row + g] = source[g * size + i];
  }
  for (Int i = 0; i < rest; ++i) target[i * row + full] = source[full * size + i];
}

// The opposite.
INLINE void gather(const float* source, Int row, Int size, Int count, float* target) {
  if (size == 1) {
    return copy_some(source, count, target);
  }
  const Int full = count / size, rest = count % size;
  if (size == 8 && full >= 8) {
    for (Int i = 0; i < full; i += 8) {
      Int g = least(i, full - 8);
      transpose_eight(source + g, row, target + g * 8, 8);
    }
  } else {
    for (Int g = 0; g < full; ++g)
      for (Int i = 0; i < size; ++i) target[g * size + i] = source[i * row + g];
  }
  for (Int i = 0; i < rest; ++i) target[full * size + i] = source[i * row + full];
}

}  // namespace
