// Local relation on CPUs: one task of the forward and of the backward pass.
//
// A task is one image, a chunk of at most 16 groups, and a band of output rows. layout.h says how it
// holds rows; window.h how it walks over input rows. Output rows are computed one by one. Values are
// read, or computed from an image (image_rows.h).
//
// Forward, for a vector of lanes: the logits of all taps and their maximum; one exponential a tap;
// then the channels of the group, up to 8 sums in registers at a time.
//
// Backward, with e = exp(logit - shift) and weight e * factor. Let g be the gradient of the output:
//
//     d_logit[p, t] = e[p, t] * ( sum over c of u[p, c] * value[p + t, c]  -  g[p] . out[p] factor )
//
// where u = factor * g. So u is scaled once a pixel and not once a tap. For each window row the
// weights and d_logits of all lanes are computed and kept, which also gives d_query and d_prior.
// Then every key and value of the row gathers from the outputs that read it. Nothing is scattered,
// so the order of each sum is fixed. A band owns input rows too: it computes again what outputs of
// its neighbours contribute to them. Without softmax, u = g and e is the logit.
//
// Taps beyond the left and right border are masked in the vectors that have some. Taps beyond the
// other borders are left out.
#include <cmath>

#include "window.h"

namespace {

struct ForwardMemory {
  Layout layout;
  Arena arena;
  Window window;
  float *query, *out, *weights;

  ForwardMemory(const Problem& p, Int groups, float* memory)
      : layout(p, groups), arena(memory), window(p, layout, arena) {
    query = arena.floats(p.depth * layout.whole_lanes);
    out = arena.floats((p.channels_per_group + 2) * layout.whole_lanes);
    weights = arena.floats(p.kernel_height * p.kernel_width * 16);
  }
};

// The compiler must assume that a vector is stored over any number in memory. So what a loop needs
// again and again has a name outside of it.

// Keeps the weights of lanes j and following, not normalised. Returns shift and factor.
template <int SIMILARITY, bool SCALAR>
INLINE void weigh(const Problem& p, const ForwardMemory& m, Int j, Floats* shift, Floats* factor) {
  const Window& w = m.window;
  const Int width = p.kernel_width, bias_row = w.bias_row(), depth = p.depth;
  const Int row = m.layout.whole_columns, query_row = m.layout.whole_lanes;
  const Int* places = w.key_place;
  const float *query = m.query + j, scale = p.scale;
  const bool border = w.at_border(j), softmax = p.softmax;
  Floats largest = all(-INFINITY);
  float* next = m.weights;
  for (Int a = w.first; a < w.last; ++a) {
    const float *keys = w.keys + w.slot[a] * w.key_row + j, *bias = w.bias(a, j);
    for (Int b = 0; b < width; ++b, next += LANES) {
      Floats logit = load(bias + b * bias_row) +
                     phi<SIMILARITY, SCALAR>(query, query_row, keys + places[b], row, depth, scale);
      if (border) logit = w.inside(j, b) ? logit : all(softmax ? -INFINITY : 0.0f);
      largest = logit > largest ? logit : largest;
      store(next, logit);
    }
  }
  if (!softmax) return;
  Floats sum = {};
  for (float* weight = m.weights; weight < next; weight += LANES) {
    Floats e = exponential(load(weight) - largest);
    sum += e;
    store(weight, e);
  }
  *shift = largest;
  *factor = 1.0f / sum;
}

template <int CHANNELS>
INLINE void aggregate(const Problem& p, const ForwardMemory& m, Int j, Int channel, Floats factor) {
  const Window& w = m.window;
  const Int row = m.layout.whole_columns, out_row = m.layout.whole_lanes, width = p.kernel_width;
  const Int* places = w.value_place;
  Floats sums[CHANNELS] = {};
  const float* weight = m.weights;
  for (Int a = w.first; a < w.last; ++a) {
    const float* values = w.values + w.slot[a] * w.value_row + channel * row + j;
    for (Int b = 0; b < width; ++b, weight += LANES) {
      const float* value = values + places[b];
      Floats e = load(weight);
      for (int i = 0; i < CHANNELS; ++i) sums[i] += e * load(value + i * row);
    }
  }
  float* out = m.out + channel * out_row + j;
  for (int i = 0; i < CHANNELS; ++i) store(out + i * out_row, sums[i] * factor);
}

template <int SIMILARITY, bool SCALAR>
void forward_task(const Problem& p, const ForwardArrays& arrays, const Task& task, float* memory) {
  FlushDenormals flush;
  ForwardMemory m(p, task.groups, memory);
  const Layout& layout = m.layout;
  const Slice vectors = Slice::vectors(p, task), channels = Slice::channels(p, task);
  const Slice groups = {1, p.groups, task.first_group, task.groups};
  m.window.begin(arrays, task, task.first_row * p.stride - pad_y(p));
  zero(m.query, p.depth * layout.whole_lanes);
  float* shifts = m.out + p.channels_per_group * layout.whole_lanes;
  float* factors = shifts + layout.whole_lanes;
  for (Int y = task.first_row; y < task.last_row; ++y) {
    Int pixel = (task.image * p.out_height + y) * p.out_width;
    m.window.advance(arrays, task, y, [](Int, Int) {});
    read_targets(p, layout, arrays.query, vectors, pixel, m.query, layout.whole_lanes, m.window.wide);
    for (Int j = 0; j < layout.lanes; j += LANES) {
      Floats shift = {}, factor = all(1.0f);
      weigh<SIMILARITY, SCALAR>(p, m, j, &shift, &factor);
      store(shifts + j, shift);
      store(factors + j, factor);
      in_blocks(p.channels_per_group, [&](Int channel, auto n) {
        aggregate<decltype(n)::value>(p, m, j, channel, factor);
      });
    }
    write_targets(p, layout, m.out, layout.whole_lanes, channels, pixel, arrays.out, m.window.wide);
    if (p.softmax) {
      write_targets(p, layout, shifts, 0, groups, pixel, {arrays.shift, false}, m.window.wide);
      write_targets(p, layout, factors, 0, groups, pixel, {arrays.factor, false}, m.window.wide);
    }
  }
}

struct BackwardMemory {
  Layout layout;
  Arena arena;
  Window window;
  Int row;                   // of targets, with its margins
  float *d_keys, *d_values;    // rings as those of the window
  float *query, *d_query, *u, *out, *dot, *shift, *factor;  // targets, after their left margin
  float *weights, *d_logits;   // of the taps of a window row: targets
  float *d_prior_row, *d_prior;  // (taps, groups + 16) of an output row, and of a block of them
  Int prior_floats;              // of either
  float* sums;                    // of a block, as image_rows.h has them
  float* zeros;                   // of a pixel
  Int* row_of_slot;

  BackwardMemory(const Problem& p, Int groups, float* memory)
      : layout(p, groups), arena(memory), window(p, layout, arena), row(layout.target_row()) {
    Int m = p.channels_per_group, taps = p.kernel_height * p.kernel_width;
    d_keys = arena.floats(layout.ring * window.key_row);
    d_values = arena.floats(layout.ring * window.value_row);
    targets_ = arena.floats(rows(p) * row);
    query = targets_ + layout.margin;
    d_query = query + p.depth * row;
    u = d_query + p.depth * row;
    out = u + m * row;
    dot = out + m * row;
    shift = dot + row;
    factor = shift + row;
    weights = factor + row;
    d_logits = weights + p.kernel_width * row;
    prior_floats = divide_up(taps * window.bias_row(), LANES) * LANES;
    d_prior_row = arena.floats(prior_floats);
    d_prior = arena.floats(prior_floats);
    sums = arena.floats(p.inputs ? window.image().sum_floats() : 0);
    zeros = arena.floats(16);
    row_of_slot = arena.indices(layout.ring);
  }

  void begin(const Problem& p) {
    zero(targets_, rows(p) * row);
    zero(d_prior, prior_floats);
    if (p.inputs) zero(sums, window.image().sum_floats());
    zero(zeros, 16);
    for (Int s = 0; s < layout.ring; ++s) row_of_slot[s] = -1;
  }

 private:
  Int rows(const Problem& p) const {
    return 2 * p.depth + 2 * p.channels_per_group + 3 + 2 * p.kernel_width;
  }
  float* targets_;
};

// Input rows [first, last) belong to a band: it writes their gradients.
struct Rows {
  Int first, last;
  bool has(Int r) const { return first <= r && r < last; }
};

// Those that are left to write, and the block of the first one.
struct RowsLeft : Rows {
  Int block;
};

// Reads query, shift, u and g . out of output row y. The dot has the sign of d_logit.
void read_outputs(const Problem& p, const BackwardArrays& arrays, const Task& task, Int y,
                  const BackwardMemory& m) {
  const Layout& layout = m.layout;
  const Slice channels = Slice::channels(p, task);
  const Slice groups = {1, p.groups, task.first_group, task.groups};
  const Int pixel = (task.image * p.out_height + y) * p.out_width, row = m.row;
  auto read = [&](const Array& array, const Slice& slice, float* target) {
    read_targets(p, layout, array, slice, pixel, target, row, m.window.wide);
  };
  read(arrays.query, Slice::vectors(p, task), m.query);
  // What a partial group has not is not read: a NaN that scaled it would stay there.
  for (Int i = channels.count - (task.groups - 1) * channels.size; i < channels.size; ++i)
    zero(m.u + i * row, layout.lanes);
  read(arrays.d_out, channels, m.u);
  if (!p.softmax) return;
  read({const_cast<float*>(arrays.out), false}, channels, m.out);
  read({const_cast<float*>(arrays.shift), false}, groups, m.shift);
  read({const_cast<float*>(arrays.factor), false}, groups, m.factor);
  for (Int j = 0; j < layout.lanes; j += LANES) {
    Floats factor = load(m.factor + j), dot = {};
    float *u = m.u + j, *out = m.out + j;
    for (Int i = 0; i < p.channels_per_group; ++i) {
      Floats scaled = load(u + i * row) * factor;
      store(u + i * row, scaled);
      dot -= scaled * load(out + i * row);
    }
    store(m.dot + j, dot);
  }
}

// Weights and d_logits of window row a in lanes j and following, and what they add to d_query and
// d_prior.
template <int SIMILARITY, bool SCALAR, bool EIGHT>
INLINE void weigh_again(const Problem& p, const BackwardMemory& m, Int a, Int j) {
  const Window& w = m.window;
  const Int width = p.kernel_width, bias_row = w.bias_row(), depth = p.depth;
  const Int row = m.layout.whole_columns, target_row = m.row;
  const Int channels = EIGHT ? 8 : p.channels_per_group;
  const Int *key_places = w.key_place, *value_places = w.value_place;
  const bool border = w.at_border(j), softmax = p.softmax;
  const float *query = m.query + j, *u = m.u + j, *bias = w.bias(a, j), scale = p.scale;
  const float *keys = w.keys + w.slot[a] * w.key_row + j;
  const float *values = w.values + w.slot[a] * w.value_row + j;
  float *weights = m.weights + j, *d_logits = m.d_logits + j, *d_query_rows = m.d_query + j;
  float* d_bias = m.d_prior_row + a * width * bias_row + j % m.layout.groups;
  Floats d_query = load(d_query_rows), shift = load(m.shift + j), dot = load(m.dot + j);
  Floats of_u[8];
  for (Int i = 0; EIGHT && i < 8; ++i) of_u[i] = load(u + i * target_row);
  for (Int b = 0; b < width; ++b) {
    const float *key = keys + key_places[b], *value = values + value_places[b];
    Floats d_logit = dot, odd = {};
    for (Int i = 0; i + 1 < channels; i += 2) {
      d_logit += (EIGHT ? of_u[i] : load(u + i * target_row)) * load(value + i * row);
      odd += (EIGHT ? of_u[i + 1] : load(u + (i + 1) * target_row)) * load(value + (i + 1) * row);
    }
    if (!EIGHT && channels % 2)
      odd += load(u + (channels - 1) * target_row) * load(value + (channels - 1) * row);
    d_logit += odd;
    Floats e = load(bias + b * bias_row) +
               phi<SIMILARITY, SCALAR>(query, target_row, key, row, depth, scale);
    if (softmax) e = exponential(e - shift), d_logit *= e;
    if (border) {
      Ints inside = w.inside(j, b);
      e = inside ? e : Floats{};
      d_logit = inside ? d_logit : Floats{};
    }
    store(weights + b * target_row, e);
    store(d_logits + b * target_row, d_logit);
    store(d_bias + b * bias_row, load(d_bias + b * bias_row) + d_logit);
    d_query += d_logit * slope<SIMILARITY>(load(query), load(key), load(key));
    for (Int d = 1; !SCALAR && d < depth; ++d) {
      Floats q = load(query + d * target_row), k = load(key + d * row);
      float* sum = d_query_rows + d * target_row;
      store(sum, load(sum) + d_logit * slope<SIMILARITY>(q, k, k));
    }
  }
  store(d_query_rows, d_query);
}

// What outputs contribute through window row a to the keys in lanes j and following of a phase.
template <int SIMILARITY>
INLINE void gather_keys(const Problem& p, const BackwardMemory& m, Int slot, Int phase, Int j) {
  const Window& w = m.window;
  const Int row = m.row, first = w.first_tap[phase], last = w.first_tap[phase + 1];
  const Int *taps = w.by_phase, *steps = w.step;
  const float* d_logits = m.d_logits + j;
  for (Int d = 0; d < p.depth; ++d) {
    const Int place = slot * w.key_row + (phase * p.depth + d) * m.layout.whole_columns + j;
    const float* query = m.query + d * row + j;
    Floats sum = load(m.d_keys + place), k = load(w.keys + place);
    for (Int i = first; i < last; ++i) {
      const Int tap = taps[i], step = steps[tap];
      Floats q = load(query - step);
      sum += load(d_logits + tap * row - step) * slope<SIMILARITY>(q, k, q);
    }
    store(m.d_keys + place, sum);
  }
}

// The same for CHANNELS channels of the values and, with KEY, for keys of one component: the loop over
// the taps costs as much as what is in it.
template <int SIMILARITY, int CHANNELS, bool KEY>
INLINE void gather_values(const Problem& p, const BackwardMemory& m, Int slot, Int phase, Int j,
                          Int channel) {
  const Window& w = m.window;
  const Int row = m.row, first = w.first_tap[phase], last = w.first_tap[phase + 1];
  const Int *taps = w.by_phase, *steps = w.step, columns = m.layout.whole_columns;
  const float *weights = m.weights + j, *d_logits = m.d_logits + j, *query = m.query + j;
  const float* u = m.u + channel * row + j;
  const Int place = slot * w.value_row + (phase * p.channels_per_group + channel) * columns + j;
  const Int key_place = slot * w.key_row + phase * columns + j;
  Floats sums[CHANNELS], d_key = {}, key = {};
  for (int i = 0; i < CHANNELS; ++i) sums[i] = load(m.d_values + place + i * columns);
  if (KEY) d_key = load(m.d_keys + key_place), key = load(w.keys + key_place);
  for (Int i = first; i < last; ++i) {
    const Int tap = taps[i], step = steps[tap];
    const float* source = u - step;
    Floats e = load(weights + tap * row - step);
    for (int c = 0; c < CHANNELS; ++c) sums[c] += e * load(source + c * row);
    if (!KEY) continue;
    Floats q = load(query - step);
    d_key += load(d_logits + tap * row - step) * slope<SIMILARITY>(q, key, q);
  }
  for (int i = 0; i < CHANNELS; ++i) store(m.d_values + place + i * columns, sums[i]);
  if (KEY) store(m.d_keys + key_place, d_key);
}

template <int SIMILARITY, bool SCALAR>
INLINE void gather(const Problem& p, const BackwardMemory& m, Int slot, Int phase, Int j) {
  if (!SCALAR) gather_keys<SIMILARITY>(p, m, slot, phase, j);
  in_blocks(p.channels_per_group, [&](Int channel, auto n) {
    constexpr int CHANNELS = decltype(n)::value;
    if (SCALAR && channel == 0)
      gather_values<SIMILARITY, CHANNELS, true>(p, m, slot, phase, j, channel);
    else
      gather_values<SIMILARITY, CHANNELS, false>(p, m, slot, phase, j, channel);
  });
}

// Writes the gradients of the band's input rows before `end`, which no later output reads.
void write_inputs(const Problem& p, const BackwardArrays& arrays, const Task& task,
                  const Plan& plan, const BackwardMemory& m, Int end, RowsLeft* left) {
  const Slice vectors = Slice::vectors(p, task), channels = Slice::channels(p, task);
  for (; left->first < least(end, left->last); ++left->first) {
    Int r = left->first, slot = r % m.layout.ring, pixel = (task.image * p.height + r) * p.width;
    bool read = m.row_of_slot[slot] == r;  // no window reads some rows if the stride is large
    float* d_key = m.d_keys + slot * m.window.key_row;
    const float* values = m.window.values + slot * m.window.value_row;
    const float* d_value = m.d_values + slot * m.window.value_row;
    for (Int i = 0; read && i < m.window.key_row; ++i) d_key[i] *= slope_of_key(p);
    write_sources(p, m.layout, read ? d_key : nullptr, vectors, pixel, arrays.d_key, m.window.wide, m.zeros);
    if (arrays.d_value.data)
      write_sources(p, m.layout, read ? d_value : nullptr, channels, pixel, arrays.d_value,
                    m.window.wide, m.zeros);
    if (!arrays.sums) continue;
    if (read) m.window.image().add_sums(r, values, d_value, m.sums);
    if (r + 1 < least(left->last, block_row(p, plan, left->block + 1) * p.stride)) continue;
    Int place = (task.image * plan.blocks + left->block++) * (1 + p.inputs) * p.channels;
    m.window.image().write_sums(m.sums, arrays.sums + place + channels.skip);
    zero(m.sums, m.window.image().sum_floats());
  }
}

// Adds the gradients through output row y to the band's input rows and, if y is its own, to d_query
// and d_prior.
template <int SIMILARITY, bool SCALAR>
INLINE void differentiate_row(const Problem& p, const BackwardMemory& m, const Rows& rows, bool own) {
  const Window& w = m.window;
  for (Int d = 0; d < p.depth; ++d) zero(m.d_query + d * m.row, m.layout.lanes);
  zero(m.d_prior_row, m.prior_floats);
  for (Int a = w.first; a < w.last; ++a) {
    bool gathers = rows.has(m.row_of_slot[w.slot[a]]);
    if (!own && !gathers) continue;
    if (p.channels_per_group == 8) {
      for (Int j = 0; j < m.layout.lanes; j += LANES)
        weigh_again<SIMILARITY, SCALAR, true>(p, m, a, j);
    } else {
      for (Int j = 0; j < m.layout.lanes; j += LANES)
        weigh_again<SIMILARITY, SCALAR, false>(p, m, a, j);
    }
    for (Int phase = 0; gathers && phase < p.stride; ++phase) {
      for (Int j = 0; j < m.layout.columns; j += LANES)
        gather<SIMILARITY, SCALAR>(p, m, w.slot[a], phase, j);
    }
  }
}

void write_own(const Problem& p, const BackwardArrays& arrays, const Task& task,
               const BackwardMemory& m, Int y) {
  for (Int d = 0; d < p.depth; ++d)
    for (Int i = 0; i < m.layout.lanes; ++i) m.d_query[d * m.row + i] *= slope_of_query(p);
  write_targets(p, m.layout, m.d_query, m.row, Slice::vectors(p, task),
                (task.image * p.out_height + y) * p.out_width, arrays.d_query, m.window.wide);
  for (Int i = 0; i < m.prior_floats; i += LANES)
    store(m.d_prior + i, load(m.d_prior + i) + load(m.d_prior_row + i));
}

// Adds what lanes of the same group have found.
void write_prior(const Problem& p, const BackwardMemory& m, float* d_prior) {
  const Int taps = p.kernel_height * p.kernel_width, bias_row = m.window.bias_row();
  for (Int g = 0; g < m.layout.groups; ++g)
    for (Int t = 0; t < taps; ++t)
      d_prior[g * taps + t] = sum_of_group(m.d_prior + t * bias_row, m.layout.groups, g);
}

template <int SIMILARITY, bool SCALAR>
void backward_task(const Problem& p, const BackwardArrays& arrays, const Plan& plan, const Task& task,
                   float* memory) {
  FlushDenormals flush;
  BackwardMemory m(p, task.groups, memory);
  m.begin(p);
  const bool end_of_image = task.last_row == p.out_height;
  const Rows rows = {task.first_row * p.stride, end_of_image ? p.height : task.last_row * p.stride};
  RowsLeft left = {rows, task.first_block};
  // The outputs that read rows of the band.
  Int y = most(0, divide_up(rows.first + pad_y(p) - m.layout.span + 1, p.stride));
  Int last = least(p.out_height, (rows.last - 1 + pad_y(p)) / p.stride + 1);
  const ForwardArrays inputs = {arrays.query, arrays.key, arrays.value, arrays.prior, {}, {}, {},
                                arrays.image};
  m.window.begin(inputs, task, y * p.stride - pad_y(p));
  Int block = task.first_block;
  for (; y < last; ++y) {
    write_inputs(p, arrays, task, plan, m, y * p.stride - pad_y(p), &left);
    m.window.advance(inputs, task, y, [&](Int slot, Int r) {
      m.row_of_slot[slot] = r;
      zero(m.d_keys + slot * m.window.key_row, m.window.key_row);
      zero(m.d_values + slot * m.window.value_row, m.window.value_row);
    });
    read_outputs(p, arrays, task, y, m);
    bool own = task.first_row <= y && y < task.last_row;
    differentiate_row<SIMILARITY, SCALAR>(p, m, rows, own);
    if (!own) continue;
    write_own(p, arrays, task, m, y);
    if (y + 1 < block_row(p, plan, block + 1)) continue;
    Int place = (task.image * plan.blocks + block++) * p.groups + task.first_group;
    write_prior(p, m, arrays.d_prior + place * p.kernel_height * p.kernel_width);
    zero(m.d_prior, m.prior_floats);
  }
  write_inputs(p, arrays, task, plan, m, p.height, &left);
}

// Calls body(Constant<similarity>, Constant<D is 1>).
template <typename Body>
void with_options(const Problem& p, Body body) {
  auto with_depth = [&](auto similarity) {
    p.depth == 1 ? body(similarity, Constant<true>{}) : body(similarity, Constant<false>{});
  };
  if (p.similarity == SQUARED_DIFFERENCE) with_depth(Constant<SQUARED_DIFFERENCE>{});
  if (p.similarity == ABSOLUTE_DIFFERENCE) with_depth(Constant<ABSOLUTE_DIFFERENCE>{});
  if (p.similarity == MULTIPLICATION) with_depth(Constant<MULTIPLICATION>{});
}

void forward(const Problem& p, const ForwardArrays& arrays, const Task& task, float* memory) {
  with_options(p, [&](auto similarity, auto scalar) {
    forward_task<decltype(similarity)::value, decltype(scalar)::value>(p, arrays, task, memory);
  });
}

void backward(const Problem& p, const BackwardArrays& arrays, const Plan& plan, const Task& task,
              float* memory) {
  with_options(p, [&](auto similarity, auto scalar) {
    backward_task<decltype(similarity)::value, decltype(scalar)::value>(p, arrays, plan, task, memory);
  });
}

Int forward_memory(const Problem& p) {
  return ForwardMemory(p, make_plan(p, 1).chunk, nullptr).arena.used();
}

Int backward_memory(const Problem& p) {
  return BackwardMemory(p, make_plan(p, 1).chunk, nullptr).arena.used();
}

}  // namespace

extern const Kernels INSTRUCTIONS;
const Kernels INSTRUCTIONS = {forward_memory, backward_memory, forward, backward};
