// Decoding allocates nothing, counted at malloc.
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/merge.hpp>
#include <pith/model.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/kv_stream.hpp"
#include "support/switch_models.hpp"
#include "support/tiny_adapters.hpp"
#include "support/tiny_model.hpp"

using namespace pith;

namespace {

template <class F> std::size_t allocations_in(F&& f) {
  const auto before = pith_test::allocations();
  f();
  return static_cast<std::size_t>(pith_test::allocations() - before);
}

}  // namespace

TEST_CASE("the counter counts", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  std::vector<int> v;  // outside: a compiler may remove an allocation whose result is not used
  CHECK(allocations_in([&] { v.resize(100); }) == 1);
  Matrix<float> m;
  CHECK(allocations_in([&] { m.resize(10, 10); }) == 1);
}

TEST_CASE("prefill, decode, checkpoint and crop allocate nothing", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  DecoderConfig config = pith_test::tiny_config();
  config.hidden_size = 128;  // large enough for blocked kernels
  config.intermediate_size = 320;
  config.head_dim = 32;
  const Decoder<float> decoder = pith_test::random_decoder<float>(config);
  const std::vector<Token> tokens = pith_test::random_tokens(300, 50);
  ThreadPool pool(2);
  // Everything in the catalogue, each with what it needs of the model.
  const auto rope = std::make_shared<const Rope<float>>(config.rope());
  const auto o_proj = std::make_shared<Matrix<float>>(config.hidden_size, config.num_attention_heads * config.head_dim);
  decoder.weights().layers[0].o_proj.copy_weight(0, *o_proj);
  std::size_t turn = 0;  // another strategy with each policy and number of threads
  for (const PolicyEntry<float>& entry : policy_catalogue())
    for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
      const MergeEntry<float>& merging = merge_catalogue()[turn++ % merge_catalogue().size()];
      INFO(entry.name << ", " << merging.name << ", " << executor.size() << " threads");
      const AnyPolicy<float> policy = entry.make(24, {rope, o_proj});
      const auto run = [&](auto session) {
        Sampler<float> sampler({.temperature = 0.8f, .top_k = 20, .top_p = 0.9f}, session.vocab_size());
        std::mt19937_64 rng(1);
        const PrefillOptions reporting{.progress = [](const PrefillProgress& p) { return p.layers_done > 0; }};
        CHECK(allocations_in([&] {
                session.prefill(std::span(tokens).first(200), reporting);
                session.clear();
                session.prefill(std::span(tokens).first(200));
              }) == 0);
        CHECK(allocations_in([&] {
                for (int i = 0; i < 40; ++i)
                  session.decode(sampler.sample(session.decode(tokens[static_cast<std::size_t>(i)]).row(0), rng));
              }) == 0);
        CHECK(allocations_in([&] {
                for (int i = 0; i < 10; ++i) {
                  session.checkpoint();
                  const Position from = session.next_position();
                  session.decode(std::span(tokens).first(9));
                  session.crop(from + i % 9);
                }
              }) == 0);
        CHECK(allocations_in([&] {
                session.make_room(5);
                session.prefill(std::span(tokens).first(5));
                session.clear();
              }) == 0);
      };
      const SessionOptions options{.max_prompt = 200, .max_generated = 400, .keep_masses = turn % 3 == 0, .executor = executor};
      run(decoder.start(policy, options, merging.make()));
      if (entry.name != "h2o-cache") {  // turns keys, which only unrounded rows survive
        run(decoder.start<bfloat16>(policy, options, merging.make()));
        run(decoder.start<Q8>(policy, options, merging.make()));
        SessionOptions skipping = options;
        skipping.skip_below = .1;
        run(decoder.start<Kv<Q8, Rotated<Q4>>>(policy, skipping, merging.make()));
        skipping.scout_keys = true;
        run(decoder.start<bfloat16>(policy, skipping, merging.make()));
      }
    }
}

TEST_CASE("decoders of every switch allocate nothing, and neither does recomputing a longrope's text", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  for (std::size_t which = 0; which < pith_test::num_switch_configs; ++which) {
    CAPTURE(which);
    const Decoder<float> decoder = pith_test::switch_model<float>(which);
    for (const AnyPolicy<float>& policy : {AnyPolicy<float>(Dense{}), AnyPolicy<float>(SinkWindow{.sinks = 2, .window = 8}),
                                           AnyPolicy<float>(HeavyHitter{.heavy = 6, .recent = 6})}) {
      const bool keeps = policy.budget() == unlimited;
      auto session = decoder.start(policy, {.max_prompt = 16, .max_tokens = 60, .text_length = keeps ? 0 : 60});
      auto other = decoder.start(policy, {.max_prompt = 16, .max_tokens = 60, .text_length = keeps ? 0 : 60});
      Session<float>* both[] = {&session, &other};
      Workspace ws(decoder.together_workspace_bytes(both));
      Matrix<float> logits(2, 50);
      CHECK(allocations_in([&] {
              session.prefill(std::span(tokens).first(16));
              for (std::size_t i = 16; i < 24; ++i) session.decode(tokens[i]);
              session.checkpoint();
              session.decode(std::span(tokens).subspan(24, 8));
              session.crop(26);
              for (std::size_t i = 0; i < 24; ++i) decoder.decode_together(both, std::span(tokens).subspan(i, 2), logits, ws);
              session.clear();
              session.prefill(std::span(tokens).first(7));
            }) == 0);
    }
  }
}

TEST_CASE("a speculative step allocates nothing with any draft, and neither does its prompt", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(60, 50);
  const auto run = [&](auto& target, auto& draft, const SpeculativeOptions& options) {
    SpeculativeDecoder spec(target, draft, options);
    std::mt19937_64 rng(1);
    CHECK(allocations_in([&] { spec.prefill(tokens); }) == 0);
    CHECK(allocations_in([&] {
            for (int i = 0; i < 60; ++i) spec.step(rng);
          }) == 0);
    CHECK(allocations_in([&] {
            generate(spec, {.max_tokens = 40}, rng, [](Token t) { return t != 7; });
            spec.prefill(std::span(tokens).first(9));
          }) == 0);
    CHECK(spec.stats().rejected > 0);
  };
  for (const AnyPolicy<float>& policy : {AnyPolicy<float>(Dense{}), AnyPolicy<float>(HeavyHitter{.heavy = 8, .recent = 8}),
                                         AnyPolicy<float>(AtCachePositions(HeavyHitter{.heavy = 8, .recent = 8}))})
    for (const SamplerOptions& sampler : {SamplerOptions{.temperature = 0}, SamplerOptions{},
                                          SamplerOptions{.temperature = .9f, .top_k = 20, .top_p = .9f, .min_p = .01f}}) {
      const SpeculativeOptions options{.draft_tokens = 5, .sampler = sampler, .length = DraftLength::adapted};
      auto target = decoder.start(policy), again = decoder.start(policy), draft = decoder.start(Window{6});
      run(target, draft, options);
      PromptLookup lookup(50, {.min_ngram = 1, .memory = 70});
      run(again, lookup, options);
    }
}

TEST_CASE("a cache in your own loop allocates nothing", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const AttentionShape shape{8, 2, 64};
  KvCache cache(shape, HeavyHitter{.heavy = 24, .recent = 8}, {.max_chunk = 1, .max_draft = 4});
  const Matrix<float> k = Matrix<float>::Random(1, 128), v = Matrix<float>::Random(1, 128), q = Matrix<float>::Random(1, 512);
  Matrix<float> out(1, 512);
  Workspace ws(attend_workspace_bytes<float>(shape, 40, 1));
  CHECK(allocations_in([&] {
          for (int i = 0; i < 100; ++i) {
            if (i % 10 == 0) cache.checkpoint();
            cache.append(k, v);
            attend(q, cache.view(), out, ws, cache.observer());
            cache.evict();
            if (i % 10 == 3) cache.crop(cache.next_position() - 2);
          }
        }) == 0);
}

TEST_CASE("a thousand adapters come and go, and sessions decode together, without an allocation", "[hot_path]") {
  if (!pith_test::counting_available()) return;
  const Decoder<float> decoder = pith_test::random_decoder<float>(pith_test::tiny_config());
  const std::vector<Token> tokens = pith_test::random_tokens(90, 50);
  const ModelAdapter<float> a = pith_test::random_adapter(decoder, 200, 1), b = pith_test::thorough_adapter(decoder, 2);
  const ModelAdapter<float> prompt(decoder.adapter_target(), {.prompt = Matrix<float>::Ones(3, 24)});
  ThreadPool pool(2);
  for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
    auto session = decoder.start(Dense{}, {.max_prompt = 80, .executor = executor});
    CHECK(allocations_in([&] {
            for (int i = 0; i < 1000; ++i)
              for (const ModelAdapter<float>* adapter : {&a, static_cast<const ModelAdapter<float>*>(nullptr), &b, &prompt})
                session.use(adapter);
          }) == 0);
    for (const ModelAdapter<float>* adapter : {&a, &b, &prompt})
      CHECK(allocations_in([&] {
              session.clear();
              session.use(adapter);
              session.prefill(std::span(tokens).first(70));
              session.decode(std::span(tokens).first(9));
              session.decode(tokens[0]);
            }) == 0);
    auto other = decoder.start(HeavyHitter{.heavy = 4, .recent = 4}), third = decoder.start();
    session.clear();
    session.use(&a);
    third.use(&b);
    const std::vector<Session<float>*> all{&session, &other, &third};
    Workspace ws(decoder.together_workspace_bytes(all, executor.size()), executor);
    Matrix<float> logits(3, 50);
    CHECK(allocations_in([&] {
            for (std::size_t i = 0; i < 20; ++i) decoder.decode_together(all, std::span(tokens).subspan(i, 3), logits, ws);
          }) == 0);
  }
}
