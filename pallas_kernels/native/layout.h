// How a task holds images: rows whose lanes are (column, group) flat, and rings of such rows.
//
// The channels of a group, or the components of its query, come before the lanes. A step to the
// next column is then a shift by the number of groups, and columns and groups fill vectors
// together, however small the image or the number of groups. Input columns are split by the stride:
// column x, counted from the left border of the first window, is column x / stride of phase
// x % stride. So the outputs of a row read neighbours, whatever the stride is.
//
// A window reads `span` input rows. Only these are held, in a ring: row r is in slot r % ring.
#pragma once
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "transpose.h"

namespace {

// Hands out parts of a task's memory, each from a cache line of its own. Without memory it counts.
class Arena {
 public:
  explicit Arena(float* memory) : memory_(memory) {}
  float* floats(Int n) {
    float* found = memory_ ? memory_ + used_ : nullptr;
    Int taken = (n + 31) / 16 * 16;
    if (memory_) fence(found, n, taken);
    used_ += taken;
    return found;
  }
  int32_t* ints(Int n) { return (int32_t*)floats(n); }
  Int* indices(Int n) { return (Int*)floats(2 * n); }
  Int used() const { return used_; }

 private:
  // Under AddressSanitizer, what lies between two parts must not be touched.
  static void fence(const float* part, Int n, Int taken) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(part, n * sizeof(float));
    ASAN_POISON_MEMORY_REGION(part + n, (taken - n) * sizeof(float));
#else
    (void)part, (void)n, (void)taken;
#endif
  }

  float* memory_;
  Int used_ = 0;
};

// Sizes of a task with this many groups, in floats. Those with "whole" are rounded up to vectors of
// every instruction set.
struct Layout {
  Int groups;
  Int lanes, whole_lanes;    // of a row of outputs
  Int reach, margin;         // how far the last tap is right of the first
  Int columns, whole_columns;  // of one phase of a row of inputs, with the overhang of a vector
  Int span, ring;            // input rows of a window, rows of the ring

  Layout(const Problem& p, Int groups_) : groups(groups_) {
    lanes = p.out_width * groups;
    whole_lanes = divide_up(lanes, 16) * 16;
    reach = (p.kernel_width - 1) * p.dilation / p.stride * groups;
    margin = divide_up(reach, 16) * 16;
    columns = lanes + reach;
    whole_columns = divide_up(columns, 16) * 16 + 16;
    span = (p.kernel_height - 1) * p.dilation + 1;
    ring = least(span, p.height);
  }
  // Outputs have zeros on both sides, which taps beyond the row read.
  Int target_row() const { return margin + whole_lanes + margin + 16; }
};

inline Int pad_y(const Problem& p) { return p.dilation * (p.kernel_height / 2); }
inline Int pad_x(const Problem& p) { return p.dilation * (p.kernel_width / 2); }

inline void widen(const uint16_t* source, Int count, float* target) {
  for (Int i = 0; i < count; ++i) {
    uint32_t bits = (uint32_t)source[i] << 16;
    memcpy(target + i, &bits, sizeof bits);
  }
}

// Rounds to the nearest, and to even between two.
inline void narrow(const float* source, Int count, uint16_t* target) {
  for (Int i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, source + i, sizeof bits);
    bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    target[i] = is_nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
}

// The elements of a task's groups in one pixel: `count` of `pixel`, after the first `skip`.
struct Slice {
  Int size;   // of a group
  Int pixel;  // of all groups
  Int skip, count;
  Int ahead = divide_up(AHEAD, pixel) * pixel;  // to the same part of a later pixel

  static Slice vectors(const Problem& p, const Task& task) {
    return {p.depth, p.groups * p.depth, task.first_group * p.depth, task.groups * p.depth};
  }
  static Slice channels(const Problem& p, const Task& task) {
    Int skip = task.first_group * p.channels_per_group;
    return {p.channels_per_group, p.channels, skip,
            least(p.channels - skip, task.groups * p.channels_per_group)};
  }
};

// Reads pixel number `pixel` of an array.
INLINE void read_pixel(const Array& array, const Slice& s, Int pixel, float* target, Int row,
                       float* wide) {
  Int start = pixel * s.pixel + s.skip;
  const float* source = (const float*)array.data + start;
  const Int bytes = array.narrow ? 2 : 4;
  for (Int i = 0; i < s.count * bytes; i += 64)
    __builtin_prefetch((const char*)array.data + (start + s.ahead) * bytes + i);
  if (array.narrow) {
    widen((const uint16_t*)array.data + start, s.count, wide);
    source = wide;
  }
  spread(source, s.size, s.count, target, row);
}

INLINE void write_pixel(const float* source, Int row, const Slice& s, Int pixel,
                        const Array& array, float* wide) {
  Int start = pixel * s.pixel + s.skip;
  if (array.narrow) {
    gather(source, row, s.size, s.count, wide);
    narrow(wide, s.count, (uint16_t*)array.data + start);
  } else {
    gather(source, row, s.size, s.count, (float*)array.data + start);
  }
}

// The row of outputs that begins at a pixel.
inline void read_targets(const Problem& p, const Layout& layout, const Array& array, const Slice& s,
                         Int pixel, float* target, Int row, float* wide) {
  for (Int x = 0; x < p.out_width; ++x)
    read_pixel(array, s, pixel + x, target + x * layout.groups, row, wide);
}

inline void write_targets(const Problem& p, const Layout& layout, const float* source, Int row,
                          const Slice& s, Int pixel, const Array& array, float* wide) {
  for (Int x = 0; x < p.out_width; ++x)
    write_pixel(source + x * layout.groups, row, s, pixel + x, array, wide);
}

// Where column x of the input is in a row of sources; false where no window reads it.
INLINE bool source_place(const Problem& p, const Layout& layout, Int size, Int x,
                         Int* place) {
  Int column = x + pad_x(p), step = column / p.stride * layout.groups;
  *place = column % p.stride * size * layout.whole_columns + step;
  return step < layout.columns;
}

// A row of inputs, (phase, size, columns) floats. What lies beyond the image is not touched.
inline void read_sources(const Problem& p, const Layout& layout, const Array& array, const Slice& s,
                         Int pixel, float* target, float* wide) {
  Int place;
  for (Int x = 0; x < p.width; ++x)
    if (source_place(p, layout, s.size, x, &place))
      read_pixel(array, s, pixel + x, target + place, layout.whole_columns, wide);
}

inline void write_sources(const Problem& p, const Layout& layout, const float* source,
                          const Slice& s, Int pixel, const Array& array, float* wide,
                          const float* zeros) {
  Int place;
  for (Int x = 0; x < p.width; ++x) {
    bool read = source_place(p, layout, s.size, x, &place);
    write_pixel(read && source ? source + place : zeros, read && source ? layout.whole_columns : 0,
                s, pixel + x, array, wide);
  }
}

// Sums of lanes are added to tables of (groups + 16): what group g has found.
inline float sum_of_group(const float* table, Int groups, Int g) {
  float sum = 0;
  for (Int i = g; i < groups + 16; i += groups) sum += table[i];
  return sum;
}

inline void zero(float* target, Int count) { memset(target, 0, sizeof(float) * count); }

}  // namespace
