// Runs the gradients of kernels on random problems under a sanitizer, and compares them with plain
// loops in double precision:  weight_gradients_sweep PROBLEMS SEED
//
// Every array has exactly the elements that it should have, and each task runs in a thread of three.
#include <cmath>
#include <cstdlib>
#include <thread>
#include <vector>

#include "parallel.h"
#include "random_arrays.h"
#include "weight_gradients.h"

extern const WeightKernels kernels_under_test;

namespace {

template <typename Work>
void run(Int tasks, Work work) {
  std::vector<std::thread> threads;
  run_tasks(tasks, 3, [&](auto task) { threads.emplace_back(task); }, work);
  for (std::thread& thread : threads) thread.join();
}

bool check(const Weights& w, Int threads) {
  const WeightCut cut = make_weight_cut(w, threads);
  const Int size = w.inputs * w.outputs, memory = weight_memory(w, cut);
  const Floats x = normal(w.pixels * w.inputs), gradient = normal(w.pixels * w.outputs);
  Floats result(size, NAN), sums((cut.pieces - 1) * size, NAN);
  std::vector<Floats> own(3, Floats(memory, NAN));
  const WeightArrays arrays = {x.data(), gradient.data(), result.data(), sums.data()};
  run(weight_tasks(cut), [&](Int task, Int worker) {
    kernels_under_test.multiply(w, cut, arrays, task, own[worker].data());
  });
  if (cut.pieces > 1)
    run(divide_up(size, ADDED),
        [&](Int task, Int) { kernels_under_test.add(w, cut, arrays, task); });
  Doubles want(size);
  for (Int pixel = 0; pixel < w.pixels; ++pixel)
    for (Int i = 0; i < w.inputs; ++i)
      for (Int o = 0; o < w.outputs; ++o)
        want[i * w.outputs + o] +=
            double(x[pixel * w.inputs + i]) * gradient[pixel * w.outputs + o];
  return close("gradient of a kernel", result, want, 1e-5);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  generator.seed(atol(arguments[2]));
  for (Int left = atol(arguments[1]); left > 0; --left) {
    const Int most_channels = left % 10 ? 60 : 600;
    const Weights w = {draw(1, left % 20 == 1 ? 9000 : 300), draw(1, most_channels),
                       draw(1, left % 20 == 1 ? 60 : most_channels)};
    const Int threads = draw(1, 8);
    if (check(w, threads)) continue;
    printf("%ld pixels, %ld inputs, %ld outputs, cut for %ld threads\n", long(w.pixels),
           long(w.inputs), long(w.outputs), long(threads));
    return 1;
  }
  return 0;
}
