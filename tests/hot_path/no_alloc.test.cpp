// Decoding allocates nothing, counted at malloc.
#include <cstdio>
#include <random>
#include <vector>

#include <pith/core/executor.hpp>
#include <pith/decode.hpp>
#include <pith/kv.hpp>
#include <pith/model.hpp>

#include "support/alloc_counter.hpp"
#include "support/catch.hpp"
#include "support/kv_stream.hpp"
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
  std::vector<int> v;  // outside: a compiler may leave out an allocation that nobody could see
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
  const std::vector<AnyPolicy<float>> policies{Dense{}, Window{20}, SinkWindow{.sinks = 4, .window = 16},
                                               HeavyHitter{.heavy = 12, .recent = 12}};
  for (std::size_t p = 0; p < policies.size(); ++p)
    for (const ExecutorRef executor : {ExecutorRef(serial), ExecutorRef(pool)}) {
      INFO("policy " << p << ", " << executor.size() << " threads");
      const auto run = [&](auto session) {
        Sampler<float> sampler({.temperature = 0.8f, .top_k = 20, .top_p = 0.9f}, session.vocab_size());
        std::mt19937_64 rng(1);
        CHECK(allocations_in([&] { session.prefill(std::span(tokens).first(200)); }) == 0);
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
      run(decoder.start(policies[p], {.max_prompt = 200, .executor = executor}));
      run(decoder.start<bfloat16>(policies[p], {.max_prompt = 200, .executor = executor}));
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
