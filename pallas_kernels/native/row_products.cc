// The product of rows and a kernel, with what follows it in a network done in registers.
//
// Libraries fill the columns up to multiples of 64, and the networks' 101, 202 and 404 channels are
// far from them. Here they are cut into panels of 1 to 4 vectors. If the columns fill no whole vectors,
// the last vector overlaps the one before it; both find the same products of what they share.
//
// A panel of the kernel is packed row after row, so that it is read from front to back. A tile of the
// output, some rows by a panel, stays in registers while the whole depth is summed up, always in the
// same order. A task is a block of rows, small enough that it stays in the second cache from panel to
// panel, as each panel does from tile to tile.
#include "row_products.h"

#include "transpose.h"
#include "vectors.h"

namespace {

#if LANES == 16 || defined(__aarch64__)
constexpr Int REGISTERS = 32;
#else
constexpr Int REGISTERS = 16;
#endif

// Rows of a tile: its sums, a row of the panel and one number must fit the registers.
constexpr int tile_rows(int vectors) {
  const int fit = (REGISTERS - 1) / vectors - 1;
  return fit >= 12 ? 12 : fit >= 8 ? 8 : fit >= 6 ? 6 : fit >= 4 ? 4 : 2;
}

// A tile is in registers only where its loops are unrolled.
#define UNROLLED _Pragma("GCC unroll 16")

struct Panel {
  Int first, vectors;
};

// Panels of 3 vectors, as far as that goes: they need the fewest loads for each product.
INLINE Panel next_panel(const Product& p, const Panel& before) {
  const Int first = before.first + before.vectors, left = divide_up(p.columns, LANES) - first;
  const Int rest = left % 3;
  return {first, left <= 2 ? left : rest != 1 ? 3 : REGISTERS == 32 ? 4 : 2};
}

Int panels(const Product& p) {
  Int count = 0;
  for (Panel panel = next_panel(p, {0, 0}); panel.vectors; panel = next_panel(p, panel)) ++count;
  return count;
}

// One vector of a panel, whose rows are `step` floats apart.
void pack_rows(const Product& p, const float* kernel, Int column, float* target, Int step) {
  for (Int k = 0; k < p.depth; ++k)
    store(target + k * step, load_some(kernel + k * p.columns + column, p.columns - column));
}

void pack_columns(const Product& p, const float* kernel, Int column, float* target, Int step) {
  kernel += column * p.depth;
  const Int whole = LANES >= 8 && p.columns >= LANES ? p.depth / 8 * 8 : 0;
  for (Int k = 0; k < whole; k += 8)
    for (Int i = 0; i < LANES; i += 8)
      transpose_eight(kernel + i * p.depth + k, p.depth, target + k * step + i, step);
  for (Int k = whole; k < p.depth; ++k)
    for (Int i = 0; i < LANES; ++i)
      target[k * step + i] = i < p.columns ? kernel[i * p.depth + k] : 0.0f;
}

void pack(const Product& p, const ProductArrays& arrays, Int number) {
  Panel panel = next_panel(p, {0, 0});
  for (; number; --number) panel = next_panel(p, panel);
  float* target = arrays.packed + panel.first * LANES * p.depth;
  for (Int v = 0; v < panel.vectors; ++v)
    (p.transposed ? pack_columns : pack_rows)(p, arrays.kernel, vector_start(p.columns, panel.first + v),
                                              target + v * LANES, panel.vectors * LANES);
}

// With at least two vectors in a panel, all vectors are whole.
template <int VECTORS>
INLINE Floats load_own(const float* source, Int count) {
  return VECTORS > 1 ? load(source) : load_some(source, count);
}

// `ahead` are rows that are needed next, or null.
template <int COUNT, int VECTORS>
INLINE void multiply_tile(const Product& p, const ProductArrays& arrays, Int row, Int first,
                          const float* ahead) {
  const float* x = arrays.x + row * p.depth;
  const float* packed = arrays.packed + first * LANES * p.depth;
  Floats sums[COUNT][VECTORS] = {};
#pragma GCC unroll 4
  for (Int k = 0; k < p.depth; ++k) {
    Floats weights[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; ++v) weights[v] = load(packed + v * LANES);
    packed += VECTORS * LANES;
    UNROLLED for (int i = 0; i < COUNT; ++i) {
      const Floats number = all(x[i * p.depth + k]);
      UNROLLED for (int v = 0; v < VECTORS; ++v) sums[i][v] += number * weights[v];
    }
    __builtin_prefetch(ahead + k * COUNT);
  }
  UNROLLED for (int v = 0; v < VECTORS; ++v) {
    const Int column = vector_start(p.columns, first + v), count = p.columns - column;
    const Int place = row * p.columns + column;
    if (arrays.gain) {
      const Floats gain = load_own<VECTORS>(arrays.gain + column, count);
      const Floats offset = load_own<VECTORS>(arrays.offset + column, count);
      UNROLLED for (int i = 0; i < COUNT; ++i) sums[i][v] = sums[i][v] * gain + offset;
    }
    if (arrays.residual)
      UNROLLED for (int i = 0; i < COUNT; ++i)
        sums[i][v] += load_own<VECTORS>(arrays.residual + place + i * p.columns, count);
    if (p.relu)
      UNROLLED for (int i = 0; i < COUNT; ++i) sums[i][v] = rectified(sums[i][v]);
    UNROLLED for (int i = 0; i < COUNT; ++i) {
      float* out = arrays.out + place + i * p.columns;
      VECTORS > 1 ? store(out, sums[i][v]) : store_some(out, sums[i][v], count);
    }
  }
}

template <int VECTORS>
void multiply_panel(const Product& p, const ProductArrays& arrays, Int row, Int last, Int first) {
  constexpr int COUNT = tile_rows(VECTORS);
  for (; row + COUNT <= last; row += COUNT)
    multiply_tile<COUNT, VECTORS>(p, arrays, row, first, arrays.x + (row + COUNT) * p.depth);
  for (; row < last; ++row) multiply_tile<1, VECTORS>(p, arrays, row, first, arrays.x);
}

void multiply(const Product& p, const ProductArrays& arrays, Int task) {
  FlushDenormals flush;
  const Int row = task % blocks(p) * block_rows(p), last = least(p.rows, row + block_rows(p));
  const Int share = task / blocks(p), count = panels(p), cuts = shares(p, count);
  Panel panel = {0, 0};
  for (Int i = 0; i < (share + 1) * count / cuts; ++i) {
    panel = next_panel(p, panel);
    if (i < share * count / cuts) continue;
    switch (panel.vectors) {
      case 1: multiply_panel<1>(p, arrays, row, last, panel.first); break;
      case 2: multiply_panel<2>(p, arrays, row, last, panel.first); break;
      case 3: multiply_panel<3>(p, arrays, row, last, panel.first); break;
      default: multiply_panel<4>(p, arrays, row, last, panel.first);
    }
  }
}

}  // namespace

extern const ProductKernels INSTRUCTIONS;
const ProductKernels INSTRUCTIONS = {panels, pack, multiply};
