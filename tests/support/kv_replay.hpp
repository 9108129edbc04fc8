#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <pith/kv/catalogue.hpp>
#include <pith/kv/kv_cache.hpp>
#include <pith/merge/catalogue.hpp>

#include "kv_oracle.hpp"
#include "kv_stream.hpp"
#include "random_matrix.hpp"

namespace pith_test {

enum class Verb : std::uint8_t { append, observe, evict, make_room, checkpoint, crop, clone, restore, drop, clear, reindex };

/// One call of a cache. What does not apply when its turn comes is refused there, and so any sublist of a program is a program.
struct KvOperation {
  Verb verb = Verb::append;
  pith::Index count = 1;   ///< append: tokens; make_room: tokens to come; drop: tokens
  std::uint64_t seed = 0;  ///< what the numbers are drawn from; crop, drop: where
  bool prefill = false, more = false;
  pith::Index skipped = 0;  ///< append: positions left out before it

  std::string line() const {
    static constexpr const char* names[] = {"append", "observe", "evict", "make room", "checkpoint", "crop",
                                            "clone",  "restore", "drop",  "clear",     "reindex"};
    std::string text = names[static_cast<std::size_t>(verb)];
    if (verb == Verb::append || verb == Verb::make_room || verb == Verb::drop) text += " " + std::to_string(count);
    if (prefill) text += more ? ", a piece of a prompt" : ", a prompt's end";
    if (skipped > 0) text += ", " + std::to_string(skipped) + " positions on";
    if (verb == Verb::crop || verb == Verb::drop || verb == Verb::append || verb == Verb::observe)
      text += " (" + std::to_string(seed) + ")";
    return text;
  }
};

struct KvCase {
  std::string policy;
  std::string merge = "drop";
  pith::Index rows = 8;
  pith::AttentionShape shape;
  pith::KvCacheOptions options;
  std::shared_ptr<const pith::Rope<float>> rope;
};

/// A number for each of these, the same every time.
inline std::uint64_t drawn(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0) {
  std::uint64_t x = seed;
  for (const std::uint64_t part : {a, b, c}) {
    x = (x ^ part) + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
  }
  return x;
}

template <class F> Refusal refusal_of(F&& call) {
  try {
    call();
  } catch (const pith::ShapeError&) {
    return Refusal::shape;
  } catch (const pith::CapacityError&) {
    return Refusal::capacity;
  } catch (const pith::StateError&) {
    return Refusal::state;
  }
  return Refusal::none;
}

/// The policies of the catalogue and two more readings of them.
inline pith::AnyPolicy<float> policy_of(const KvCase& c) {
  if (c.policy == "sinks-stream")
    return pith::SinkWindow{.sinks = c.rows / 2, .window = c.rows - c.rows / 2, .positions = pith::RopePositions::text};
  if (c.policy == "random-cache") return pith::AtCachePositions(pith::Random{c.rows});
  const auto o_proj = std::make_shared<pith::Matrix<float>>(random_matrix<float>(5, c.shape.num_heads * c.shape.head_dim, 3));
  return pith::make_policy(c.policy, c.rows, {c.rope, o_proj});
}

/// A cache of T and the oracle, side by side.
template <class T> class KvReplay {
 public:
  using Cache = pith::KvCache<T>;
  using Index = pith::Index;

  explicit KvReplay(const KvCase& c)
      : rope_(c.rope),
        cache_(c.shape, policy_of(c), scouting(c.options), pith::make_merge<float>(c.merge)),
        oracle_({c.policy, c.rows, c.shape, c.options, cache_.policy().facts(c.shape), cache_.capacity(),
                 as_stored<typename pith::detail::KvParts<T>::Key>, as_stored<typename pith::detail::KvParts<T>::Value>, rope_.get(),
                 pith::make_merge<double>(c.merge)}),
        seen_(snapshot_of(cache_)) {}

  /// Throws   Violation naming the law that does not hold
  void run(std::span<const KvOperation> operations) {
    for (const KvOperation& operation : operations) step(operation);
    check_twin();
  }

 private:
  /// The call, which must be refused as foretold, and then changes nothing. Whether it was carried out.
  template <class F> bool call(Refusal foretold, F&& verb) {
    const Refusal refusal = refusal_of(verb);
    SeenCache after = snapshot_of(cache_);
    demand(refusal == foretold,
           foretold == Refusal::none ? "a call that makes sense is carried out" : "a call that makes no sense is refused");
    demand(refusal == Refusal::none || after == seen_, "a refused call changes nothing");
    before_ = std::exchange(seen_, std::move(after));
    return refusal == Refusal::none;
  }

  void step(const KvOperation& operation) {
    switch (operation.verb) {
      case Verb::append:
        append(operation);
        break;
      case Verb::observe:
        observe(operation);
        break;
      case Verb::evict:
        evict(0);
        break;
      case Verb::make_room:
        evict(operation.count);
        break;
      case Verb::checkpoint:
        if (call(oracle_.refuses_checkpoint(), [&] { cache_.checkpoint(); })) oracle_.checkpoint();
        demand(seen_ == before_, "checkpoint() changes nothing");
        break;
      case Verb::crop:
        crop(operation);
        break;
      case Verb::clone:
        clone();
        break;
      case Verb::restore:
        restore();
        break;
      case Verb::drop: {
        const auto first = static_cast<pith::Position>(Index(oracle_.next()) - 1 - Index(operation.seed % 24));
        const auto last = static_cast<pith::Position>(first + operation.count);
        Index dropped = 0;
        if (call(oracle_.refuses_drop(first, last), [&] { dropped = cache_.drop(first, last); })) oracle_.drop(first, last, dropped);
        break;
      }
      case Verb::clear:
        cache_.clear();
        oracle_.clear();
        seen_ = snapshot_of(cache_);
        break;
      case Verb::reindex:
        if constexpr (std::is_same_v<T, float>) {
          if (call(oracle_.refuses_reindex(), [&] { cache_.reindex(*rope_); })) oracle_.reindex();
          demand(cache_.reindexes() || seen_ == before_, "reindex() is for cache positions");
        }
        break;
    }
    oracle_.check(seen_);
    check_scouts();
  }

  /// Number types get scout codes, which must be those of the keys wherever these came from.
  static pith::KvCacheOptions scouting(pith::KvCacheOptions options) {
    options.scout_keys = std::is_same_v<T, float>;
    return options;
  }
  void check_scouts() const {
    if constexpr (std::is_same_v<T, float>) {
      const Index dim = cache_.shape().head_dim;
      std::vector<std::byte> codes(static_cast<std::size_t>(pith::scout_row_bytes(dim)));
      const pith::KvView<T> view = cache_.view();
      for (const pith::KvRun<T>& run : view.runs)
        for (Index r = 0; run.scouts != nullptr && r < run.rows; ++r) {
          pith::scout_encode(run.keys + r * run.stride, dim, codes.data());
          demand(std::equal(codes.begin(), codes.end(), run.scouts + r * pith::scout_row_bytes(dim)), "scout codes move with their rows");
        }
    }
  }

  void append(const KvOperation& operation) {
    const Index tokens = operation.count, width = cache_.shape().num_kv_heads * cache_.shape().head_dim;
    pith::Matrix<float> plain(tokens, width), v(tokens, width);
    const auto where = static_cast<std::uint64_t>(operation.seed == 0 ? 0 : oracle_.next());  // seed 0: the same rows again, for ties
    for (Index i = 0; i < plain.size(); ++i) {
      const std::uint64_t bits = drawn(operation.seed, static_cast<std::uint64_t>(i), where);
      plain.data()[i] = static_cast<float>(static_cast<std::int32_t>(bits)) * 0x1p-31f;
      v.data()[i] = static_cast<float>(static_cast<std::int32_t>(bits >> 32)) * 0x1p-30f;
    }
    std::vector<pith::TokenKind> kinds;
    std::vector<pith::Position> positions, angles;
    for (Index t = 0; t < tokens; ++t) {
      kinds.push_back(static_cast<pith::TokenKind>(drawn(operation.seed, 7, static_cast<std::uint64_t>(t)) % 4));
      positions.push_back(static_cast<pith::Position>(oracle_.next() + operation.skipped + t));
      angles.push_back(static_cast<pith::Position>(oracle_.next_rope_position() + t));
    }
    pith::Matrix<float> k = plain;
    if (oracle_.angles()) rope_->rotate(k, angles);
    const pith::AppendOptions how{.phase = operation.prefill ? pith::Phase::prefill : pith::Phase::decode,
                                  .more = operation.more,
                                  .kinds = kinds,
                                  .positions = positions};
    if (call(oracle_.refuses_append(tokens, operation.skipped, how), [&] { cache_.append(k, v, how); }))
      oracle_.append(before_, seen_, plain, k, v, how);
  }

  /// Weights in whole multiples of 2^-10, few of them different: sums are exact, and often equal.
  void observe(const KvOperation& operation) {
    Index held = cache_.size(0);  // tokens that were taken out have no queries any more
    for (Index h = 1; h < cache_.shape().num_kv_heads; ++h) held = std::min(held, cache_.size(h));
    const Index queries = std::clamp<Index>(oracle_.unobserved(), 1, std::max<Index>(1, held)), group = cache_.shape().group(),
                d = cache_.shape().head_dim;
    const auto weight = [&](Index h, Index q, Index g, pith::Position p) {
      if (p >= oracle_.next() - queries + q + 1) return 0.0f;
      return static_cast<float>(drawn(operation.seed, static_cast<std::uint64_t>(h * 64 + g), static_cast<std::uint64_t>(q),
                                      static_cast<std::uint64_t>(p)) %
                                8) *
             0x1p-10f;
    };
    std::vector<pith::Matrix<float>> weights;
    for (Index h = 0; h < cache_.shape().num_kv_heads; ++h) {
      if (cache_.size(h) == 0) return;
      weights.emplace_back(queries * group, cache_.size(h));
      for (Index q = 0; q < queries * group; ++q)
        for (Index r = 0; r < cache_.size(h); ++r)
          weights.back()(q, r) = weight(h, q / group, q % group, cache_.positions(h)[static_cast<std::size_t>(r)]);
    }
    const pith::Matrix<float> asked = random_matrix<float>(queries * group, d, operation.seed);
    const pith::Vector<float> log_sum = random_matrix<float>(queries * group, 1, operation.seed);
    const auto show = [&] {
      for (Index h = 0; h < cache_.shape().num_kv_heads; ++h)
        cache_.observe({.kv_head = h, .weights = weights[static_cast<std::size_t>(h)], .log_sum = log_sum, .queries = asked});
    };
    if (call(oracle_.refuses_observe(queries), show))
      oracle_.observe(seen_, queries, [&](Index h, Index q, pith::Position p) {
        double sum = 0;
        for (Index g = 0; g < group; ++g) sum += double(weight(h, q, g, p));
        return sum;
      });
  }

  void evict(Index coming) {
    Index dropped = 0;
    if (!call(oracle_.refuses_evict(coming), [&] { dropped = cache_.evict(coming); })) return;
    oracle_.evict(before_, seen_, coming, dropped);
    demand(cache_.evict() == 0 && snapshot_of(cache_) == seen_, "a second evict() changes nothing");
  }

  /// One call in eight asks for a place where nothing need have begun.
  void crop(const KvOperation& operation) {
    const pith::Position p = operation.seed % 8 == 0 ? oracle_.next() - static_cast<pith::Position>(operation.seed / 8 % 12)
                                                     : oracle_.begin(static_cast<std::size_t>(operation.seed / 8));
    const bool can = oracle_.can_crop(p);
    demand(cache_.can_crop(p) == can, "can_crop() knows where an append began");
    if (call(can ? Refusal::none : Refusal::state, [&] { cache_.crop(p); })) oracle_.crop(seen_, p);
  }

  /// Goes on with the copy; the original must stay as it is.
  void clone() {
    check_twin();
    Cache copy = cache_.clone();
    demand(snapshot_of(copy) == seen_, "clone() is equal");
    twin_.emplace(std::exchange(cache_, std::move(copy)));
    twin_seen_ = seen_;
  }

  /// Goes on with a cache that has only the snapshot.
  void restore() {
    Cache fresh = cache_.clone();
    fresh.clear();
    if (!call(oracle_.refuses_snapshot(), [&] { fresh.restore(cache_.snapshot()); })) return;
    cache_ = std::move(fresh);
    seen_ = snapshot_of(cache_);
    demand(seen_ == before_, "restore() returns to the snapshot");
    oracle_.restore();
  }
  void check_twin() const { demand(!twin_ || snapshot_of(*twin_) == twin_seen_, "what happens to a copy does not happen to the original"); }

  std::shared_ptr<const pith::Rope<float>> rope_;
  Cache cache_;
  KvOracle oracle_;
  std::optional<Cache> twin_;
  SeenCache before_, seen_, twin_seen_;
};

}  // namespace pith_test
