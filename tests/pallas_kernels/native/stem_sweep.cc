// Runs the stem's kernels on random problems under a sanitizer, and compares them with plain loops in
// double precision:  stem_sweep PROBLEMS SEED
//
// Every array has exactly the elements that it should have, and each task runs in a thread of three.
#include <cmath>
#include <cstdlib>
#include <thread>
#include <vector>

#include "parallel.h"
#include "random_arrays.h"
#include "stem.h"

extern const StemKernels kernels_under_test;

namespace {

Stem random_stem() {
  Stem s{};
  s.groups = draw(1, 2);
  s.batch = s.groups * draw(1, 2);
  s.height = draw(1, 70);
  s.width = draw(1, 40);
  s.inputs = draw(1, MAX_STEM_INPUTS);
  s.channels = draw(1, 70);
  s.keys = draw(1, 17);
  s.queries = draw(1, 17);
  s.stride = draw(1, 3);
  return s;
}

// Runs a pass on three threads. Each has as much memory as it may use, and no more.
template <typename Work>
void run(const Stem& s, Int needed, Work work) {
  std::vector<Floats> memory(3, Floats(needed, NAN));
  std::vector<std::thread> threads;
  run_tasks(s.batch * stem_bands(s), 3, [&](auto task) { threads.emplace_back(task); },
            [&](Int task, Int worker) { work(task, memory[worker].data()); });
  for (std::thread& thread : threads) thread.join();
}

bool check(const Stem& s) {
  const Int rows = (s.height - 1) / s.stride + 1, columns = (s.width - 1) / s.stride + 1;
  const Int pixels = s.batch * s.height * s.width, targets = s.batch * rows * columns;
  const Int sums = stem_sums(s), parts = s.batch * stem_bands(s);
  const Floats x = eighths(pixels * s.inputs), mean = eighths(s.groups * s.inputs);
  const Floats weights = eighths(s.groups * s.inputs * s.channels), bias = eighths(s.channels);
  const Floats key = normal(s.channels * s.keys), query = normal(s.channels * s.queries);
  // Without its gradient and without the value itself, in half of the problems.
  const bool valued = draw(0, 1);
  const Floats d_value = valued ? normal(pixels * s.channels) : Floats(pixels * s.channels, 0);
  const Floats d_key = normal(pixels * s.keys);
  const Floats d_query = normal(targets * s.queries);

  Doubles value(pixels * s.channels), keys(pixels * s.keys), queries(targets * s.queries);
  Doubles want(parts * sums * s.channels);
  for (Int pixel = 0; pixel < pixels; ++pixel) {
    const Int image = pixel / s.width / s.height, y = pixel / s.width % s.height, column = pixel % s.width;
    const Int group = image * s.groups / s.batch, bands = stem_bands(s);
    const bool strided = y % s.stride == 0 && column % s.stride == 0;
    const Int target = (image * rows + y / s.stride) * columns + column / s.stride;
    Int band = 0;
    while ((band + 1) * s.height / bands <= y) ++band;
    double* total = &want[(image * bands + band) * sums * s.channels];
    for (Int c = 0; c < s.channels; ++c) {
      double linear = bias[c], d = d_value[pixel * s.channels + c];
      for (Int i = 0; i < s.inputs; ++i)
        linear += (double(x[pixel * s.inputs + i]) - mean[group * s.inputs + i]) *
                  weights[(group * s.inputs + i) * s.channels + c];
      const double v = std::max(linear, 0.0);
      value[pixel * s.channels + c] = v;
      for (Int k = 0; k < s.keys; ++k) {
        keys[pixel * s.keys + k] += v * key[c * s.keys + k];
        d += double(d_key[pixel * s.keys + k]) * key[c * s.keys + k];
        total[(1 + s.inputs + k) * s.channels + c] += v * d_key[pixel * s.keys + k];
      }
      for (Int k = 0; strided && k < s.queries; ++k) {
        queries[target * s.queries + k] += v * query[c * s.queries + k];
        d += double(d_query[target * s.queries + k]) * query[c * s.queries + k];
        total[(1 + s.inputs + s.keys + k) * s.channels + c] += v * d_query[target * s.queries + k];
      }
      if (linear <= 0) continue;
      total[c] += d;
      for (Int i = 0; i < s.inputs; ++i)
        total[(1 + i) * s.channels + c] += d * (x[pixel * s.inputs + i] - mean[group * s.inputs + i]);
    }
  }

  const StemInputs inputs = {x.data(), mean.data(), weights.data(), bias.data(), key.data(), query.data()};
  Floats value_found(value.size(), NAN), keys_found(keys.size(), NAN);
  Floats queries_found(queries.size(), NAN), found(want.size(), NAN);
  const StemMaps maps = {valued ? value_found.data() : nullptr, keys_found.data(), queries_found.data()};
  const StemGradients gradients = {valued ? d_value.data() : nullptr, d_key.data(), d_query.data()};
  run(s, kernels_under_test.forward_memory(s), [&](Int task, float* memory) {
    kernels_under_test.forward(s, inputs, maps, task, memory);
  });
  run(s, kernels_under_test.backward_memory(s), [&](Int task, float* memory) {
    kernels_under_test.backward(s, inputs, gradients, found.data(), task, memory);
  });
  bool fine = !valued || close("value", value_found, value, 2e-5);
  fine &= close("key", keys_found, keys, 2e-5);
  fine &= close("query", queries_found, queries, 2e-5);
  return fine & close("sums", found, want, 2e-5);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  generator.seed(atol(arguments[2]));
  for (Int left = atol(arguments[1]); left > 0; --left) {
    const Stem s = random_stem();
    if (check(s)) continue;
    printf("stem: %ld x %ld x %ld x %ld, %ld channels, %ld keys, %ld queries, %ld groups, stride %ld\n",
           long(s.batch), long(s.height), long(s.width), long(s.inputs), long(s.channels),
           long(s.keys), long(s.queries), long(s.groups), long(s.stride));
    return 1;
  }
  return 0;
}
