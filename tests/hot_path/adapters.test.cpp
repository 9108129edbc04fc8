// Layers with adapters allocate nothing, counted at malloc.
#include <span>
#include <utility>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/model.hpp>
#include <pith/nn/linear.hpp>
#include <pith/peft.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/random_matrix.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;
using pith_test::AllocationScope;
using pith_test::random_matrix;
using pith_test::random_vector;

namespace {

constexpr Index adapted_in = 520, adapted_out = 600;

LoraAdapter<float> counted_lora(Index rank) {
  return {random_matrix<float>(rank, adapted_in, 2), random_matrix<float>(adapted_out, rank, 3), {}, random_vector<float>(adapted_out, 4)};
}

template <class L> void check_no_heap(L& layer, ExecutorRef executor) {
  for (const Index tokens : {1, 2, 40, 200}) {
    INFO(tokens << " tokens, " << executor.size() << " workers");
    const Matrix<float> x = random_matrix<float>(tokens, adapted_in, 5);
    Matrix<float> y(tokens, adapted_out), dx(tokens, adapted_in);
    Workspace ws(layer.workspace_bytes(tokens, executor.size()), executor);
    const AllocationScope scope;
    layer.forward(x, y, ws);
    layer.backward(y, dx, ws);
    CHECK(scope.count() == 0);
  }
}

}  // namespace

TEST_CASE("layers with adapters allocate nothing, forward or back", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Linear<float> base(random_matrix<float>(adapted_out, adapted_in, 1), random_vector<float>(adapted_out, 1));
  ThreadPool two(2);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(two)}) {
    LoraLinear lora(LinearView{base}, counted_lora(16));
    check_no_heap(lora, executor);
    LoraLinear stacked(lora, counted_lora(3));
    check_no_heap(stacked, executor);
    DoraLinear dora(LinearView{base}, LoraAdapter<float>(lora.adapter().down(), Matrix<float>(lora.adapter().up())),
                    Vector<float>(random_vector<float>(adapted_out, 6)));
    check_no_heap(dora, executor);
    const Matrix<float> a = random_matrix<float>(8, adapted_in, 7), b = random_matrix<float>(adapted_out, 8, 8);
    LoraLinear dylora(LinearView{base}, DyLoraAdapter<float>(a, b));
    dylora.adapter().set_rank(3);
    check_no_heap(dylora, executor);
  }
}

TEST_CASE("changing a rank or a scale, and growing within a capacity, allocate nothing", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Matrix<float> a = random_matrix<float>(8, 30, 1), b = random_matrix<float>(20, 8, 2);
  DyLoraAdapter<float> dylora(a, b);
  LoraAdapter<float> lora(a, b, {}, random_vector<float>(20, 3));
  IncreLoraAdapter<float> increlora(a, random_vector<float>(8, 4), b, {.capacity = 12, .add = 2});
  const Matrix<float> reserve_a = random_matrix<float>(2, 30, 5), reserve_b = random_matrix<float>(20, 2, 6);
  const AllocationScope scope;
  for (const Index rank : {1, 8, 5}) dylora.set_rank(rank);
  for (const float scale : {0.f, 1.f, -2.f}) lora.set_scale(scale);
  increlora.add_reserve(reserve_a, reserve_b);
  increlora.grow();
  increlora.add_reserve(reserve_a, reserve_b);
  increlora.silence_reserve();
  CHECK(scope.count() == 0);
}

TEST_CASE("an adapter for each row, and a bottleneck, allocate nothing", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Linear<float> base(random_matrix<float>(adapted_out, adapted_in, 1));
  const MultiLoraLinear<LinearView<float>> layer(LinearView{base}, {counted_lora(16), counted_lora(1), counted_lora(7)});
  const std::vector<Index> chosen{2, no_adapter, 0, 2, 2, 1, 0, 0, 0, 0, no_adapter, 2};
  const Matrix<float> x = random_matrix<float>(12, adapted_in, 2);
  Matrix<float> y(12, adapted_out);
  ThreadPool two(2);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(two)}) {
    Workspace ws(layer.workspace_bytes(12, executor.size()), executor);
    const AllocationScope scope;
    layer.forward(x, chosen, y, ws);
    CHECK(scope.count() == 0);
  }

  HoulsbyWeights<float> weights{Linear<float>(random_matrix<float>(64, adapted_in, 3)),
                                Linear<float>(random_matrix<float>(adapted_in, 64, 4))};
  weights.gate = random_vector<float>(adapted_in, 5);
  weights.before = weights.after = LayerNorm<float>(Vector<float>::Ones(adapted_in), Vector<float>::Zero(adapted_in));
  const HoulsbyAdapter<float> block(weights, HoulsbyOptions::pfeiffer());
  const LayerNorm<float> norm = *weights.after;
  Matrix<float> out(12, adapted_in);
  Workspace ws(block.workspace_bytes(12));
  const AllocationScope scope;
  block.forward(x, x, norm, out, ws);
  CHECK(scope.count() == 0);
}

TEST_CASE("sessions under adapters beyond LoRA, activated ones in bfloat16 and a batch that speculates allocate nothing", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  AdapterParts<float> parts = pith_test::random_adapter<float>(decoder, 3, 60).parts();
  parts.invocation = {5, 6};
  const ModelAdapter<float> other = pith_test::other_adapter<float>(decoder, 40),
                            activated = pith_test::narrowed<false>(ModelAdapter<float>(decoder.adapter_target(), parts));
  const std::vector<Token> prompt{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4};
  std::vector<Session<float>> sessions;
  for (const ModelAdapter<float>* adapter : {&other, &activated, static_cast<const ModelAdapter<float>*>(nullptr)}) {
    sessions.push_back(decoder.start());
    sessions.back().use(adapter);
  }
  auto itself = decoder.start();
  PromptLookup<float> first(decoder.vocab_size()), second(decoder.vocab_size());
  SpeculativeBatch<float> batch;
  const SpeculativeOptions options{.draft_tokens = 3};
  batch.add(sessions[0], first, options);
  batch.add(sessions[1], second, options);
  batch.add(sessions[2], itself, options);
  for (const ModelAdapter<float>* adapter : {&other, &activated, static_cast<const ModelAdapter<float>*>(nullptr)}) {
    INFO((adapter == &other ? "other changes" : adapter == &activated ? "activated, in bfloat16" : "the base"));
    auto session = decoder.start();
    session.use(adapter);
    const AllocationScope alone;
    session.prefill(prompt);
    session.decode(prompt[0]);
    session.decode(std::span(prompt).first(5));
    CHECK(alone.count() == 0);
  }
  Index tokens = 0;
  const AllocationScope reading;
  for (Index i = 0; i < 3; ++i) batch.prefill(i, prompt);
  CHECK(reading.count() == 0);
  const AllocationScope scope;
  while (batch.step([&](Index, Token) { return ++tokens < 60; })) {
  }
  CHECK(scope.count() == 0);
  CHECK(sessions[1].adapter_start() == 4);
}
