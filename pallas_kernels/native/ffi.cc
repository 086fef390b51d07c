// The kernels as custom calls of XLA, and what Python asks the library directly.
#include <cstdlib>
#include <cstring>
#include <optional>

#include "channel_sums.h"
#include "parallel.h"
#include "row_products.h"
#include "stem.h"
#include "weight_gradients.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

extern const Kernels baseline_kernels;
extern const StemKernels baseline_stem;
extern const SumKernels baseline_channel_sums;
extern const WeightKernels baseline_weight_gradients;
extern const ProductKernels baseline_row_products;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
extern const StemKernels avx2_stem, avx512_stem;
extern const SumKernels avx2_channel_sums, avx512_channel_sums;
extern const WeightKernels avx2_weight_gradients, avx512_weight_gradients;
extern const ProductKernels avx2_row_products, avx512_row_products;
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  const StemKernels* stem;
  const SumKernels* sums;
  const WeightKernels* weights;
  const ProductKernels* products;
};

// The fastest that this processor has comes first.
const InstructionSet* instruction_sets() {
  static InstructionSet found[4] = {};
  static const bool filled = [] {
    int n = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      found[n++] = {"avx512", &avx512_kernels, &avx512_stem, &avx512_channel_sums,
                    &avx512_weight_gradients, &avx512_row_products};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found[n++] = {"avx2", &avx2_kernels, &avx2_stem, &avx2_channel_sums,
                    &avx2_weight_gradients, &avx2_row_products};
    found[n++] = {"sse2", &baseline_kernels, &baseline_stem, &baseline_channel_sums,
                  &baseline_weight_gradients, &baseline_row_products};
#else
    found[n++] = {"baseline", &baseline_kernels, &baseline_stem, &baseline_channel_sums,
                  &baseline_weight_gradients, &baseline_row_products};
#endif
    return true;
  }();
  (void)filled;
  return found;
}

std::atomic<Int> chosen_set{0};
std::atomic<Int> thread_limit{INT32_MAX};

const Kernels& kernels() { return *instruction_sets()[chosen_set].kernels; }
const StemKernels& stem_kernels() { return *instruction_sets()[chosen_set].stem; }
const SumKernels& sum_kernels() { return *instruction_sets()[chosen_set].sums; }
const ProductKernels& product_kernels() { return *instruction_sets()[chosen_set].products; }
const WeightKernels& weight_kernels() { return *instruction_sets()[chosen_set].weights; }

Array array(const ffi::AnyBuffer& buffer) {
  return {buffer.untyped_data(), buffer.element_type() == ffi::DataType::BF16};
}

// Null where XLA passes no memory, because an array is empty.
float* floats(const ffi::AnyBuffer& buffer) { return static_cast<float*>(buffer.untyped_data()); }

// `sizes` are the fields of Problem in order, but for softmax and scale.
Problem problem(const int64_t* sizes, bool softmax, float scale) {
  Problem p;
  memcpy(&p, sizes, offsetof(Problem, softmax));
  p.softmax = softmax;
  p.scale = scale;
  return p;
}

// How many threads may work, if each needs so many floats of `memory`.
Int count_workers(ffi::ThreadPool& pool, Int needed, ffi::Result<ffi::AnyBuffer>& memory) {
  Int room = memory->dimensions()[0] * memory->dimensions()[1] / needed;
  return least(least(room, most(1, pool.num_threads())), thread_limit);
}

// Each worker has a part of `memory` of its own.
template <typename Work>
ffi::Error run(ffi::ThreadPool& pool, Int tasks, Int needed, ffi::Result<ffi::AnyBuffer>& memory,
               Work work) {
  const Int workers = count_workers(pool, needed, memory);
  if (workers < 1) return ffi::Error::Internal("local relation: the memory for its tasks is too small");
  float* floats = memory->typed_data<float>();
  run_tasks(tasks, workers, [&](auto task) { pool.Schedule(std::move(task)); },
            [=](Int task, Int worker) { work(task, floats + worker * needed); });
  return ffi::Error::Success();
}

// Null for a result that is empty because nobody asked for it.
float* asked(ffi::Result<ffi::AnyBuffer>& result) {
  return result->element_count() ? floats(*result) : nullptr;
}

using Sizes = ffi::Span<const int64_t>;
using Result = ffi::Result<ffi::AnyBuffer>;

ffi::Error run_forward(ffi::ThreadPool& pool, const Problem& p, const ForwardArrays& arrays,
                       Result& memory) {
  const Kernels& k = kernels();
  const Int needed = k.forward_memory(p);
  const Plan plan = make_plan(p, count_workers(pool, needed, memory));
  return run(pool, plan.tasks, needed, memory, [=, &k](Int task, float* own) {
    k.forward(p, arrays, make_task(p, plan, task), own);
  });
}

ffi::Error run_backward(ffi::ThreadPool& pool, const Problem& p, const BackwardArrays& arrays,
                        Result& memory) {
  const Kernels& k = kernels();
  const Int needed = k.backward_memory(p);
  const Plan plan = make_plan(p, count_workers(pool, needed, memory));
  return run(pool, plan.tasks, needed, memory, [=, &k](Int task, float* own) {
    k.backward(p, arrays, plan, make_task(p, plan, task), own);
  });
}

ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                   ffi::AnyBuffer value, ffi::AnyBuffer prior, Result out, Result shift,
                   Result factor, Result memory, Sizes sizes, bool softmax, float scale) {
  const ForwardArrays arrays = {array(query), array(key), array(value), floats(prior),
                                array(*out), floats(*shift), floats(*factor), {}};
  return run_forward(pool, problem(sizes.begin(), softmax, scale), arrays, memory);
}

ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                    ffi::AnyBuffer value, ffi::AnyBuffer prior, ffi::AnyBuffer out,
                    ffi::AnyBuffer d_out, ffi::AnyBuffer shift, ffi::AnyBuffer factor,
                    Result d_query, Result d_key, Result d_value, Result d_prior, Result memory,
                    Sizes sizes, bool softmax, float scale) {
  const BackwardArrays arrays = {array(query), array(key), array(value), floats(prior),
                                 floats(out), array(d_out), floats(shift), floats(factor),
                                 array(*d_query), array(*d_key), array(*d_value),
                                 floats(*d_prior), {}, nullptr};
  return run_backward(pool, problem(sizes.begin(), softmax, scale), arrays, memory);
}

// The same with values that are computed from an image.
ffi::Error image_forward(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                         ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer weights,
                         ffi::AnyBuffer bias, ffi::AnyBuffer prior, Result out, Result shift,
                         Result factor, Result memory, Sizes sizes, bool softmax, float scale) {
  const ForwardArrays arrays = {array(query), array(key), {}, floats(prior), array(*out),
                                floats(*shift), floats(*factor),
                                {floats(x), floats(mean), floats(weights), floats(bias)}};
  return run_forward(pool, problem(sizes.begin(), softmax, scale), arrays, memory);
}

ffi::Error image_backward(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                          ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer weights,
                          ffi::AnyBuffer bias, ffi::AnyBuffer prior, ffi::AnyBuffer out,
                          ffi::AnyBuffer d_out, ffi::AnyBuffer shift, ffi::AnyBuffer factor,
                          Result d_query, Result d_key, Result d_value, Result d_prior,
                          Result sums, Result memory, Sizes sizes, bool softmax, float scale) {
  const BackwardArrays arrays = {array(query), array(key), {}, floats(prior),
                                 floats(out), array(d_out), floats(shift), floats(factor),
                                 array(*d_query), array(*d_key), {asked(d_value), false},
                                 floats(*d_prior),
                                 {floats(x), floats(mean), floats(weights), floats(bias)},
                                 asked(sums)};
  return run_backward(pool, problem(sizes.begin(), softmax, scale), arrays, memory);
}

Stem stem(const Sizes& sizes) {
  Stem s;
  memcpy(&s, sizes.begin(), sizeof s);
  return s;
}

StemInputs stem_inputs(const ffi::AnyBuffer& x, const ffi::AnyBuffer& mean,
                       const ffi::AnyBuffer& weights, const ffi::AnyBuffer& bias,
                       const ffi::AnyBuffer& key, const ffi::AnyBuffer& query) {
  return {floats(x), floats(mean), floats(weights), floats(bias), floats(key), floats(query)};
}

ffi::Error stem_forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer mean,
                        ffi::AnyBuffer weights, ffi::AnyBuffer bias, ffi::AnyBuffer key,
                        ffi::AnyBuffer query, Result value, Result keys, Result queries,
                        Result memory, Sizes sizes) {
  const Stem s = stem(sizes);
  const StemInputs inputs = stem_inputs(x, mean, weights, bias, key, query);
  const StemMaps maps = {asked(value), floats(*keys), floats(*queries)};
  const StemKernels& k = stem_kernels();
  return run(pool, s.batch * stem_bands(s), k.forward_memory(s), memory,
             [=, &k](Int task, float* own) { k.forward(s, inputs, maps, task, own); });
}

ffi::Error stem_backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer mean,
                         ffi::AnyBuffer weights, ffi::AnyBuffer bias, ffi::AnyBuffer key,
                         ffi::AnyBuffer query, ffi::AnyBuffer d_value, ffi::AnyBuffer d_key,
                         ffi::AnyBuffer d_query, Result sums, Result memory, Sizes sizes) {
  const Stem s = stem(sizes);
  const StemInputs inputs = stem_inputs(x, mean, weights, bias, key, query);
  const StemGradients gradients = {d_value.element_count() ? floats(d_value) : nullptr,
                                   floats(d_key), floats(d_query)};
  float* parts = floats(*sums);
  const StemKernels& k = stem_kernels();
  return run(pool, s.batch * stem_bands(s), k.backward_memory(s), memory,
             [=, &k](Int task, float* own) { k.backward(s, inputs, gradients, parts, task, own); });
}

// `work` writes the sums of a task to where they begin in `memory`.
template <typename Work>
ffi::Error means(ffi::ThreadPool& pool, const Pixels& p, Result& first, Result& second,
                    Result& memory, Work work) {
  const Int tasks = p.groups * sum_pieces(p), needed = sum_floats(p);
  float* sums = floats(*memory);
  if (memory->element_count() < static_cast<size_t>(tasks * needed))
    return ffi::Error::Internal("channel sums: the memory for the sums is too small");
  run_tasks(tasks, least(most(1, pool.num_threads()), thread_limit),
            [&](auto task) { pool.Schedule(std::move(task)); }, [=](Int task, Int) { work(task, sums); });
  average(p, sums, floats(*first), floats(*second));
  return ffi::Error::Success();
}

Pixels pixels(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2]}; }

ffi::Error moments(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer pivot, Result first,
                   Result second, Result memory, Sizes sizes) {
  const Pixels p = pixels(sizes);
  const SumKernels& k = sum_kernels();
  const float *from = floats(x), *about = floats(pivot);
  return means(pool, p, first, second, memory,
                [=, &k](Int task, float* sums) { k.moments(p, from, about, sums, task); });
}

ffi::Error products(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gradient,
                    ffi::AnyBuffer gain, ffi::AnyBuffer offset, Result first, Result second,
                    Result memory, Sizes sizes, bool relu) {
  const Pixels p = pixels(sizes);
  const SumKernels& k = sum_kernels();
  const GradientArrays from = {floats(x), floats(gradient), floats(gain), floats(offset), relu};
  return means(pool, p, first, second, memory,
                [=, &k](Int task, float* sums) { k.products(p, from, sums, task); });
}

ffi::Error weight_gradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gradient,
                           Result result, Result sums, Result memory, Sizes sizes) {
  const Weights w = {sizes[0], sizes[1], sizes[2]};
  const WeightCut cut = {sizes[3], sizes[4], sizes[5]};
  const Int size = w.inputs * w.outputs;
  if (sums->element_count() < static_cast<size_t>((cut.pieces - 1) * size))
    return ffi::Error::Internal("weight gradients: the memory for the sums is too small");
  const WeightArrays arrays = {floats(x), floats(gradient), floats(*result), floats(*sums)};
  const WeightKernels& k = weight_kernels();
  ffi::Error error = run(pool, weight_tasks(cut), weight_memory(w, cut), memory,
                         [=, &k](Int task, float* own) { k.multiply(w, cut, arrays, task, own); });
  if (error.failure() || cut.pieces == 1) return error;
  return run(pool, divide_up(size, ADDED), 1, memory,
             [=, &k](Int task, float*) { k.add(w, cut, arrays, task); });
}

using Optional = std::optional<ffi::AnyBuffer>;

const float* floats(const Optional& buffer) { return buffer ? floats(*buffer) : nullptr; }

ffi::Error row_product(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, Optional gain,
                       Optional offset, Optional residual, Result out, Result memory, Sizes sizes,
                       bool transposed, bool relu) {
  const Product p = {sizes[0], sizes[1], sizes[2], transposed, relu};
  if (memory->element_count() < static_cast<size_t>(packed_floats(p)))
    return ffi::Error::Internal("row product: the memory for the kernel is too small");
  const ProductArrays arrays = {floats(x),        floats(kernel),  floats(gain), floats(offset),
                                floats(residual), floats(*memory), floats(*out)};
  const ProductKernels& k = product_kernels();
  const Int workers = least(most(1, pool.num_threads()), thread_limit), panels = k.panels(p);
  auto schedule = [&](auto task) { pool.Schedule(std::move(task)); };
  run_tasks(panels, workers, schedule, [=, &k](Int panel, Int) { k.pack(p, arrays, panel); });
  run_tasks(product_tasks(p, panels), workers, schedule,
            [=, &k](Int task, Int) { k.multiply(p, arrays, task); });
  return ffi::Error::Success();
}

}  // namespace

// What the library shows to the world.
#pragma GCC visibility push(default)

#define ARGUMENT Arg<ffi::AnyBuffer>()
#define OPTIONAL OptionalArg<ffi::AnyBuffer>()
#define RESULT Ret<ffi::AnyBuffer>()
#define OPTIONS Attr<Sizes>("sizes").Attr<bool>("softmax").Attr<float>("scale")

XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_forward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .RESULT.RESULT.RESULT.RESULT.OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_backward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .ARGUMENT.RESULT.RESULT.RESULT.RESULT.RESULT.OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_image_forward, image_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .RESULT.RESULT.RESULT.RESULT.OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_image_backward, image_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .RESULT.RESULT.RESULT.RESULT.RESULT.RESULT.OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_stem_forward, stem_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .RESULT.RESULT.RESULT.RESULT.Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_stem_backward, stem_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT
                                  .ARGUMENT.ARGUMENT.RESULT.RESULT.Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_moments, moments,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.RESULT.RESULT.RESULT.Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_products, products,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.ARGUMENT.ARGUMENT.RESULT.RESULT.RESULT
                                  .Attr<Sizes>("sizes").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_weight_gradient, weight_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.RESULT.RESULT.RESULT.Attr<Sizes>("sizes"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(lrnet_cpu_row_product, row_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .ARGUMENT.ARGUMENT.OPTIONAL.OPTIONAL.OPTIONAL.RESULT.RESULT
                                  .Attr<Sizes>("sizes").Attr<bool>("transposed").Attr<bool>("relu"));

extern "C" {

// The version of the interface that this library was compiled for.
int local_relation_ffi_major() { return XLA_FFI_API_MAJOR; }
int local_relation_ffi_minor() { return XLA_FFI_API_MINOR; }

// What the sources were when they were compiled (build.py).
const char* local_relation_sources() { return SOURCES; }

// How many blocks an image has, how many tasks there are at most, and the floats that a worker needs
// for each pass. Options beyond the sizes make no difference.
void local_relation_plan(const int64_t* sizes, int64_t* plan) {
  const Problem p = problem(sizes, true, 1.0f);
  const Plan finest = make_plan(p, INT32_MAX);
  plan[0] = finest.blocks;
  plan[1] = finest.tasks;
  plan[2] = kernels().forward_memory(p);
  plan[3] = kernels().backward_memory(p);
}

// For a stem: how many tasks there are, and the floats that a worker needs for each pass.
void local_relation_stem_plan(const int64_t* sizes, int64_t* plan) {
  Stem s;
  memcpy(&s, sizes, sizeof s);
  plan[0] = s.batch * stem_bands(s);
  plan[1] = stem_kernels().forward_memory(s);
  plan[2] = stem_kernels().backward_memory(s);
}

// How many floats the sums over pixels of all tasks are.
int64_t local_relation_channel_sums(const int64_t* sizes) {
  const Pixels p = {sizes[0], sizes[1], sizes[2]};
  return p.groups * sum_pieces(p) * sum_floats(p);
}

// For the gradient of a kernel: its cut for a number of threads, and the floats that a worker needs.
void local_relation_weight_plan(const int64_t* sizes, int64_t threads, int64_t* plan) {
  const Weights w = {sizes[0], sizes[1], sizes[2]};
  const WeightCut cut = make_weight_cut(w, threads);
  memcpy(plan, &cut, sizeof cut);
  plan[3] = weight_memory(w, cut);
}

// How many floats the packed kernel of a product is.
int64_t local_relation_row_product(const int64_t* sizes) {
  return packed_floats({sizes[0], sizes[1], sizes[2], false, false});
}

// Name of instruction set i of this processor, the fastest first; null after the last.
const char* local_relation_instruction_set(int64_t i) { return instruction_sets()[i].name; }

// For tests: what all later calls of the process use.
void local_relation_use(int64_t instruction_set, int64_t threads) {
  chosen_set = instruction_set;
  thread_limit = threads;
}
}

#pragma GCC visibility pop
