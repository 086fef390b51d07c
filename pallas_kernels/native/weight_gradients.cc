// The gradient of the kernel of a 1x1 convolution: a sum over pixels of products of two channels.
//
// The channels of a pixel lie side by side in both operands, so a pixel adds the outer product of two
// short vectors, and no operand has to be transposed. A tile of the sums stays in registers for a
// block of pixels: a few inputs, each copied to all lanes, times a few vectors of outputs.
//
// A task first copies its channels of a block of pixels to its own memory, which lies in the L2
// cache. With rows of 1024 floats in the array itself, all pixels would share a few cache lines.
// While a tile multiplies, it fetches a column of cache lines of the next block of pixels, one at a
// pixel. Copying waits for memory otherwise, and so would a burst of fetches.
#include "weight_gradients.h"

#include "vectors.h"

namespace {

// Vectors of sums: most of the registers, but for those of the operands.
#if LANES == 16 || defined(__aarch64__)
constexpr int SUMS = 24, MOST_VECTORS = 3;
#else
constexpr int SUMS = 12, MOST_VECTORS = 2;
#endif
constexpr int MOST_ROWS = 12;

// A block of pixels as it lies in the memory of a task.
struct Copies {
  const float *x, *gradient;
  Int x_width, gradient_width, pixels;
};

// Cache lines at equal distances.
struct Lines {
  const float* place;
  Int step;
};

// Where the sums of a tile are added up, and where they go in the end, if this is the last block of
// pixels. Of the tile, rows and columns exist.
struct Target {
  float* sums;
  bool first, last;
  float* result;
  Int stride, rows, columns;
};

template <int ROWS, int VECTORS>
void multiply_tile(const Copies& from, Int row, Int column, Lines next, const Target& to) {
  Floats sums[ROWS][VECTORS] = {};
  const float *x = from.x + row, *gradient = from.gradient + column;
  for (Int pixel = 0; pixel < from.pixels; ++pixel) {
    __builtin_prefetch(next.place, 0, 2);
    next.place += next.step;
    Floats outputs[VECTORS];
    for (int v = 0; v < VECTORS; ++v) outputs[v] = load(gradient + v * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Floats input = all(x[r]);
#pragma GCC unroll 3
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += input * outputs[v];
    }
    x += from.x_width;
    gradient += from.gradient_width;
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      float* place = to.sums + (r * VECTORS + v) * LANES;
      const Floats sum = to.first ? sums[r][v] : load(place) + sums[r][v];
      if (!to.last)
        store(place, sum);
      else if (r < to.rows && v * LANES < to.columns)
        store_some(to.result + r * to.stride + v * LANES, sum, to.columns - v * LANES);
    }
}

// Copies channels of pixels; between `channels` and `width` the memory keeps what it has.
void copy(const float* from, Int step, Int pixels, Int channels, float* to, Int width) {
  for (Int pixel = 0; pixel < pixels; ++pixel, from += step, to += width) {
    if (channels < LANES) {
      store(to, load_some(from, channels));
      continue;
    }
    for (Int c = 0; c + LANES <= channels; c += LANES) store(to + c, load(from + c));
    store(to + channels - LANES, load(from + channels - LANES));
  }
}

// The part of one operand that a task reads.
struct Part {
  const float* data;  // of the first pixel
  Int step, channels;
  float* copies;
  Int width;

  // Zeros beyond the channels, which copies leave alone.
  void clear() const {
    for (Int i = 0; i < BLOCK_PIXELS * width; ++i) copies[i] = 0;
  }
  void copy_pixels(Int first, Int pixels) const {
    copy(data + first * step, step, pixels, channels, copies, width);
  }
  // Cache lines that a tile fetches of a block of pixels, and how many tiles fetch all of it. If it
  // has all channels, it is fetched in the order of memory, which is faster; else by columns.
  Int fetches() const { return divide_up(channels + 15, 16); }
  Lines fetch(Int number, Int pixel) const {
    const bool whole = channels == step;
    return {data + pixel * step + number * 16 * (whole ? BLOCK_PIXELS : 1), whole ? 16 : step};
  }
};

struct Block {
  Part x, gradient;
  Int pixels;
  float *sums, *result;
  Int stride;
};

// One tile after another, for a block of pixels.
class Tiles {
 public:
  Tiles(const Block& block, Int first) : block_(block), first_(first) {
    const Int pixels = least(BLOCK_PIXELS, block.pixels - first);
    copies_ = {block.x.copies, block.gradient.copies, block.x.width, block.gradient.width, pixels};
    last_ = first + pixels == block.pixels;
    sums_ = block.sums;
  }

  void multiply() {
    const Int vectors = divide_up(block_.gradient.channels, LANES);
    const Int strips = divide_up(vectors, MOST_VECTORS);
    for (Int strip = 0; strip < strips; ++strip) {
      const Int vector = strip * vectors / strips;
      switch ((strip + 1) * vectors / strips - vector) {
        case 1: multiply_strip<1>(vector * LANES); break;
        case 2: multiply_strip<2>(vector * LANES); break;
        default: multiply_strip<MOST_VECTORS>(vector * LANES);
      }
    }
  }

 private:
  template <int VECTORS>
  void multiply_strip(Int column) {
    constexpr int ROWS = SUMS / VECTORS < MOST_ROWS ? SUMS / VECTORS : MOST_ROWS;
    for (Int row = 0; row < block_.x.channels; row += ROWS) {
      const Target to = {sums_, first_ == 0, last_, block_.result + row * block_.stride + column,
                         block_.stride, block_.x.channels - row, block_.gradient.channels - column};
      multiply_tile<ROWS, VECTORS>(copies_, row, column, next_lines(), to);
      sums_ += ROWS * VECTORS * LANES;
    }
  }

  Lines next_lines() {
    const Int tile = tile_++, own = block_.x.fetches(), pixel = first_ + BLOCK_PIXELS;
    if (last_ || tile >= own + block_.gradient.fetches()) return {copies_.x, 0};  // nothing is left
    return tile < own ? block_.x.fetch(tile, pixel) : block_.gradient.fetch(tile - own, pixel);
  }

  const Block& block_;
  const Int first_;
  Copies copies_;
  bool last_;
  float* sums_;
  Int tile_ = 0;
};

void multiply(const Weights& w, const WeightCut& cut, const WeightArrays& arrays, Int task,
              float* memory) {
  FlushDenormals flush;
  const Int blocks = cut.inputs * cut.outputs, piece = task / blocks;
  const Int i = task % blocks / cut.outputs, o = task % cut.outputs;
  const Int first = piece * w.pixels / cut.pieces, last = (piece + 1) * w.pixels / cut.pieces;
  const Int row = i * w.inputs / cut.inputs, rows = (i + 1) * w.inputs / cut.inputs - row;
  const Int column = o * w.outputs / cut.outputs;
  const Int columns = (o + 1) * w.outputs / cut.outputs - column;
  float* result = piece > 0 ? arrays.sums + (piece - 1) * w.inputs * w.outputs : arrays.result;
  Block block = {
      {arrays.x + first * w.inputs + row, w.inputs, rows, memory, padded_width(rows)},
      {arrays.gradient + first * w.outputs + column, w.outputs, columns, nullptr,
       padded_width(columns)},
      last - first, nullptr, result + row * w.outputs + column, w.outputs};
  block.gradient.copies = block.x.copies + BLOCK_PIXELS * block.x.width;
  block.sums = block.gradient.copies + BLOCK_PIXELS * block.gradient.width;
  block.x.clear();
  block.gradient.clear();
  for (Int pixel = 0; pixel < block.pixels; pixel += BLOCK_PIXELS) {
    const Int pixels = least(BLOCK_PIXELS, block.pixels - pixel);
    block.x.copy_pixels(pixel, pixels);
    block.gradient.copy_pixels(pixel, pixels);
    Tiles(block, pixel).multiply();
  }
}

void add(const Weights& w, const WeightCut& cut, const WeightArrays& arrays, Int task) {
  FlushDenormals flush;
  const Int size = w.inputs * w.outputs, end = least(size, (task + 1) * ADDED);
  for (Int piece = 1; piece < cut.pieces; ++piece) {
    const float* sums = arrays.sums + (piece - 1) * size;
    for (Int i = task * ADDED; i < end; ++i) arrays.result[i] += sums[i];
  }
}

}  // namespace

extern const WeightKernels INSTRUCTIONS;
const WeightKernels INSTRUCTIONS = {multiply, add};
