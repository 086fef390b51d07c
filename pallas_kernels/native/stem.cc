// Values, keys and queries of images in one pass over memory, and the sums of their gradients.
//
//     value = relu((x - mean) @ weights + bias)     key = value @ key     query = value @ query
//
// Images have few channels and values have many, at every pixel. What costs is to move the values, so
// they are written once in the forward pass, or not at all: image_rows.h computes them where a local
// relation needs them. In the backward pass they are computed again, and their
// gradient is read once. Nothing of its size is written:
//
//     d_value += d_key @ key^T + d_query @ query^T,  0 where the value is 0
//
// is summed as it is, times each channel of the image, and the values times d_key and d_query.
//
// Values have channels in the lanes of a vector. For keys and queries a row's values are computed a
// second time with pixels in the lanes, which is cheaper than to turn them. A task is a band of rows
// of one image. Its sums are over one row in registers, and then over the rows.
#include "stem.h"

#include "layout.h"
#include "window.h"

namespace {

Int whole(Int n) { return divide_up(n, 16) * 16; }

// A row of an image about its mean, a plane for each channel: all pixels, and every stride-th.
template <int INPUTS>
struct Planes {
  Int width, targets;
  Int row, target_row;
  float *pixels, *strided;

  Planes(const Stem& s, Arena& arena)
      : width(s.width),
        targets((s.width - 1) / s.stride + 1),
        row(divide_up(width, 32) * 32),  // whole vectors, and pairs of them
        target_row(divide_up(targets, 32) * 32) {
    pixels = arena.floats(INPUTS * row);
    strided = arena.floats(INPUTS * target_row);
  }

  void begin() {
    zero(pixels, INPUTS * row);  // lanes beyond the row are computed too
    zero(strided, INPUTS * target_row);
  }

  void read(const Stem& s, const StemInputs& from, Int image, Int y) {
    const float* mean = from.mean + image * s.groups / s.batch * INPUTS;
    const float* source = from.x + (image * s.height + y) * s.width * INPUTS;
    for (Int x = 0; x < width; ++x)
      for (int i = 0; i < INPUTS; ++i) pixels[i * row + x] = source[x * INPUTS + i] - mean[i];
    if (y % s.stride) return;
    for (int i = 0; i < INPUTS; ++i)
      for (Int x = 0; x < targets; ++x) strided[i * target_row + x] = pixels[i * row + x * s.stride];
  }
};

// Weights and bias of a vector of channels.
template <int INPUTS>
struct Linear {
  Floats weights[INPUTS], bias;
  Linear(const Stem& s, const StemInputs& from, Int image, Int channel) {
    const Int count = s.channels - channel;
    const float* own = from.weights + image * s.groups / s.batch * INPUTS * s.channels + channel;
    bias = load_some(from.bias + channel, count);
    for (int i = 0; i < INPUTS; ++i) weights[i] = load_some(own + i * s.channels, count);
  }
  INLINE Floats operator()(const float* pixel, Int row) const {
    Floats sum = bias;
    for (int i = 0; i < INPUTS; ++i) sum += weights[i] * pixel[i * row];
    return sum;
  }
};

// Vectors of pixels whose sums are in registers together. They share what is the same for all.
constexpr int TOGETHER = LANES == 16 ? 2 : 1;

// Writes COLUMNS columns of value @ projection for `count` pixels.
template <int INPUTS, int COLUMNS>
INLINE void project(const Stem& s, const StemInputs& from, Int image, const float* planes, Int row,
                    Int count, const float* projection, Int columns, float* target) {
  const Int channels = s.channels;
  const float* weights = from.weights + image * s.groups / s.batch * INPUTS * channels;
  for (Int x = 0; x < count; x += TOGETHER * LANES) {
    Floats pixels[INPUTS][TOGETHER], sums[COLUMNS][TOGETHER] = {};
    for (int i = 0; i < INPUTS; ++i)
      for (int n = 0; n < TOGETHER; ++n) pixels[i][n] = load(planes + i * row + x + n * LANES);
    for (Int c = 0; c < channels; ++c) {
      Floats values[TOGETHER];
      for (int n = 0; n < TOGETHER; ++n) {
        values[n] = all(from.bias[c]);
        for (int i = 0; i < INPUTS; ++i) values[n] += pixels[i][n] * weights[i * channels + c];
        values[n] = rectified(values[n]);
      }
      for (int k = 0; k < COLUMNS; ++k)
        for (int n = 0; n < TOGETHER; ++n) sums[k][n] += values[n] * projection[c * columns + k];
    }
    float turned[COLUMNS][TOGETHER * LANES];
    for (int k = 0; k < COLUMNS; ++k)
      for (int n = 0; n < TOGETHER; ++n) store(turned[k] + n * LANES, sums[k][n]);
    const Int found = least(TOGETHER * LANES, count - x);
    if (columns == COLUMNS) {
      gather(turned[0], TOGETHER * LANES, COLUMNS, found * COLUMNS, target + x * columns);
      continue;
    }
    for (Int lane = 0; lane < found; ++lane)
      for (int k = 0; k < COLUMNS; ++k) target[(x + lane) * columns + k] = turned[k][lane];
  }
}

template <int INPUTS>
void project_all(const Stem& s, const StemInputs& from, Int image, const float* planes, Int row,
                 Int count, const float* projection, Int columns, float* target) {
  in_blocks(columns, [&](Int k, auto n) {
    project<INPUTS, decltype(n)::value>(s, from, image, planes, row, count, projection + k, columns,
                                        target + k);
  });
}

template <int INPUTS>
void forward_task(const Stem& s, const StemInputs& from, const StemMaps& to, Int task, float* memory) {
  FlushDenormals flush;
  Arena arena(memory);
  Planes<INPUTS> planes(s, arena);
  planes.begin();
  const Int bands = stem_bands(s), image = task / bands, band = task % bands;
  const Int out_height = (s.height - 1) / s.stride + 1;
  for (Int y = band * s.height / bands; y < (band + 1) * s.height / bands; ++y) {
    const Int pixel = (image * s.height + y) * s.width;
    planes.read(s, from, image, y);
    for (Int c = 0; to.value && c < s.channels; c += LANES) {
      const Linear<INPUTS> linear(s, from, image, c);
      float* target = to.value + pixel * s.channels + c;
      for (Int x = 0; x < s.width; ++x, target += s.channels)
        store_some(target, rectified(linear(planes.pixels + x, planes.row)), s.channels - c);
    }
    project_all<INPUTS>(s, from, image, planes.pixels, planes.row, s.width, from.key, s.keys,
                        to.key + pixel * s.keys);
    if (y % s.stride) continue;
    const Int target = (image * out_height + y / s.stride) * planes.targets;
    project_all<INPUTS>(s, from, image, planes.strided, planes.target_row, planes.targets, from.query,
                        s.queries, to.query + target * s.queries);
  }
}

template <int INPUTS>
struct BackwardMemory {
  Arena arena;
  Planes<INPUTS> planes;
  Int channels;                 // filled up to whole vectors
  float *key, *query;           // (keys, channels) and (queries, channels)
  float* sums;                  // (stem_sums, channels)
  float *values, *d_values;     // of a vector of channels in a row: (pixels, LANES)

  BackwardMemory(const Stem& s, float* memory)
      : arena(memory), planes(s, arena), channels(whole(s.channels)) {
    key = arena.floats(s.keys * channels);
    query = arena.floats(s.queries * channels);
    sums = arena.floats(stem_sums(s) * channels);
    values = arena.floats(s.width * LANES);
    d_values = arena.floats(s.width * LANES);
  }

  void begin(const Stem& s, const StemInputs& from) {
    planes.begin();
    turn(from.key, s.channels, s.keys, key);
    turn(from.query, s.channels, s.queries, query);
    zero(sums, stem_sums(s) * channels);
  }

 private:
  void turn(const float* source, Int rows, Int columns, float* target) const {
    zero(target, columns * channels);
    for (Int c = 0; c < rows; ++c)
      for (Int k = 0; k < columns; ++k) target[k * channels + c] = source[c * columns + k];
  }
};

// Adds what COLUMNS columns of keys or queries contribute: to the gradients of the values of every
// `step`-th pixel, and to the sums of the projection.
template <int COLUMNS>
INLINE void add_columns(const float* d_columns, Int columns, Int count, Int step,
                        const float* projection, Int row, const float* values, float* d_values,
                        float* sums) {
  Floats weights[COLUMNS], totals[COLUMNS] = {};
  for (int k = 0; k < COLUMNS; ++k) weights[k] = load(projection + k * row);
  for (Int x = 0; x < count; ++x, d_columns += columns) {
    const Floats value = load(values + x * step * LANES);
    Floats d_value = load(d_values + x * step * LANES), odd = {};
    for (int k = 0; k < COLUMNS; ++k) {
      (k % 2 ? odd : d_value) += weights[k] * d_columns[k];
      totals[k] += value * d_columns[k];
    }
    store(d_values + x * step * LANES, d_value + odd);
  }
  for (int k = 0; k < COLUMNS; ++k) store(sums + k * row, load(sums + k * row) + totals[k]);
}

template <int INPUTS>
void backward_task(const Stem& s, const StemInputs& from, const StemGradients& gradients, float* sums,
                   Int task, float* memory) {
  FlushDenormals flush;
  BackwardMemory<INPUTS> m(s, memory);
  m.begin(s, from);
  const Planes<INPUTS>& planes = m.planes;
  const Int bands = stem_bands(s), image = task / bands, band = task % bands;
  const Int out_height = (s.height - 1) / s.stride + 1, row = m.channels;
  auto add = [&](const float* d_columns, Int columns, Int count, Int step, const float* projection,
                 Int first, Int c) {
    in_blocks(columns, [&](Int k, auto n) {
      add_columns<decltype(n)::value>(d_columns + k, columns, count, step,
                                      projection + k * row + c, row, m.values, m.d_values,
                                      m.sums + (first + k) * row + c);
    });
  };
  for (Int y = band * s.height / bands; y < (band + 1) * s.height / bands; ++y) {
    const Int pixel = (image * s.height + y) * s.width;
    const Int target = (image * out_height + y / s.stride) * planes.targets;
    m.planes.read(s, from, image, y);
    for (Int c = 0; c < s.channels; c += LANES) {
      const Linear<INPUTS> linear(s, from, image, c);
      for (Int x = 0; x < s.width; ++x)
        store(m.values + x * LANES, rectified(linear(planes.pixels + x, planes.row)));
      const float* source = gradients.value + pixel * s.channels + c;
      for (Int x = 0; gradients.value && x < s.width; ++x, source += s.channels) {
        store(m.d_values + x * LANES, load_some(source, s.channels - c));
        fetch_ahead(source);
      }
      if (!gradients.value) zero(m.d_values, s.width * LANES);
      add(gradients.key + pixel * s.keys, s.keys, s.width, 1, m.key, 1 + INPUTS, c);
      if (y % s.stride == 0)
        add(gradients.query + target * s.queries, s.queries, planes.targets, s.stride, m.query,
            1 + INPUTS + s.keys, c);
      Floats totals[1 + INPUTS] = {};
      for (Int x = 0; x < s.width; ++x) {
        Floats d = load(m.values + x * LANES) > 0.0f ? load(m.d_values + x * LANES) : Floats{};
        totals[0] += d;
        for (int i = 0; i < INPUTS; ++i) totals[1 + i] += d * planes.pixels[i * planes.row + x];
      }
      for (int i = 0; i < 1 + INPUTS; ++i)
        store(m.sums + i * row + c, load(m.sums + i * row + c) + totals[i]);
    }
  }
  for (Int i = 0; i < stem_sums(s); ++i)
    memcpy(sums + (task * stem_sums(s) + i) * s.channels, m.sums + i * row, sizeof(float) * s.channels);
}

// Calls body(Constant<inputs>).
template <typename Body>
auto with_inputs(const Stem& s, Body body) {
  switch (s.inputs) {
    case 1: return body(Constant<1>{});
    case 2: return body(Constant<2>{});
    case 3: return body(Constant<3>{});
    default: return body(Constant<MAX_STEM_INPUTS>{});
  }
}

void forward(const Stem& s, const StemInputs& from, const StemMaps& to, Int task, float* memory) {
  with_inputs(s, [&](auto n) { forward_task<decltype(n)::value>(s, from, to, task, memory); });
}

void backward(const Stem& s, const StemInputs& from, const StemGradients& gradients, float* sums,
              Int task, float* memory) {
  with_inputs(s, [&](auto n) {
    backward_task<decltype(n)::value>(s, from, gradients, sums, task, memory);
  });
}

Int forward_memory(const Stem& s) {
  return with_inputs(s, [&](auto n) {
    Arena arena(nullptr);
    Planes<decltype(n)::value> planes(s, arena);
    return arena.used();
  });
}

Int backward_memory(const Stem& s) {
  return with_inputs(
      s, [&](auto n) { return BackwardMemory<decltype(n)::value>(s, nullptr).arena.used(); });
}

}  // namespace

extern const StemKernels INSTRUCTIONS;
const StemKernels INSTRUCTIONS = {forward_memory, backward_memory, forward, backward};
