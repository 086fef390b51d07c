// Sums over the pixels of a batch, for the statistics of batch normalisation and for its gradient.
//
// Every array is read once. XLA would write differences and products to memory and read them back.
//
// A task is a piece of the pixels of a group. It takes four pixels at a time and adds what they
// contribute to sums that lie in the nearest cache. If the channels fill no whole vectors, the last
// vector overlaps the one before it; both find the same sums of what they share.
#include "channel_sums.h"

#include "vectors.h"

namespace {

constexpr Int PIXELS = 4;  // at a time

// Adds `summand(channel, pixel, &first, &second)` of all pixels of a task, for vectors of channels.
template <typename Summand>
INLINE void add_pixels(const Pixels& p, float* sums, Int task, Summand summand) {
  FlushDenormals flush;
  const Int pieces = sum_pieces(p), group = task / pieces, piece = task % pieces;
  const Int vectors = divide_up(p.channels, LANES), row = sum_floats(p) / SUMS;
  sums += task * sum_floats(p);
  for (Int i = 0; i < SUMS * row; ++i) sums[i] = 0;
  Int pixel = group * p.pixels + piece * p.pixels / pieces;
  const Int last = group * p.pixels + (piece + 1) * p.pixels / pieces;
  auto add = [&](auto count) {
    for (Int v = 0; v < vectors; ++v) {
      const Int channel = vector_start(p.channels, v);
      Floats first[PIXELS] = {}, second[PIXELS] = {};
      for (int i = 0; i < decltype(count)::value; ++i)
        summand(channel, pixel + i, &first[i], &second[i]);
      float* own = sums + v * LANES;
      store(own, load(own) + ((first[0] + first[1]) + (first[2] + first[3])));
      store(own + row, load(own + row) + ((second[0] + second[1]) + (second[2] + second[3])));
    }
    pixel += decltype(count)::value;
  };
  while (pixel + PIXELS <= last) add(Constant<PIXELS>{});
  while (pixel < last) add(Constant<1>{});
  // The last vector goes to where its channels are.
  const Int place = vector_start(p.channels, vectors - 1);
  for (Int i = 0; i < SUMS; ++i)
    store(sums + i * row + place, load(sums + i * row + (vectors - 1) * LANES));
}

// Calls body(load), where load(array, place) reads a vector of channels.
template <typename Body>
INLINE void with_vectors(const Pixels& p, Body body) {
  if (p.channels >= LANES)
    body([](const float* array, Int place) { return load(array + place); });
  else
    body([&](const float* array, Int place) { return load_some(array + place, p.channels); });
}

void moments(const Pixels& p, const float* x, const float* pivot, float* sums, Int task) {
  with_vectors(p, [&](auto read) {
    add_pixels(p, sums, task, [&](Int channel, Int pixel, Floats* first, Floats* second) {
      const Int place = pixel * p.channels + channel;
      fetch_ahead(x + place);
      *first = read(x, place) - read(pivot, channel);
      *second = *first * *first;
    });
  });
}

template <bool RELU>
INLINE void add_products(const Pixels& p, const GradientArrays& from, float* sums, Int task) {
  const Int own = task / sum_pieces(p) * p.channels;
  with_vectors(p, [&](auto read) {
    add_pixels(p, sums, task, [&](Int channel, Int pixel, Floats* first, Floats* second) {
      const Int place = pixel * p.channels + channel;
      fetch_ahead(from.x + place);
      fetch_ahead(from.gradient + place);
      const Floats x = read(from.x, place);
      Floats gradient = read(from.gradient, place);
      if (RELU) {
        const Floats linear = x * read(from.gain, own + channel) + read(from.offset, own + channel);
        gradient = linear > 0.0f ? gradient : Floats{};
      }
      *first = gradient;
      *second = gradient * x;
    });
  });
}

void products(const Pixels& p, const GradientArrays& from, float* sums, Int task) {
  from.relu ? add_products<true>(p, from, sums, task) : add_products<false>(p, from, sums, task);
}

}  // namespace

extern const SumKernels INSTRUCTIONS;
const SumKernels INSTRUCTIONS = {moments, products};
