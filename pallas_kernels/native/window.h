// What both passes share: the input rows that windows read, the taps of a window, the logits.
#pragma once
#include "image_rows.h"

namespace {

// Calls body(first, Constant<n>) for blocks of n = 8, 4, 2 or 1 of `size` channels: as many sums as
// fit into registers, in loops that the compiler can unroll.
template <typename Body>
INLINE void in_blocks(Int size, Body body) {
  Int i = 0;
  for (; i + 8 <= size; i += 8) body(i, Constant<8>{});
  if (size & 4) body(i, Constant<4>{}), i += 4;
  if (size & 2) body(i, Constant<2>{}), i += 2;
  if (size & 1) body(i, Constant<1>{});
}

// One summand of Phi, Eqns. 3 to 5.
template <int SIMILARITY>
INLINE Floats component(Floats q, Floats k) {
  if (SIMILARITY == MULTIPLICATION) return q * k;
  Floats d = q - k;
  if (SIMILARITY == SQUARED_DIFFERENCE) return -(d * d);
  return (Floats)((Ints)d | INT32_MIN);
}

// The scaled similarity: queries and keys point at the first of `depth` components.
template <int SIMILARITY, bool SCALAR>
INLINE Floats phi(const float* query, Int query_row, const float* key, Int key_row, Int depth,
                  float scale) {
  Floats sum = component<SIMILARITY>(load(query), load(key));
  for (Int d = 1; !SCALAR && d < depth; ++d)
    sum += component<SIMILARITY>(load(query + d * query_row), load(key + d * key_row));
  return sum * scale;
}

// The derivative of the component by q, but for the factor `slope_of_query`.
template <int SIMILARITY>
INLINE Floats slope(Floats q, Floats k, Floats other) {
  if (SIMILARITY == MULTIPLICATION) return other;
  Floats d = q - k;
  if (SIMILARITY == SQUARED_DIFFERENCE) return d;
  return d >= 0.0f ? all(1.0f) : all(-1.0f);  // as JAX differentiates abs at 0
}

inline float slope_of_query(const Problem& p) {
  return p.similarity == MULTIPLICATION       ? p.scale
         : p.similarity == SQUARED_DIFFERENCE ? -2 * p.scale
                                              : -p.scale;
}

inline float slope_of_key(const Problem& p) {
  return p.similarity == MULTIPLICATION ? p.scale : -slope_of_query(p);
}

// The input rows that the windows of a task read, and the places of the taps in them.
class Window {
 public:
  Window(const Problem& p, const Layout& layout, Arena& memory)
      : p_(p), layout_(layout), bias_row_(layout.groups + 16), image_(p, layout, memory) {
    key_row = p.stride * p.depth * layout.whole_columns;
    value_row = p.stride * p.channels_per_group * layout.whole_columns;
    keys = memory.floats(layout.ring * key_row);
    values = memory.floats(layout.ring * value_row);
    bias_ = memory.floats(p.kernel_height * p.kernel_width * bias_row_);
    columns_ = memory.ints(layout.whole_lanes);
    step = memory.indices(p.kernel_width);
    by_phase = memory.indices(p.kernel_width);
    first_tap = memory.indices(p.stride + 1);
    key_place = memory.indices(p.kernel_width);
    value_place = memory.indices(p.kernel_width);
    slot = memory.indices(p.kernel_height);
    wide = memory.floats(layout.groups * most(p.channels_per_group, p.depth));
  }

  // Fills what is the same for all rows. `first_row` is the first input row that will be needed.
  void begin(const ForwardArrays& from, const Task& task, Int first_row) {
    next_ = most(0, first_row);
    // No row fills the columns beyond the image, so they remain zero.
    zero(keys, layout_.ring * key_row);
    zero(values, layout_.ring * value_row);
    Int taps = p_.kernel_height * p_.kernel_width;
    const float* own =
        from.prior + (task.image * p_.priors / p_.batch * p_.groups + task.first_group) * taps;
    for (Int t = 0; t < taps; ++t) {
      float* bias = bias_ + t * bias_row_;
      for (Int i = 0; i < bias_row_; ++i)
        bias[i] = i < layout_.groups ? own[i * taps + t] : bias[i - layout_.groups];
    }
    if (p_.inputs) image_.begin(from.image, task);
    for (Int i = 0; i < layout_.whole_lanes; ++i)
      columns_[i] = i < layout_.lanes ? i / layout_.groups * p_.stride - pad_x(p_) : NOWHERE;
    for (Int b = 0; b < p_.kernel_width; ++b) {
      Int phase = b * p_.dilation % p_.stride;
      step[b] = b * p_.dilation / p_.stride * layout_.groups;
      key_place[b] = phase * p_.depth * layout_.whole_columns + step[b];
      value_place[b] = phase * p_.channels_per_group * layout_.whole_columns + step[b];
    }
    Int n = 0;
    for (Int f = 0; f < p_.stride; ++f) {
      first_tap[f] = n;
      for (Int b = 0; b < p_.kernel_width; ++b)
        if (b * p_.dilation % p_.stride == f) by_phase[n++] = b;
    }
    first_tap[p_.stride] = n;
  }

  // Reads rows up to the last one of output row y. Window rows [first, last) are inside the image.
  // Calls `entering(slot)` before a row is read to a slot.
  template <typename Entering>
  void advance(const ForwardArrays& from, const Task& task, Int y, Entering entering) {
    Int top = y * p_.stride - pad_y(p_);
    Int end = least(p_.height, top + layout_.span);
    for (Int r = most(next_, top); r < end; ++r) {
      Int s = r % layout_.ring, pixel = (task.image * p_.height + r) * p_.width;
      entering(s, r);
      read_sources(p_, layout_, from.key, Slice::vectors(p_, task), pixel, keys + s * key_row, wide);
      if (p_.inputs) {
        image_.fill(r, values + s * value_row);
      } else {
        read_sources(p_, layout_, from.value, Slice::channels(p_, task), pixel,
                     values + s * value_row, wide);
      }
    }
    next_ = most(next_, end);
    first = top < 0 ? divide_up(-top, p_.dilation) : 0;
    last = least(p_.kernel_height, divide_up(p_.height - top, p_.dilation));
    for (Int a = first; a < last; ++a) slot[a] = (top + a * p_.dilation) % layout_.ring;
  }

  // Where the prior of tap (a, 0) for lanes j and following is; the next tap is `bias_row` on.
  const float* bias(Int a, Int j) const {
    return bias_ + a * p_.kernel_width * bias_row_ + j % layout_.groups;
  }
  Int bias_row() const { return bias_row_; }

  // Whether some of the lanes j and following have taps beyond the left or right border.
  bool at_border(Int j) const {
    return columns_[j] < 0 ||
           columns_[j + LANES - 1] + (p_.kernel_width - 1) * p_.dilation >= p_.width;
  }
  // Which of the lanes have tap b inside the image.
  INLINE Ints inside(Int j, Int b) const {
    Ints x = load(columns_ + j) + (int32_t)(b * p_.dilation);
    return (x >= 0) & (x < (int32_t)p_.width);
  }

  const ImageRows& image() const { return image_; }

  float *keys, *values;  // rings of (phase, size, columns)
  Int key_row, value_row;
  Int* step;                     // of the taps of a window row
  Int *by_phase, *first_tap;     // those of phase f: by_phase[first_tap[f]] up to that of f + 1
  Int *key_place, *value_place;  // their places in a row of the rings
  Int* slot;          // of window row a
  Int first, last;    // window rows inside the image
  float* wide;          // a pixel, widened

 private:
  static constexpr int32_t NOWHERE = 1 << 30;  // lanes beyond the row count as beyond the image

  const Problem& p_;
  const Layout& layout_;
  Int bias_row_;
  float* bias_;  // (taps, groups + 16), so that a vector can begin at any group
  int32_t* columns_;
  Int next_;  // the first row not read
  ImageRows image_;
};

}  // namespace
