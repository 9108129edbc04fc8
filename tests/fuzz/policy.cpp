// Every policy and wrapper with any numbers, and make_policy() with any name: refused, or a cache under it takes a prompt and some tokens,
// keeps rows as they were given and no more than it has room for.
#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <pith/kv.hpp>
#include <pith/merge.hpp>

#include "fuzz/fuzz.hpp"
#include "support/kv_stream.hpp"
#include "support/random_matrix.hpp"

namespace pith_fuzz {
namespace {

using pith::AnyPolicy;
using pith::Index;
using Any = AnyPolicy<float>;

std::shared_ptr<const pith::Rope<float>> any_rope(Reader& in, Index head_dim) {
  static const auto of = [](Index dim, pith::RopeScaling scaling) {
    return std::make_shared<const pith::Rope<float>>(pith::RopeOptions{.head_dim = dim, .scaling = scaling, .max_position_embeddings = 8});
  };
  static const std::array four{of(4, {}), of(4, {.type = pith::RopeType::dynamic, .factor = 2})};
  static const auto six = of(6, {});
  const Index choice = in.below(8);
  if (choice == 0) return nullptr;
  if (choice == 1) return six;
  return head_dim == 4 ? four[choice == 2] : of(head_dim % 2 == 0 ? head_dim : 2, {});
}

std::shared_ptr<const pith::Matrix<float>> any_o_proj(Reader& in, const pith::AttentionShape& shape) {
  const Index choice = in.below(8);
  if (choice == 0) return nullptr;
  return std::make_shared<pith::Matrix<float>>(
      pith_test::random_matrix<float>(choice == 1 ? 0 : 5, choice == 2 ? 3 : shape.num_heads * shape.head_dim, 3));
}

pith::HeavyHitter heavy(Reader& in) { return {.heavy = in.number(), .recent = in.number()}; }
pith::SnapKv snap(Reader& in) {
  return {.keep = in.number(),
          .window = in.number(),
          .kernel = in.number(),
          .pool = in.flag() ? pith::SnapKv::Pool::average : pith::SnapKv::Pool::largest,
          .group = in.flag() ? pith::SnapKv::Group::mean : pith::SnapKv::Group::largest};
}
pith::Csp cross(Reader& in) {
  pith::Csp policy{.heavy = in.number(), .recent = in.number()};
  policy.protects = in.number();
  policy.cross_ratio = in.real();
  policy.n = in.real();
  if (in.flag()) policy.picks = {};
  return policy;
}
pith::AdaptiveOptions adaptive(Reader& in) {
  return {.floor = in.real(), .rule = in.flag() ? pith::AdaptiveOptions::Rule::exact : pith::AdaptiveOptions::Rule::blended};
}
pith::ProtectOptions protect(Reader& in) {
  pith::ProtectOptions options{.sinks = in.number(), .recent = in.number()};
  if (in.flag()) options.kind = static_cast<pith::TokenKind>(in.below(4));
  return options;
}
pith::ExpectedAttention<float> expected(Reader& in, const pith::AttentionShape& shape) {
  return {.rope = any_rope(in, shape.head_dim),
          .keep = in.number(),
          .sinks = in.number(),
          .future = in.number(),
          .epsilon = static_cast<float>(in.real()),
          .covariance = in.flag()};
}
template <class P> Any critical(P policy, Reader& in, const pith::AttentionShape& shape) {
  pith::CriticalValues<P, float> out(std::move(policy), any_o_proj(in, shape));
  out.epsilon = static_cast<float>(in.real());
  out.first_stage = in.real();
  return out;
}

pith::Leverage<float> leverage(Reader& in, const pith::AttentionShape& shape) {
  pith::Leverage<float> policy{.rope = any_rope(in, shape.head_dim), .keep = in.number(), .sinks = in.number()};
  const Index columns = in.below(8);
  if (columns > 4)
    policy.sketch = std::make_shared<pith::Matrix<float>>(
        pith_test::random_matrix<float>(columns == 5 ? 3 : shape.num_kv_heads * shape.head_dim, columns == 6 ? 0 : in.below(160), 4));
  return policy;
}
pith::NonCausal non_causal(Reader& in) {
  return {.keep = in.number(), .sinks = in.number(), .chunk = in.number(), .kernel = in.number(), .padded_chunk = in.flag()};
}
pith::RKv reasoning(Reader& in) {
  pith::RKv policy{.keep = in.number(), .window = in.number(), .kernel = in.number(), .rows_per_eviction = in.number()};
  policy.lambda = in.real();
  policy.threshold = in.real();
  if (in.flag()) policy.spare = pith::RKv::Spare::first;
  return policy;
}
pith::LazyLayer lazy(Reader& in) {
  return {.keep = in.number(), .sinks = in.number(), .recent = in.number(), .last = in.number(), .threshold = in.real()};
}
std::vector<Index> rows_each(Reader& in, const pith::AttentionShape& shape) {
  std::vector<Index> rows(static_cast<std::size_t>(in.below(8) == 0 ? in.below(4) : shape.num_kv_heads));
  for (Index& each : rows) each = in.number();
  return rows;
}
pith::ThresholdOptions threshold(Reader& in) {
  pith::ThresholdOptions options{.least = in.real(), .window = in.number()};
  if (in.flag()) options.least = -options.least;  // what norms and ages are above
  return options;
}
pith::GrowingOptions growing(Reader& in) { return {.ratio = in.real(), .interval = in.number()}; }

/// The policies and wrappers that came later, behind bytes of their own: older inputs keep their meaning.
Any later_policy(Reader& in, const pith::AttentionShape& shape) {
  using namespace pith;
  switch (in.below(15)) {
    case 0:
      return leverage(in, shape);
    case 1:
      return non_causal(in);
    case 2: {
      Compactor<float> policy{.leverage = leverage(in, shape), .attention = non_causal(in)};
      policy.blend = in.real();
      policy.recent = in.number();
      return policy;
    }
    case 3: {
      CapKv<float> policy{.rope = any_rope(in, shape.head_dim), .keep = in.number(), .sinks = in.number()};
      policy.future = in.number();
      policy.tau = in.real();
      return policy;
    }
    case 4:
      return reasoning(in);
    case 5:
      return lazy(in);
    case 6:
      return Newest{in.number()};
    case 7: {
      const SnapKv inner = snap(in);
      return PerHead(inner, rows_each(in, shape));
    }
    case 8: {
      const Protect inner(Newest{in.number()}, protect(in));
      return PerHead(inner, rows_each(in, shape));
    }
    case 9: {
      const KeyNorm inner{in.number()};
      return Threshold(inner, threshold(in));
    }
    case 10: {
      const HeavyHitter inner = heavy(in);
      return Threshold(inner, threshold(in));
    }
    case 11: {
      const Tova inner{in.number()};
      return Growing(inner, growing(in));
    }
    case 12: {
      const SnapKv inner = snap(in);
      return Growing(inner, growing(in));
    }
    case 13: {
      const RKv inner = reasoning(in);
      return Protect(inner, protect(in));
    }
    default: {
      const auto inner = leverage(in, shape);
      return Adaptive(inner, adaptive(in));
    }
  }
}

Any any_policy(Reader& in, const pith::AttentionShape& shape) {
  using namespace pith;
  switch (in.below(36)) {
    case 0:
      return Dense{};
    case 1:
      return Window{in.number()};
    case 2: {
      const Index sinks = in.number(), window = in.number();
      return SinkWindow{.sinks = sinks, .window = window, .positions = in.flag() ? RopePositions::cache : RopePositions::text};
    }
    case 3:
      return heavy(in);
    case 4:
      return ObservedAttention{in.number()};
    case 5:
      return Tova{in.number()};
    case 6: {
      const Index keep = in.number(), history = in.number();
      return Scissorhands{.keep = keep, .history = history, .recent = in.number()};
    }
    case 7:
      return snap(in);
    case 8:
      return cross(in);
    case 9:
      return KeyNorm{in.number()};
    case 10: {
      const Index keep = in.number();
      return KeyDiff{.keep = keep, .rows_per_eviction = in.number()};
    }
    case 11: {
      const Index keep = in.number(), sinks = in.number();
      return Cur{.keep = keep, .sinks = sinks, .block = in.number()};
    }
    case 12: {
      const Index keep = in.number(), sinks = in.number();
      return LagKv{.keep = keep, .sinks = sinks, .lag = in.number()};
    }
    case 13:
      return Random{in.number()};
    case 14:
      return expected(in, shape);
    case 15:
      return AtCachePositions(heavy(in));
    case 16:
      return AtCachePositions(snap(in));
    case 17:
      return AtCachePositions(cross(in));
    case 18:
      return AtCachePositions(Random{in.number()});
    case 19:
      return PromptOnly(heavy(in));
    case 20:
      return PromptOnly(Tova{in.number()});
    case 21: {
      const KeyNorm inner{in.number()};
      return Protect(inner, protect(in));
    }
    case 22: {
      const PromptOnly inner(heavy(in));
      return Protect(inner, protect(in));
    }
    case 23: {
      const SnapKv inner = snap(in);
      return Adaptive(inner, adaptive(in));
    }
    case 24: {
      const KeyNorm inner{in.number()};
      return Adaptive(inner, adaptive(in));
    }
    case 25: {
      const Csp inner = cross(in);
      return Adaptive(inner, adaptive(in));
    }
    case 26: {
      const KeyNorm inner{in.number()};
      return Chunkwise(inner, in.number());
    }
    case 27: {
      const SnapKv inner = snap(in);
      return Chunkwise(inner, in.number());
    }
    case 28:
      return critical(snap(in), in, shape);
    case 29:
      return critical(KeyNorm{in.number()}, in, shape);
    case 30:
      return critical(heavy(in), in, shape);
    case 31: {
      const auto inner = expected(in, shape);
      return Adaptive(inner, adaptive(in));
    }
    case 32: {
      const Protect inner(snap(in), protect(in));
      return Adaptive(inner, adaptive(in));
    }
    case 33:
      return later_policy(in, shape);
    default: {  // by name; of a name in the catalogue most often
      const auto entries = policy_catalogue<float>();
      const std::size_t entry = in.byte() % (entries.size() + 1);
      std::string name;
      if (entry < entries.size())
        name = entries[entry].name;
      else
        for (Index i = in.below(9); i > 0; --i) name += static_cast<char>(in.byte());
      const Index rows = in.number();
      const bool whole = in.below(4) != 0;
      return make_policy<float>(name, rows,
                                whole ? PolicyModel<float>{any_rope(in, shape.head_dim), any_o_proj(in, shape)} : PolicyModel<float>{});
    }
  }
}

using Cache = pith::KvCache<float>;

/// Rows have room, positions of their own, and, where nothing turns or merges them, the bits that were given.
void check(const Cache& cache, const pith_test::KvStream<float>& stream, bool as_given) {
  const Index heads = cache.shape().num_kv_heads, d = cache.shape().head_dim;
  Index rows = 0;
  for (Index h = 0; h < heads; ++h) {
    rows += cache.size(h);
    std::vector<pith::Position> positions(cache.positions(h).begin(), cache.positions(h).end());
    for (std::size_t r = 0; as_given && r < positions.size(); ++r) {
      const auto p = static_cast<std::size_t>(positions[r]);
      demand(p < stream.keys.size(), "a row is a token's");
      demand(pith_test::same_bits(cache.keys(h, cache.rope_positions()).row(static_cast<Index>(r)), stream.keys[p].middleCols(h * d, d)) &&
                 pith_test::same_bits(cache.values(h).row(static_cast<Index>(r)), stream.values[p].middleCols(h * d, d)),
             "a row is what was appended");
    }
    std::sort(positions.begin(), positions.end());
    demand(std::adjacent_find(positions.begin(), positions.end()) == positions.end(), "no token has two rows");
  }
  demand(rows <= heads * cache.capacity(), "rows have room");
}

void stream_tokens(Cache& cache, Reader& in, bool as_given) {
  const bool turns = cache.reindexes();
  pith_test::KvStream<float> stream(cache.shape(), 1);
  const pith::Rope<float> rope({.head_dim = 4});
  for (int i = 0; i < 16 && !in.done(); ++i) {
    const std::uint8_t how = in.byte();
    const auto phase = (how & 3) != 0 && i > 0 ? pith::Phase::decode : pith::Phase::prefill;
    const Index tokens = phase == pith::Phase::prefill ? 1 + (how >> 4) : 1;
    const Outcome outcome = attempt([&] {
      if ((how & 12) == 4) cache.checkpoint();
      stream.step(cache, tokens, phase);
      if (turns && cache.shape().head_dim == 4) cache.reindex(rope);
      const pith::Position back = earlier(cache.next_position(), tokens);
      if ((how & 12) == 8 && cache.can_crop(back)) cache.crop(back);
    });
    if (outcome == Outcome::done) check(cache, stream, as_given);
    if (outcome != Outcome::done) cache.clear(), stream = pith_test::KvStream<float>(cache.shape(), 1);
  }
}

}  // namespace

void run_policy(Bytes bytes) {
  Reader in(bytes);
  const std::uint8_t sizes = in.byte();
  const pith::AttentionShape shape{(sizes & 3) == 3 ? 6 : 2, (sizes & 3) == 1 ? 1 : 2, (sizes >> 2 & 7) == 7 ? 6 : 4};
  pith::KvCacheOptions options{
      .max_chunk = 1 + (sizes >> 5) * 3, .max_draft = in.below(4), .max_tokens = 24, .max_generated = in.below(24)};
  if (in.below(16) == 0) options.window = in.number();
  if (in.below(32) == 0) options.max_generated = in.number();
  if (in.below(32) == 0) options.max_chunk = in.number();
  if (in.below(32) == 0) options.max_draft = in.number();
  options.keep_masses = in.below(4) == 0;
  const auto merges = pith::merge_catalogue<float>();
  const std::size_t merge = in.below(2) == 0 ? 0 : in.byte() % merges.size();

  std::optional<Cache> cache;
  bool as_given = false;
  attempt([&] {
    const Any policy = any_policy(in, shape);
    const pith::PolicyFacts facts = policy.facts(shape);
    as_given = merge == 0 && !(facts.traits.positions == pith::RopePositions::cache && facts.eviction == pith::Eviction::by_score);
    cache.emplace(shape, policy, options, merges[merge].make());
  });
  if (cache) stream_tokens(*cache, in, as_given);
}

}  // namespace pith_fuzz
