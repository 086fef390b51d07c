// Vectors of the compiler (GCC and Clang): as long as the instruction set has them.
//
// Nothing here has external linkage. A function of the same name that is compiled for several
// instruction sets would otherwise be merged, and run where its instructions do not exist.
#pragma once
#include <cstdint>
#include <cstring>

#include "problem.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

template <int VALUE>
struct Constant {
  static constexpr int value = VALUE;
};

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float LooseFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t LooseInts __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Floats load(const float* p) { return *(const LooseFloats*)p; }
INLINE Ints load(const int32_t* p) { return *(const LooseInts*)p; }
INLINE void store(float* p, Floats x) { *(LooseFloats*)p = x; }

// Large arrays are read once. Where several are read in turn, or in pieces, the processor fetches
// too little in advance by itself. A fetch beyond the end of an array does nothing.
constexpr Int AHEAD = 1024;
INLINE void fetch_ahead(const float* p) { __builtin_prefetch(p + AHEAD); }

INLINE Floats all(float x) { return x - Floats{}; }

// Where vector number v of `count` floats begins. If they fill no whole vectors, the last overlaps the
// one before it.
INLINE Int vector_start(Int count, Int v) {
  return v * LANES + LANES <= count ? v * LANES : most(0, count - LANES);
}

// A ReLU that keeps a NaN.
INLINE Floats rectified(Floats x) { return x < 0.0f ? Floats{} : x; }

// `count` floats are there, the others are zero.
INLINE Floats load_some(const float* source, Int count) {
  if (count >= LANES) return load(source);
  float padded[LANES] = {};
  memcpy(padded, source, sizeof(float) * count);
  return load(padded);
}

INLINE void store_some(float* target, Floats x, Int count) {
  if (count >= LANES) return store(target, x);
  float padded[LANES];
  store(padded, x);
  memcpy(target, padded, sizeof(float) * count);
}

// exp(x) for x <= 0, to 1.4 units of 2^-24, and 0 below -87.3, where float32 has no normal number.
// A NaN remains one. A little above 0, where rounding may put x, it is as precise.
//
// exp(x) = 2^n exp(r), |r| <= log(2) / 2. Adding 1.5 * 2^23 rounds to whole numbers, and leaves n in
// the low bits. The polynomial is the minimax approximation of (exp(r) - 1 - r) / r^2.
INLINE Floats exponential(Floats x) {
  const float round = 12582912.0f;
  Floats shifted = x * 1.44269504f + round;
  Floats n = shifted - round;
  Floats r = (x - n * 0.693145752f) - n * 1.4286068e-6f;
  Floats q = r * 0.0013814540579915047f + 0.00836874544620514f;
  q = q * r + 0.04166838899254799f;
  q = q * r + 0.1666652113199234f;
  q = q * r + 0.4999999403953552f;
  Floats power = (Floats)(((Ints)shifted << 23) + (127 << 23));
  Floats result = (q * (r * r) + r + 1.0f) * power;
  return x < -87.3f ? Floats{} : result;
}

// Numbers below 2^-126 count as 0 while this exists. The threads of XLA differ in this, and results
// must not depend on the thread.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

}  // namespace
