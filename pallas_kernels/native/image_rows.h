// Rows of values that are computed from an image, in the place of rows that are read:
//
//     value = relu((x - mean) @ weights + bias)
//
// An image has few channels and its values have many. To write the values to memory and to read them
// again takes longer than to compute them where they are needed. The sum has the order of stem.cc, so
// the values have the same bits.
//
// Lanes are (column, group) flat, as layout.h has them, and the channels of a group are rows. So the
// pixels of a row are spread to the lanes of all groups once, and each channel of a group has
// weights for every group.
#pragma once
#include "layout.h"

namespace {

class ImageRows {
 public:
  ImageRows(const Problem& p, const Layout& layout, Arena& memory)
      : p_(p), layout_(layout), row_(layout.groups + 16) {
    if (!p.inputs) return;
    parameters_ = memory.floats(p.channels_per_group * (1 + p.inputs) * row_);
    pixels_ = memory.floats(p.inputs * layout.whole_columns);
  }

  // Floats of a table of sums.
  Int sum_floats() const { return p_.channels_per_group * (1 + p_.inputs) * row_; }

  void begin(const ImageArrays& from, const Task& task) {
    const Int set = task.image * p_.means / p_.batch, channels = p_.channels;
    x_ = from.x + task.image * p_.height * p_.width * p_.inputs;
    mean_ = from.mean + set * p_.inputs;
    missing_ = most(0, (task.first_group + task.groups) * p_.channels_per_group - channels);
    zero(pixels_, p_.inputs * layout_.whole_columns);
    const float* weights = from.weights + set * p_.inputs * channels;
    float* next = parameters_;
    for (Int i = 0; i < p_.channels_per_group; ++i) {
      for (Int k = 0; k < 1 + p_.inputs; ++k, next += row_) {
        const float* source = k ? weights + (k - 1) * channels : from.bias;
        for (Int g = 0; g < row_; ++g) {
          Int c = (task.first_group + g % layout_.groups) * p_.channels_per_group + i;
          next[g] = c < channels ? source[c] : 0.0f;
        }
      }
    }
  }

  // Fills what windows read of input row r, (phase, size, columns). What lies beyond the image is
  // zero before and after.
  void fill(Int r, float* target) const {
    in_phases(r, [&](auto n, Int phase, Int first, Int last) {
      constexpr int INPUTS = decltype(n)::value;
      float* rows = target + phase * p_.channels_per_group * layout_.whole_columns;
      compute<INPUTS>(first * layout_.groups, last * layout_.groups, rows);
      // A partial group has fewer channels.
      for (Int i = p_.channels_per_group - missing_; i < p_.channels_per_group; ++i)
        for (Int column = first; column < last; ++column)
          rows[i * layout_.whole_columns + (column + 1) * layout_.groups - 1] = 0.0f;
    });
  }

  // Adds up the gradients of what `fill` computed, those before the ReLU, and their products with the
  // image. The table has a place for each parameter.
  void add_sums(Int r, const float* values, const float* d_values, float* sums) const {
    in_phases(r, [&](auto n, Int phase, Int first, Int last) {
      constexpr int INPUTS = decltype(n)::value;
      const Int place = phase * p_.channels_per_group * layout_.whole_columns;
      add_phase<INPUTS>(first * layout_.groups, last * layout_.groups, values + place,
                        d_values + place, sums);
    });
  }

  // Writes the sums of the task's channels, (1 + inputs, channels), to where the first of them begins.
  void write_sums(const float* sums, float* target) const {
    const Int channels = layout_.groups * p_.channels_per_group - missing_;
    for (Int c = 0; c < channels; ++c) {
      const Int place = c % p_.channels_per_group * (1 + p_.inputs);
      for (Int k = 0; k < 1 + p_.inputs; ++k)
        target[k * p_.channels + c] =
            sum_of_group(sums + (place + k) * row_, layout_.groups, c / p_.channels_per_group);
    }
  }

 private:
  // Calls body(Constant<inputs>, phase, first, last) for the columns [first, last) of each phase that
  // are inside the image, with the pixels of input row r.
  template <typename Body>
  void in_phases(Int r, Body body) const {
    switch (p_.inputs) {
      case 1: return in_phases_of<1>(r, body);
      case 2: return in_phases_of<2>(r, body);
      case 3: return in_phases_of<3>(r, body);
      default: return in_phases_of<4>(r, body);
    }
  }

  template <int INPUTS, typename Body>
  void in_phases_of(Int r, Body body) const {
    const Int stride = p_.stride;
    for (Int phase = 0; phase < stride; ++phase) {
      const Int before = pad_x(p_) - phase;  // column 0 is pixel -before
      const Int first = most(0, divide_up(before, stride));
      const Int last =
          least(layout_.columns / layout_.groups, divide_up(p_.width + before, stride));
      if (first >= last) continue;
      spread_pixels<INPUTS>(x_ + (r * p_.width + first * stride - before) * INPUTS, first, last);
      body(Constant<INPUTS>{}, phase, first, last);
    }
  }

  // Copies the pixels of columns [first, last) to the lanes of all groups, about the mean.
  template <int INPUTS>
  void spread_pixels(const float* pixel, Int first, Int last) const {
    const Int groups = layout_.groups, row = layout_.whole_columns;
    for (Int column = first; column < last; ++column, pixel += p_.stride * INPUTS) {
      float* target = pixels_ + column * groups;
      for (int i = 0; i < INPUTS; ++i)  // what is written too far is written again, or not read
        for (Int g = 0; g < groups; g += LANES) store(target + i * row + g, all(pixel[i] - mean_[i]));
    }
  }

  // Computes lanes [start, end) of all channels of the groups.
  template <int INPUTS>
  void compute(Int start, Int end, float* target) const {
    const Int groups = layout_.groups, row = layout_.whole_columns, table = row_;
    const float *pixels = pixels_, *own = parameters_;
    for (Int c = 0; c < p_.channels_per_group; ++c, own += (1 + INPUTS) * table, target += row) {
      Floats parameters[1 + INPUTS];
      auto read_parameters = [&](Int group) {
        for (int k = 0; k < 1 + INPUTS; ++k) parameters[k] = load(own + k * table + group);
      };
      auto write_values = [&](Int j) {
        Floats sum = parameters[0];
        for (int i = 0; i < INPUTS; ++i) sum += parameters[1 + i] * load(pixels + i * row + j);
        store(target + j, rectified(sum));
      };
      read_parameters(0);
      if (LANES % groups == 0) {  // every vector begins at the first group
        for (Int j = start; j < end; j += LANES) write_values(j);
      } else {
        for (Int j = start, group = 0; j < end; j += LANES, group = (group + LANES) % groups) {
          read_parameters(group);
          write_values(j);
        }
      }
      store(target + end, Floats{});
    }
  }

  // The sums of one phase, over lanes [start, end). A vector is added to the places of its groups.
  template <int INPUTS>
  void add_phase(Int start, Int end, const float* values, const float* d_values, float* sums) const {
    const Int groups = layout_.groups, row = layout_.whole_columns, table = row_;
    const float* pixels = pixels_;
    for (Int c = 0; c < p_.channels_per_group; ++c, sums += (1 + INPUTS) * table) {
      Floats totals[1 + INPUTS] = {};
      auto add_totals = [&](Int group) {
        for (int k = 0; k < 1 + INPUTS; ++k) {
          float* sum = sums + k * table + group;
          store(sum, load(sum) + totals[k]);
          totals[k] = Floats{};
        }
      };
      const bool aligned = LANES % groups == 0;  // every vector begins at the first group
      for (Int j = start, group = 0; j < end; j += LANES) {
        Floats d = load(values + c * row + j) > 0.0f ? load(d_values + c * row + j) : Floats{};
        totals[0] += d;
        for (int i = 0; i < INPUTS; ++i) totals[1 + i] += d * load(pixels + i * row + j);
        if (aligned) continue;
        add_totals(group);
        group = (group + LANES) % groups;
      }
      if (aligned) add_totals(0);
    }
  }

  const Problem& p_;
  const Layout& layout_;
  Int row_;            // of a channel's parameters, so that a vector can begin at any group
  float* parameters_;  // (channels of a group, bias and weights, row)
  float* pixels_;      // (inputs, columns) of one phase of a row
  const float *x_, *mean_;
  Int missing_;  // channels of the last group that are not there
};

}  // namespace
