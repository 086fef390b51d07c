// Runs the kernels on random problems under a sanitizer, and compares them with plain loops in
// double precision:
//
//     sweep PROBLEMS SEED             random problems
//     sweep sizes softmax scale ...   one problem: the fields of Problem in order
//
// Every array has exactly the elements that it should have, on the heap, so that AddressSanitizer
// sees an access beyond it. The tasks run on threads that start for each call, so that
// ThreadSanitizer sees two of them touch one element.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "parallel.h"
#include "random_arrays.h"

extern const Kernels kernels_under_test;

namespace {

// Numbers that bfloat16 can hold, so that narrow arrays have the same.
Floats narrow_normal(Int count) {
  Floats found = normal(count);
  for (float& x : found) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0xffff0000;
    memcpy(&x, &bits, sizeof bits);
  }
  return found;
}

// An array of exactly `count` elements, as the kernels are handed it.
class Elements {
 public:
  // All NaN: what is read before it is written, or never written, shows in the results.
  Elements(Int count, bool narrow) : count_(count), array_{malloc(count * (narrow ? 2 : 4)), narrow} {
    memset(array_.data, 0xff, count * (narrow ? 2 : 4));
  }
  Elements(const Floats& values, bool narrow) : Elements(Int(values.size()), narrow) {
    for (Int i = 0; i < count_; ++i) {
      if (narrow) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        ((uint16_t*)array_.data)[i] = uint16_t(bits >> 16);
      } else {
        ((float*)array_.data)[i] = values[i];
      }
    }
  }
  Elements(const Elements&) = delete;
  ~Elements() { free(array_.data); }
  Array array() const { return array_; }
  float* floats() const { return (float*)array_.data; }
  double at(Int i) const {
    if (!array_.narrow) return floats()[i];
    uint32_t bits = uint32_t(((uint16_t*)array_.data)[i]) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  bool narrow() const { return array_.narrow; }
  Int count() const { return count_; }

 private:
  Int count_;
  Array array_;
};

struct Results {
  Doubles out, d_query, d_key, d_value, d_prior;
};

// Calls visit(pixel of the output, pixel of the input, tap) for the taps inside the image.
void for_taps(const Problem& p, Int image, Int y, Int x, const std::function<void(Int, Int, Int)>& visit) {
  Int target = (image * p.out_height + y) * p.out_width + x;
  for (Int a = 0; a < p.kernel_height; ++a) {
    for (Int b = 0; b < p.kernel_width; ++b) {
      Int row = y * p.stride + p.dilation * (a - p.kernel_height / 2);
      Int column = x * p.stride + p.dilation * (b - p.kernel_width / 2);
      if (row >= 0 && row < p.height && column >= 0 && column < p.width)
        visit(target, (image * p.height + row) * p.width + column, a * p.kernel_width + b);
    }
  }
}

double phi(const Problem& p, double q, double k) {
  double d = q - k;
  return p.scale * (p.similarity == MULTIPLICATION       ? q * k
                    : p.similarity == SQUARED_DIFFERENCE ? -d * d
                                                         : -fabs(d));
}

// The derivative of phi by q; that by k is its negative, or q.
double slope(const Problem& p, double q, double k) {
  double d = q - k;
  return p.scale * (p.similarity == MULTIPLICATION       ? k
                    : p.similarity == SQUARED_DIFFERENCE ? -2 * d
                                                         : (d >= 0 ? -1 : 1));
}

Results reference(const Problem& p, const Floats& query, const Floats& key, const Floats& value,
                  const Floats& prior, const Floats& d_out) {
  Results r{Doubles(d_out.size()), Doubles(query.size()), Doubles(key.size()), Doubles(value.size()),
            Doubles(prior.size())};
  Int taps = p.kernel_height * p.kernel_width, m = p.channels_per_group;
  for (Int n = 0; n < p.batch * p.out_height * p.out_width * p.groups; ++n) {
    Int g = n % p.groups, x = n / p.groups % p.out_width, y = n / p.groups / p.out_width % p.out_height;
    Int image = n / p.groups / p.out_width / p.out_height, first = g * m;
    Int prior_of = (image * p.priors / p.batch * p.groups + g) * taps;
    Int channels = least(m, p.channels - first);
    Doubles logits(taps), weights(taps), d_weights(taps);
    double largest = -INFINITY, sum = 0, dot = 0;
    for_taps(p, image, y, x, [&](Int t, Int s, Int tap) {
      logits[tap] = prior[prior_of + tap];
      for (Int d = 0; d < p.depth; ++d)
        logits[tap] += phi(p, query[(t * p.groups + g) * p.depth + d], key[(s * p.groups + g) * p.depth + d]);
      largest = std::max(largest, logits[tap]);
    });
    for_taps(p, image, y, x, [&](Int, Int, Int tap) { sum += exp(logits[tap] - largest); });
    for_taps(p, image, y, x, [&](Int t, Int s, Int tap) {
      weights[tap] = p.softmax ? exp(logits[tap] - largest) / sum : logits[tap];
      for (Int c = first; c < first + channels; ++c) {
        double g_c = d_out[t * p.channels + c], v = value[s * p.channels + c];
        r.out[t * p.channels + c] += weights[tap] * v;
        r.d_value[s * p.channels + c] += weights[tap] * g_c;
        d_weights[tap] += g_c * v;
      }
      dot += weights[tap] * d_weights[tap];
    });
    for_taps(p, image, y, x, [&](Int t, Int s, Int tap) {
      double d_logit = p.softmax ? weights[tap] * (d_weights[tap] - dot) : d_weights[tap];
      r.d_prior[prior_of + tap] += d_logit;
      for (Int d = 0; d < p.depth; ++d) {
        Int i = (t * p.groups + g) * p.depth + d, j = (s * p.groups + g) * p.depth + d;
        double by_q = slope(p, query[i], key[j]);
        r.d_query[i] += d_logit * by_q;
        r.d_key[j] += d_logit * (p.similarity == MULTIPLICATION ? p.scale * query[i] : -by_q);
      }
    });
  }
  return r;
}

Problem random_problem() {
  Problem p{};
  p.batch = draw(1, 3);
  p.height = draw(1, draw(0, 3) ? 12 : 40);
  p.width = draw(1, draw(0, 3) ? 12 : 40);
  p.channels_per_group = draw(1, draw(0, 3) ? 9 : 19);
  p.channels = draw(1, draw(0, 2) ? 20 : 12 * p.channels_per_group);
  p.groups = divide_up(p.channels, p.channels_per_group);
  p.depth = draw(0, 1) ? 1 : draw(1, 4);
  p.kernel_height = 2 * draw(0, 4) + 1;
  p.kernel_width = 2 * draw(0, 4) + 1;
  p.stride = draw(1, 4);
  p.dilation = draw(1, 3);
  p.priors = draw(0, 1) ? 1 : p.batch;
  p.similarity = draw(0, 2);
  p.inputs = draw(0, 1) ? 0 : draw(1, 4);
  p.means = draw(0, 1) ? 1 : p.batch;
  p.softmax = draw(0, 2);
  p.scale = draw(0, 1) ? 1.0f : -0.3f;
  p.out_height = (p.height - 1) / p.stride + 1;
  p.out_width = (p.width - 1) / p.stride + 1;
  return p;
}

// The images of a problem, and the values that follow from them.
struct Image {
  Floats x, mean, weights, bias, value;

  explicit Image(const Problem& p)
      : x(eighths(p.batch * p.height * p.width * p.inputs)),
        mean(eighths(p.means * p.inputs)),
        weights(eighths(p.means * p.inputs * p.channels)),
        bias(eighths(p.channels)),
        value(p.batch * p.height * p.width * p.channels) {
    for (Int n = 0; n < Int(value.size()); ++n) {
      const Int c = n % p.channels, pixel = n / p.channels;
      const Int set = pixel / (p.height * p.width) * p.means / p.batch;
      double sum = bias[c];
      for (Int i = 0; i < p.inputs; ++i)
        sum += (double(x[pixel * p.inputs + i]) - mean[set * p.inputs + i]) *
               weights[(set * p.inputs + i) * p.channels + c];
      value[n] = std::max(sum, 0.0);
    }
  }
  // What the gradients of the values give: for each image, the sums of those before the ReLU, and of
  // their products with each channel.
  Doubles sums(const Problem& p, const Doubles& d_value) const {
    Doubles found(p.batch * (1 + p.inputs) * p.channels);
    for (Int n = 0; n < Int(value.size()); ++n) {
      const Int c = n % p.channels, pixel = n / p.channels, at = pixel / (p.height * p.width);
      if (value[n] <= 0) continue;
      double* total = &found[at * (1 + p.inputs) * p.channels + c];
      total[0] += d_value[n];
      for (Int i = 0; i < p.inputs; ++i)
        total[(1 + i) * p.channels] +=
            d_value[n] * (double(x[pixel * p.inputs + i]) - mean[at * p.means / p.batch * p.inputs + i]);
    }
    return found;
  }
  ImageArrays arrays() const { return {x.data(), mean.data(), weights.data(), bias.data()}; }
};

// Runs a pass on three threads. Each has as much memory as it may use, and no more.
template <typename Work>
void run(const Problem& p, Int floats, Work work) {
  const Plan plan = make_plan(p, 3);
  std::vector<Elements*> memory;
  for (int i = 0; i < 3; ++i) memory.push_back(new Elements(floats, false));
  std::vector<std::thread> threads;
  run_tasks(plan.tasks, 3, [&](auto task) { threads.emplace_back(task); },
            [&](Int task, Int worker) { work(plan, make_task(p, plan, task), memory[worker]->floats()); });
  for (std::thread& thread : threads) thread.join();
  for (Elements* part : memory) delete part;
}

bool close(const char* name, const Elements& got, const Doubles& want, double rounding) {
  Floats found(got.count());
  for (Int i = 0; i < got.count(); ++i) found[i] = got.at(i);
  return close(name, found, want, got.narrow() ? 1.0 / 128 : rounding);
}

bool check(const Problem& p) {
  Int pixels = p.batch * p.out_height * p.out_width, inputs = p.batch * p.height * p.width;
  Int taps = p.kernel_height * p.kernel_width;
  Floats query = narrow_normal(pixels * p.groups * p.depth);
  Floats key = narrow_normal(inputs * p.groups * p.depth);
  const Image image(p);
  Floats value = p.inputs ? image.value : narrow_normal(inputs * p.channels);
  Floats prior = narrow_normal(p.priors * p.groups * taps);
  Floats d_out = narrow_normal(pixels * p.channels);
  bool narrow = draw(0, 2) == 0;
  Results want = reference(p, query, key, value, prior, d_out);

  Elements q(query, narrow), k(key, narrow), v(value, narrow), bias(prior, false), g(d_out, narrow);
  Elements out(pixels * p.channels, narrow), exact(pixels * p.channels, false);
  Elements shift(p.softmax ? pixels * p.groups : 0, false);
  Elements factor(p.softmax ? pixels * p.groups : 0, false);
  for (const Elements* target : {&exact, &out}) {
    const ForwardArrays arrays = {q.array(), k.array(), v.array(), bias.floats(),
                                  target->array(), shift.floats(), factor.floats(), image.arrays()};
    run(p, kernels_under_test.forward_memory(p), [&](const Plan&, const Task& task, float* memory) {
      kernels_under_test.forward(p, arrays, task, memory);
    });
  }

  Int blocks = make_plan(p, 3).blocks;
  Elements dq(q.count(), narrow), dk(k.count(), narrow), dv(v.count(), narrow);
  Elements parts(p.batch * blocks * p.groups * taps, false), dp(bias.count(), false);
  const Int sum_size = (1 + p.inputs) * p.channels;
  Elements sums(p.inputs ? p.batch * blocks * sum_size : 0, false);
  const BackwardArrays arrays = {q.array(), k.array(), v.array(), bias.floats(), exact.floats(),
                                 g.array(), shift.floats(), factor.floats(), dq.array(),
                                 dk.array(), dv.array(), parts.floats(), image.arrays(),
                                 p.inputs ? sums.floats() : nullptr};
  run(p, kernels_under_test.backward_memory(p), [&](const Plan& plan, const Task& task, float* memory) {
    kernels_under_test.backward(p, arrays, plan, task, memory);
  });
  memset(dp.floats(), 0, sizeof(float) * dp.count());
  for (Int i = 0; i < parts.count(); ++i) {
    Int part = i / (p.groups * taps), prior_of = part / blocks * p.priors / p.batch;
    dp.floats()[prior_of * p.groups * taps + i % (p.groups * taps)] += parts.floats()[i];
  }
  Elements of_images(p.inputs ? p.batch * sum_size : 0, false);
  memset(of_images.floats(), 0, sizeof(float) * of_images.count());
  for (Int i = 0; i < sums.count(); ++i)
    of_images.floats()[i / sum_size / blocks * sum_size + i % sum_size] += sums.floats()[i];
  // Sums of up to some thousand products of normal numbers, in float32.
  bool fine = close("out", out, want.out, 1e-5);
  fine &= close("d_query", dq, want.d_query, 3e-5);
  fine &= close("d_key", dk, want.d_key, 3e-5);
  fine &= close("d_value", dv, want.d_value, 1e-5);
  if (p.inputs) fine &= close("sums", of_images, image.sums(p, want.d_value), 3e-5);
  return fine & close("d_prior", dp, want.d_prior, 3e-5);
}

bool report(const Problem& p) {
  if (check(p)) return true;
  printf("problem: %ld x %ld x %ld x %ld, groups of %ld, D %ld, kernel %ld x %ld, stride %ld, "
         "dilation %ld, priors %ld, similarity %ld, images of %ld, %ld means, softmax %d, scale %g\n",
         long(p.batch), long(p.height), long(p.width), long(p.channels), long(p.channels_per_group),
         long(p.depth), long(p.kernel_height), long(p.kernel_width), long(p.stride),
         long(p.dilation), long(p.priors), long(p.similarity), long(p.inputs), long(p.means),
         p.softmax, p.scale);
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  constexpr int SIZES = offsetof(Problem, softmax) / sizeof(Int);
  if (count == 1 + SIZES + 2) {
    Int sizes[SIZES];
    for (int i = 0; i < SIZES; ++i) sizes[i] = atol(arguments[i + 1]);
    Problem p{};
    memcpy(&p, sizes, sizeof sizes);
    p.softmax = atol(arguments[SIZES + 1]);
    p.scale = atof(arguments[SIZES + 2]);
    return !report(p);
  }
  if (count != 3) return 2;
  generator.seed(atol(arguments[2]));
  for (Int left = atol(arguments[1]); left > 0; --left)
    if (!report(random_problem())) return 1;
  return 0;
}
