// Runs products of rows and a kernel on random problems under a sanitizer, and compares them with plain
// loops in double precision:  row_products_sweep PROBLEMS SEED
//
// Every array has exactly the elements that it should have, and each task runs in a thread of three.
#include <cmath>
#include <cstdlib>
#include <thread>
#include <vector>

#include "parallel.h"
#include "random_arrays.h"
#include "row_products.h"

extern const ProductKernels kernels_under_test;

namespace {

template <typename Work>
void run(Int tasks, Work work) {
  std::vector<std::thread> threads;
  run_tasks(tasks, 3, [&](auto task) { threads.emplace_back(task); },
            [&](Int task, Int) { work(task); });
  for (std::thread& thread : threads) thread.join();
}

bool check(const Product& p, bool normalized, bool residual) {
  const Floats x = normal(p.rows * p.depth), kernel = normal(p.depth * p.columns);
  const Floats gain = normal(p.columns), offset = normal(p.columns);
  const Floats more = normal(p.rows * p.columns);
  Doubles want(p.rows * p.columns);
  for (Int row = 0; row < p.rows; ++row)
    for (Int c = 0; c < p.columns; ++c) {
      double sum = 0;
      for (Int k = 0; k < p.depth; ++k)
        sum += double(x[row * p.depth + k]) * kernel[p.transposed ? c * p.depth + k : k * p.columns + c];
      if (normalized) sum = sum * gain[c] + offset[c];
      if (residual) sum += more[row * p.columns + c];
      want[row * p.columns + c] = p.relu && sum < 0 ? 0 : sum;
    }
  Floats packed(packed_floats(p), NAN), out(want.size(), NAN);
  const ProductArrays arrays = {x.data(), kernel.data(), normalized ? gain.data() : nullptr,
                                normalized ? offset.data() : nullptr,
                                residual ? more.data() : nullptr, packed.data(), out.data()};
  const Int panels = kernels_under_test.panels(p);
  run(panels, [&](Int panel) { kernels_under_test.pack(p, arrays, panel); });
  run(product_tasks(p, panels), [&](Int task) { kernels_under_test.multiply(p, arrays, task); });
  return close("product", out, want, 1e-5);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  generator.seed(atol(arguments[2]));
  for (Int left = atol(arguments[1]); left > 0; --left) {
    const bool deep = left % 20 == 0;
    const Product p = {draw(1, 150), draw(1, deep ? 2500 : 70), draw(1, deep ? 70 : 250),
                       draw(0, 1) == 1, draw(0, 1) == 1};
    if (check(p, draw(0, 1), draw(0, 1))) continue;
    printf("row product: %ld rows, depth %ld, %ld columns, transposed %d, relu %d\n", long(p.rows),
           long(p.depth), long(p.columns), p.transposed, p.relu);
    return 1;
  }
  return 0;
}
