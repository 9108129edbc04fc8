// Random calls of every verb against clones taken before them: crop() restores the same bits after any of them.
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include <pith/kv.hpp>

#include "support/catch.hpp"
#include "support/kv_stream.hpp"

using namespace pith;

namespace {

template <class P, class T> void random_calls(const P& policy, const AttentionShape& shape, std::uint64_t seed, int operations) {
  using Cache = KvCache<T>;
  INFO("seed " << seed);
  const bool dense = std::is_same_v<P, Dense>;
  Cache cache(shape, policy, {.max_chunk = 6, .max_draft = 9, .max_tokens = 6 * operations});
  pith_test::KvStream<T> stream(shape, seed);
  std::vector<Cache> before;
  std::vector<Position> begins;
  bool open = false;
  Index left = 0;
  for (int op = 0; op < operations; ++op) {
    switch (stream.rng() % 6) {
      case 0:
        cache.checkpoint();
        before.clear();
        begins.clear();
        open = true;
        left = 10;
        break;
      case 1:
        if (open && !begins.empty()) {
          const std::size_t to = static_cast<std::size_t>(stream.rng() % (begins.size() + 1));
          const Position p = to == begins.size() ? cache.next_position() : begins[to];
          const Cache now = cache.clone();
          cache.crop(p);
          REQUIRE(pith_test::same_state(cache, to == begins.size() ? now : before[to]));
          before.clear();
          begins.clear();
          open = false;
        }
        break;
      case 2:
        if (!open && !dense) cache.evict(static_cast<Index>(stream.rng() % 5));
        break;
      case 3:
        cache = cache.clone();
        break;
      default: {
        const Index tokens = 1 + static_cast<Index>(stream.rng() % 6);
        if (open && tokens > left) break;
        if (open) {
          before.push_back(cache.clone());
          begins.push_back(cache.next_position());
          left -= tokens;
        }
        stream.step(cache, tokens);
      }
    }
    for (Index h = 0; h < shape.num_kv_heads; ++h) REQUIRE(cache.size(h) <= cache.budget());
  }
}

}  // namespace

TEST_CASE("crop gives back the same bits after random calls", "[property]") {
  const char* given = std::getenv("PITH_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("crop: PITH_SEED=%llu repeats this run\n", static_cast<unsigned long long>(seed));
  for (std::uint64_t round = 0; round < 4; ++round) {
    const std::uint64_t s = seed + round;
    random_calls<Dense, float>({}, {2, 1, 4}, s, 150);
    random_calls<Window, float>({.window = 5}, {4, 2, 4}, s, 400);
    random_calls<SinkWindow, bfloat16>({.sinks = 3, .window = 6}, {2, 2, 6}, s, 400);
    random_calls<HeavyHitter, float>({.heavy = 4, .recent = 4}, {4, 2, 4}, s, 400);
    random_calls<HeavyHitter, double>({.heavy = 7, .recent = 0}, {3, 1, 3}, s, 400);
    random_calls<AnyPolicy<float>, half>(HeavyHitter{.heavy = 3, .recent = 5}, {2, 2, 4}, s, 400);
  }
}
