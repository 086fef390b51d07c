// The product of rows and a kernel, and how its work is cut; see row_products.cc.
//
// Plain data, because it is compiled once for every instruction set.
#pragma once
#include "problem.h"

// (rows, depth) @ (depth, columns). A transposed kernel is (columns, depth) in memory.
struct Product {
  Int rows, depth, columns;
  bool transposed, relu;
};

// Gain and offset are (columns), the others are named by their shapes above. Null where there is none:
// out = product, or relu(product * gain + offset + residual).
struct ProductArrays {
  const float *x, *kernel, *gain, *offset, *residual;
  float *packed, *out;
};

constexpr Int ROWS = 24;  // a multiple of the rows of every tile

// Rows that a task reads once for each panel, from the second cache.
static inline Int block_rows(const Product& p) {
  return most(1, 49152 / (p.depth * ROWS)) * ROWS;
}

static inline Int blocks(const Product& p) { return divide_up(p.rows, block_rows(p)); }

// Large kernels have few rows, and are cut by columns too.
static inline Int shares(const Product& p, Int panels) {
  return least(panels, divide_up(64, blocks(p)));
}

static inline Int product_tasks(const Product& p, Int panels) { return blocks(p) * shares(p, panels); }

// What the packed kernel needs, for every instruction set.
static inline Int packed_floats(const Product& p) { return p.depth * divide_up(p.columns, 16) * 16; }

struct ProductKernels {
  Int (*panels)(const Product&);
  // Packs a panel; all are packed before the first task.
  void (*pack)(const Product&, const ProductArrays&, Int panel);
  // Task number share * blocks + block.
  void (*multiply)(const Product&, const ProductArrays&, Int task);
};
