// What a session asks of each cache before anything changes, against what the cache's verbs then do.
#include <random>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

using namespace pith;
using pith_test::KvStream;

namespace {

constexpr AttentionShape room_shape{4, 2, 4};

template <class F> bool refused_by(F&& call) {
  try {
    call();
  } catch (const CapacityError&) {
    return true;
  } catch (const StateError&) {
    return true;
  }
  return false;
}

}  // namespace

TEST_CASE("check_room() refuses exactly what the verbs refuse", "[kv]") {
  const AnyPolicy<float> policies[] = {Dense{},
                                       Window{5},
                                       SinkWindow{.sinks = 2, .window = 3},
                                       HeavyHitter{.heavy = 3, .recent = 3},
                                       AtCachePositions(HeavyHitter{.heavy = 2, .recent = 3}),
                                       SnapKv{.keep = 6, .window = 3, .kernel = 1},
                                       Adaptive(SnapKv{.keep = 6, .window = 3, .kernel = 1}),
                                       Tova{5}};
  std::mt19937_64 rng(5);
  const auto below = [&](Index n) { return static_cast<Index>(rng() % static_cast<std::uint64_t>(n)); };
  Index asked = 0, refused = 0;
  for (int walk = 0; walk < 80; ++walk) {
    const AnyPolicy<float>& policy = policies[static_cast<std::size_t>(walk) % std::size(policies)];
    KvCache cache(room_shape, policy, {.max_chunk = 1 + below(4), .max_draft = below(4), .max_tokens = 20, .max_generated = below(9)});
    KvPromptBuffer<float> buffer(room_shape, 16, {.stats = 8, .combines = true, .cache_positions = true});
    KvStream<float> stream(room_shape, static_cast<std::uint64_t>(walk));
    for (int step = 0; step < 12; ++step) {
      const auto& state = detail::CacheInternals::state(cache);
      for (const Index tokens : {1, 2, 3, 6, 11, 17}) {
        const Matrix<float> rows = stream.random(tokens, 8), queries = stream.random(tokens, 16);
        for (const bool lends : {false, true})
          for (const bool more : {false, true}) {  // a prompt, reserved and appended
            const AppendOptions how{.phase = Phase::prefill, .more = more};
            KvPromptBuffer<float>* const lent = lends ? &buffer : nullptr;
            const bool expected = refused_by([&] { state.check_room(tokens, how, lent); });
            KvCache<float> trial = cache.clone();
            CAPTURE(walk, step, tokens, lends, more);
            REQUIRE(expected == refused_by([&] {
                      trial.reserve(tokens, lent);
                      trial.append(rows, rows, how);
                    }));
            ++asked, refused += expected;
          }
        const bool expected = refused_by([&] { state.check_room(tokens, {}, nullptr); });  // tokens decoded one by one
        KvCache<float> trial = cache.clone();
        CAPTURE(walk, step, tokens);
        REQUIRE(expected == refused_by([&] {
                  for (Index t = 0; t < tokens; ++t) KvStream<float>::feed(trial, queries.row(t), rows.row(t), rows.row(t));
                }));
        ++asked, refused += expected;
      }
      const bool prompt = below(2) == 0;
      const Index tokens = 1 + below(prompt ? 12 : 2);
      const bool over = refused_by([&] {
        if (below(4) == 0) cache.checkpoint();
        if (prompt) cache.reserve(tokens, &buffer);
        stream.step(cache, tokens, prompt ? Phase::prefill : Phase::decode);
        if (below(4) == 0 && cache.can_crop(cache.next_position() - static_cast<Position>(tokens)))
          cache.crop(cache.next_position() - static_cast<Position>(tokens));
      });
      if (over) cache.clear();
    }
  }
  CHECK(refused > asked / 10);
  CHECK(refused < asked - asked / 10);
}
