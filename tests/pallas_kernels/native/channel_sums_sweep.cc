// Runs the means over pixels on random problems under a sanitizer, and compares them with plain loops
// in double precision:  channel_sums_sweep PROBLEMS SEED
//
// Every array has exactly the elements that it should have, and each task runs in a thread of three.
#include <cmath>
#include <cstdlib>
#include <thread>
#include <vector>

#include "channel_sums.h"
#include "parallel.h"
#include "random_arrays.h"

extern const SumKernels kernels_under_test;

namespace {

// Runs a pass on three threads; returns both means.
template <typename Work>
Floats run(const Pixels& p, Work work) {
  const Int tasks = p.groups * sum_pieces(p);
  Floats sums(tasks * sum_floats(p), NAN), means(p.groups * SUMS * p.channels, NAN);
  std::vector<std::thread> threads;
  run_tasks(tasks, 3, [&](auto task) { threads.emplace_back(task); },
            [&](Int task, Int) { work(task, sums.data()); });
  for (std::thread& thread : threads) thread.join();
  average(p, sums.data(), means.data(), means.data() + p.groups * p.channels);
  return means;
}

bool check(const Pixels& p) {
  const Int all = p.groups * p.pixels * p.channels;
  const Floats x = eighths(all), gradient = eighths(all), pivot = eighths(p.channels);
  const Floats gain = eighths(p.groups * p.channels), offset = eighths(p.groups * p.channels);
  bool fine = true;
  for (bool relu : {false, true}) {
    Doubles moments(p.groups * SUMS * p.channels), products(moments.size());
    for (Int i = 0; i < all; ++i) {
      const Int c = i % p.channels, group = i / p.channels / p.pixels, own = group * p.channels + c;
      const Int first = own, second = own + p.groups * p.channels;
      const double centred = double(x[i]) - pivot[c], share = 1.0 / double(p.pixels);
      moments[first] += centred * share;
      moments[second] += centred * centred * share;
      if (relu && double(x[i]) * gain[own] + offset[own] <= 0) continue;
      products[first] += gradient[i] * share;
      products[second] += double(gradient[i]) * x[i] * share;
    }
    const GradientArrays from = {x.data(), gradient.data(), gain.data(), offset.data(), relu};
    fine &= close("moments", run(p, [&](Int task, float* sums) {
                    kernels_under_test.moments(p, x.data(), pivot.data(), sums, task);
                  }), moments, 1e-5);
    fine &= close(relu ? "products after a ReLU" : "products", run(p, [&](Int task, float* sums) {
                    kernels_under_test.products(p, from, sums, task);
                  }), products, 1e-5);
  }
  return fine;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  generator.seed(atol(arguments[2]));
  for (Int left = atol(arguments[1]); left > 0; --left) {
    const Pixels p = {draw(1, 3), draw(1, left % 20 ? 60 : 9000), draw(1, 70)};
    if (check(p)) continue;
    printf("sums: %ld groups of %ld pixels, %ld channels\n", long(p.groups), long(p.pixels),
           long(p.channels));
    return 1;
  }
  return 0;
}
